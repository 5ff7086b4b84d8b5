"""The rules of docs/architecture.md, kept by reading the source. Each checker is itself tried on a small bad example at the end."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "platform" / "seedbed"

# A module may import from its own row and from those above it. A new top-level module is given its row here.
LAYERS = (
    ("types", "config", "registry"),
    ("artefacts", "optim", "data", "models", "metrics", "papers", "provenance"),
    ("loop", "classifier", "methods", "addons"),
    ("seeds", "scores"),
    ("refine",),
    ("segment",),
    (
        "work",
        "analysis",
        "report",
        "progress",
        "pipeline",
        "keys",
        "plan",
        "checks",
        "label_work",
        "stage_rows",
        "refining",
        "segmenting",
        "trainings",
        "stages",
        "panels",
        "results",
        "local",
    ),
    ("study",),
    ("sweeps",),
    ("runtime",),
    ("__main__",),
)
RANK = {unit: rank for rank, units in enumerate(LAYERS) for unit in units}
UPWARDS_INSIDE_FUNCTIONS = {("study", "runtime"), ("sweeps", "runtime")}  # Ray loads only when a run uses it
ROOT_NAMES = {"Experiment": "pipeline", "run": "study"}  # what `seedbed/__init__.py` offers lazily

BARE_MACHINE = {"torch", "numpy", "PIL", "pyarrow"}  # what the core may count on, see pyproject.toml
TORCH_NEEDS = {
    "typing_extensions",
    "filelock",
    "sympy",
    "mpmath",
    "networkx",
    "fsspec",
    "torchgen",
    "functorch",
    "nvidia",
    "triton",
    "cuda",
}
ONLY_IN = {"ray": "seedbed.runtime", "mlflow": "seedbed.runtime", "pydensecrf": "seedbed.refine.crf"}
NOT_CORE = ("runtime", "__main__")  # every other module is imported with only the bare machine's packages

Sources = Mapping[str, str]  # dotted module name -> source


@dataclass(frozen=True)
class Import:
    importer: str
    target: str  # absolute and dotted; of `from a import b`: a.b
    line: int
    lazy: bool  # inside a function
    typing: bool  # under `if TYPE_CHECKING:`

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.target}"


def sources(package: Path = PACKAGE) -> dict[str, str]:
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text()
    return found


def is_package(module: str, modules: Sources) -> bool:
    return (
        module == "seedbed"
        or any(other.startswith(module + ".") for other in modules)
        or (PACKAGE.parent / module.replace(".", "/")).is_dir()
    )


def imports(module: str, modules: Sources) -> list[Import]:
    """Every import statement, and every `import_module("...")` with a literal name."""
    found: list[Import] = []

    def visit(node: ast.AST, lazy: bool, typing: bool) -> None:
        targets: list[str] = []
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".") if is_package(module, modules) else module.split(".")[:-1]
                base = ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])
            targets = [f"{base}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            targets = [a.value for a in node.args[:1] if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        found.extend(Import(module, target, getattr(node, "lineno", 0), lazy, typing) for target in targets)
        lazy = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.body:
                visit(child, lazy, True)
            for child in node.orelse:
                visit(child, lazy, typing)
            return
        for child in ast.iter_child_nodes(node):
            visit(child, lazy, typing)

    visit(ast.parse(modules[module]), False, False)
    return found


def all_imports(modules: Sources) -> Iterator[Import]:
    for module in modules:
        yield from imports(module, modules)


def unit(dotted: str) -> str | None:
    """`seedbed.data.store.Store` -> `data`; None for what is not ours, and for the package itself."""
    parts = dotted.split(".")
    if parts[0] != "seedbed" or len(parts) == 1 or parts[1] == "__version__":
        return None
    return ROOT_NAMES.get(parts[1], parts[1])


def resolved(dotted: str, modules: Sources) -> str:
    """The module that a dotted target lives in."""
    while dotted not in modules and "." in dotted:
        dotted = dotted.rpartition(".")[0]
    return dotted


# --- checkers: each returns the violations it finds -------------------------------------------------


def without_a_layer(modules: Sources) -> list[str]:
    return sorted({u for m in modules if (u := unit(m)) is not None and u not in RANK})


def against_the_layers(modules: Sources) -> list[str]:
    wrong = []
    for i in all_imports(modules):
        above, below = unit(i.importer), unit(i.target)
        if below is None or (i.lazy and (above, below) in UPWARDS_INSIDE_FUNCTIONS):
            continue
        if above is None or RANK.get(below, 99) > RANK.get(above, 99):  # `seedbed/__init__.py` itself imports nothing of ours
            wrong.append(str(i))
    return wrong


def cycles(modules: Sources) -> list[str]:
    """Rings of imports at module level, which only work by luck of the order."""
    edges: dict[str, set[str]] = {m: set() for m in modules}
    for i in all_imports(modules):
        target = resolved(i.target, modules)
        if not i.lazy and not i.typing and target in modules and target not in ("seedbed", i.importer):
            edges[i.importer].add(target)
    found, done = [], set()

    def walk(module: str, path: list[str]) -> None:
        if module in path:
            found.append(" -> ".join([*path[path.index(module) :], module]))
        elif module not in done:
            for target in sorted(edges[module]):
                walk(target, [*path, module])
            done.add(module)

    for module in modules:
        walk(module, [])
    return found


def outside_their_place(modules: Sources) -> list[str]:
    """ray, mlflow and pydensecrf, wherever in a module they are imported."""
    return [
        str(i)
        for i in all_imports(modules)
        if (place := ONLY_IN.get(i.target.split(".")[0])) and not (i.importer == place or i.importer.startswith(place + "."))
    ]


def heavy_at_module_level(modules: Sources) -> list[str]:
    allowed = BARE_MACHINE | sys.stdlib_module_names | {"seedbed"}
    return [
        str(i)
        for i in all_imports(modules)
        if not i.lazy and not i.typing and i.target.split(".")[0] not in allowed and unit(i.importer) not in NOT_CORE
    ]


def methods_among_themselves(modules: Sources) -> list[str]:
    """What two papers share lives in `methods/maps.py` or `methods/base.py`; no method reaches another, nor the registry."""
    shared = {"seedbed.methods.base", "seedbed.methods.maps"}
    return [
        str(i)
        for i in all_imports(modules)
        if i.importer.startswith("seedbed.methods.")
        and unit(i.target) == "methods"
        and resolved(i.target, modules) not in shared | {i.importer}
    ]


EQUATION = re.compile(r"Eqs?\. \(([^()]+)\)(?:[^,]*), ((?:[A-Z][\w-]+|and|et al\.|,? )+ \d{4})")


def equation_tags(modules: Sources) -> tuple[dict[str, list[str]], list[str]]:
    """Tag -> the functions that carry it; and the docstrings that open like an equation without having its form."""
    tags: dict[str, list[str]] = {}
    malformed = []
    for module, source in modules.items():
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            doc = ast.get_docstring(node) or ""
            if re.match(r"(?i)eqs?\b|equations? ?\(?\d", doc):
                match = EQUATION.match(doc)
                if match:
                    tags.setdefault(f"({match[1]}), {match[2]}", []).append(f"{module}.{node.name}")
                else:
                    malformed.append(f"{module}.{node.name}: {doc.splitlines()[0]}")
    return tags, malformed


def registry_entries(modules: Sources) -> Iterator[str]:
    """The `package.module:name` strings of the registries."""
    for source in modules.values():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"seedbed(\.\w+)+:\w+", node.value):
                yield node.value


def unwanted_names(paths: list[str]) -> list[str]:
    bad = {"util", "utils", "misc", "helper", "helpers", "common"}
    return [p for p in paths if any(set(re.split(r"[_.-]", part.lower())) & bad for part in Path(p).parts)]


PLACES = re.compile(
    r"""(?x)
    (?<![\w.~*?-])/(?:work|root|farm)(?:/|(?=["'\s:,)]))                 # a path of one machine
    | -{2}(?:extra-)?index-url | -{2}find-links | UV_(?:DEFAULT_)?INDEX | PIP_(?:EXTRA_)?INDEX
    | \b(?:pypi\.org|files\.pythonhosted\.org|download\.pytorch\.org|\w+\.jfrog\.io) | \b(?:artifactory|devpi|nexus)\b
    """
)


def places_of_one_machine(name: str, text: str) -> list[str]:
    return [f"{name}:{n}: {line.strip()[:120]}" for n, line in enumerate(text.splitlines(), 1) if PLACES.search(line)]


# --- the tree ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "check",
    [without_a_layer, against_the_layers, cycles, outside_their_place, heavy_at_module_level, methods_among_themselves],
    ids=lambda check: check.__name__,
)
def test_the_source_keeps_the_rule(check) -> None:
    found = check(sources())
    assert not found, "\n".join(found)


def test_every_equation_is_written_once() -> None:
    tags, malformed = equation_tags(sources())
    assert not malformed, f"open the docstring with `Eq. (3), Lee et al. 2021`: {malformed}"
    twice = {tag: where for tag, where in tags.items() if len(where) > 1}
    assert not twice, twice


def test_registries_name_what_exists() -> None:
    entries = sorted(set(registry_entries(sources())))
    assert entries
    for entry in entries:
        module, _, attribute = entry.partition(":")
        assert hasattr(importlib.import_module(module), attribute), entry


def tracked() -> list[str]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode:
        pytest.skip("not a git checkout")
    return [name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_names_and_places() -> None:
    files = tracked()
    assert not unwanted_names([f for f in files if f.endswith(".py")])
    assert not [f for f in files if re.fullmatch(r"platform/__init__\.py|datasets/(.*/)?__init__\.py", f)]
    found = []
    for name in files:
        content = (ROOT / name).read_bytes()
        if b"\0" not in content[:4096] and name != "tests/test_architecture.py":
            found += places_of_one_machine(name, content.decode(errors="replace"))
    assert not found, "\n".join(found)


def test_no_package_file_where_it_would_shadow() -> None:
    assert not (ROOT / "platform" / "__init__.py").exists(), "it would shadow the standard library's platform"
    assert not list((ROOT / "datasets").rglob("__init__.py"))


def test_experiments_stand_alone() -> None:
    """`ray submit` copies one file to the head's home: no sibling, no path relative to the file, no name of another module."""
    for path in sorted((ROOT / "experiments").glob("*.py")):
        assert path.stem not in sys.stdlib_module_names | {"ray", "torch", "mlflow", "numpy"}, path.name
        modules = {path.stem: path.read_text()}
        assert "__file__" not in modules[path.stem], path.name
        foreign = {i.target.split(".")[0] for i in imports(path.stem, modules)} - sys.stdlib_module_names - {"seedbed"}
        assert not foreign, f"{path.name} imports {foreign}"


def test_benchmarks_start_on_a_bare_machine() -> None:
    """A GPU machine without Ray, MLflow and tyro measures too."""
    folder = ROOT / "benchmarks"
    modules = {path.stem: path.read_text() for path in sorted(folder.glob("*.py"))}
    plain_twins = {path.stem for path in (ROOT / "tests").rglob("*.py")}  # what ours is measured beside
    studies = {path.stem for path in (ROOT / "experiments").glob("*.py")}  # they import nothing but seedbed
    allowed = BARE_MACHINE | sys.stdlib_module_names | {"seedbed"} | set(modules) | plain_twins | studies
    found = [str(i) for i in all_imports(modules) if not i.lazy and not i.typing and i.target.split(".")[0] not in allowed]
    assert not found, "\n".join(found)


def python(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", textwrap.dedent(code), *args], cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_import_is_light() -> None:
    run = python(
        """
        import sys, seedbed
        print(sorted({name.split('.')[0] for name in sys.modules} & {'torch', 'ray', 'mlflow', 'numpy', 'tyro', 'rich'}))
        """
    )
    assert run.stdout.strip() == "[]", run.stdout + run.stderr


def test_standard_library_platform_wins() -> None:
    run = python("import sys; sys.path.insert(0, ''); import platform; print(platform.system(), platform.__file__)")
    assert run.returncode == 0 and str(ROOT) not in run.stdout, run.stdout + run.stderr


@pytest.mark.ray
@pytest.mark.slow
def test_standard_library_platform_wins_in_a_ray_worker(small_ray: None) -> None:
    import ray

    @ray.remote
    def where() -> tuple[str, str]:
        import platform

        return platform.system(), platform.__file__

    system, file = ray.get(where.remote())
    assert system and str(ROOT) not in file


BLOCK = """
import sys

allowed = set(sys.argv[1].split()) | set(sys.stdlib_module_names) | {'seedbed'}

class Block:
    def find_spec(self, name, path=None, target=None):
        # Finders that editable installs put in place are machinery, not packages.
        if name.split('.')[0] not in allowed and not name.startswith('__editable__'):
            raise ModuleNotFoundError(f'{name} is not on a bare machine', name=name)

sys.meta_path.insert(0, Block())
import importlib
failed = []
for module in sys.argv[2:]:
    try:
        importlib.import_module(module)
    except Exception as error:
        failed.append(f'{module}: {type(error).__name__}: {error}')
print('\\n'.join(failed) or 'all')
"""


def test_core_imports_on_a_bare_machine() -> None:
    """Only torch, numpy, Pillow and pyarrow (and what torch itself cannot do without)."""
    core = [m for m in sources() if unit(m) not in NOT_CORE]
    run = python(BLOCK, " ".join(BARE_MACHINE | TORCH_NEEDS), *core)
    assert run.stdout.strip() == "all", run.stdout + run.stderr[-2000:]


# --- the checkers can fail --------------------------------------------------------------------------


def small(**modules: str) -> dict[str, str]:
    """A little package: `methods__rib="import ray"` is seedbed/methods/rib.py."""
    return {"seedbed": "", "seedbed.methods": "", **{f"seedbed.{name.replace('__', '.')}": text for name, text in modules.items()}}


@pytest.mark.parametrize(
    ("check", "modules"),
    [
        (without_a_layer, small(leftovers="")),
        (against_the_layers, small(data__store="from seedbed.loop import train")),
        (against_the_layers, small(data__store="def f():\n    from seedbed import pipeline")),
        (against_the_layers, small(types="from seedbed import Experiment")),
        (against_the_layers, small(study="from seedbed.runtime import fanout")),
        (against_the_layers, small(methods__rib="from ..seeds import sweep")),
        (against_the_layers, {"seedbed": "from seedbed.types import UserError"}),
        (cycles, small(work="from seedbed import local", local="from seedbed.work import Sweep")),
        (outside_their_place, small(pipeline="def f():\n    import ray")),
        (outside_their_place, small(report="import importlib\nx = importlib.import_module('mlflow.tracking')")),
        (outside_their_place, small(refine__irn="import pydensecrf.densecrf")),
        (heavy_at_module_level, small(report="from rich.table import Table")),
        (heavy_at_module_level, small(data__voc="try:\n    import cv2\nexcept ImportError:\n    cv2 = None")),
        (methods_among_themselves, small(methods__rib="from seedbed.methods.cam import Cam", methods__cam="")),
        (methods_among_themselves, small(methods__rib="from . import cam", methods__cam="")),
        (methods_among_themselves, small(methods__rib="def f():\n    from seedbed.methods import method_class")),
    ],
    ids=lambda value: value.__name__ if callable(value) else list(value)[-1],
)
def test_checker_finds(check, modules: dict[str, str]) -> None:
    assert len(check(modules)) == 1


def test_checkers_let_pass() -> None:
    good = small(
        types="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from torch import Tensor",
        methods__maps="import torch",
        methods__rib="from seedbed.methods.maps import merge\nfrom seedbed.types import Maps",
        report="def f():\n    import rich",
        study="def f():\n    from seedbed.runtime import fanout",
        runtime__fanout="import ray\nfrom seedbed import __version__\nfrom seedbed.study import run",
        refine__crf="import pydensecrf.densecrf",
    )
    for check in (without_a_layer, against_the_layers, cycles, outside_their_place, methods_among_themselves):
        assert check(good) == []
    assert len(heavy_at_module_level(good)) == 1  # pydensecrf, which `refine/crf.py` too asks for only when it is used


def test_equations_are_told_apart() -> None:
    one = 'def gndrp():\n    """Eq. (5), Lee et al. 2021. Shapes follow."""\n'
    tags, malformed = equation_tags(small(methods__rib=one, methods__maps=one, seeds='def f():\n    """Eq 5 of RIB"""\n'))
    assert tags == {"(5), Lee et al. 2021": ["seedbed.methods.rib.gndrp", "seedbed.methods.maps.gndrp"]}
    assert malformed == ["seedbed.seeds.f: Eq 5 of RIB"]
    other = 'def f():\n    """Eq. (5), Lee et al. 2022"""\n\ndef g():\n    """Eqs. (S1-S2), Araslanov and Roth 2020, their sum."""\n'
    assert set(equation_tags(small(seeds=other))[0]) == {"(5), Lee et al. 2022", "(S1-S2), Araslanov and Roth 2020"}


def test_places_are_found() -> None:
    slash, dash = "/", "--"
    for text in (
        f"cd {slash}root/x",
        f'"{slash}work/main"',
        f"pip install {dash}index-url x",
        "see https://pypi" + ".org/simple",
        f"at {slash}farm ",
    ):
        assert places_of_one_machine("x", text), text
    for text in (
        "platform/seedbed/work.py",
        "the network/work",
        f"uv pip compile {dash}no-emit-index-url",
        f"~{slash}root{slash}x",
        "tests/workers",
    ):
        assert not places_of_one_machine("x", text), text


def test_bare_machine_blocks() -> None:
    run = python(BLOCK, "torch", "tyro", "json")
    assert "tyro: ModuleNotFoundError" in run.stdout


def test_unwanted_names_are_found() -> None:
    assert unwanted_names(["platform/seedbed/utils.py", "tests/test_helpers.py", "a/common/b.py"]) != []
    assert not unwanted_names(["platform/seedbed/methods/maps.py"])
