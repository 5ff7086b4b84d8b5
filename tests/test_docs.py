"""What the pages say can be followed: links resolve, files, make targets, flags and modules exist."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
PACKAGE = ROOT / "platform" / "seedbed"


def text(page: Path) -> str:
    return re.sub(r"<!--.*?-->", "", page.read_text(), flags=re.S)


def code(page: str) -> list[str]:
    """Code spans, and the lines of indented or fenced blocks."""
    fenced = re.findall(r"^```[^\n]*\n(.*?)^```", page, flags=re.S | re.M)
    blocks = [line.strip() for line in page.splitlines() if line.startswith("    ")]
    return [*re.findall(r"`([^`\n]+)`", page), *blocks, *(line for block in fenced for line in block.splitlines())]


def anchors(page: str) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", page, flags=re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def broken_links(page: Path) -> list[str]:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file.read_text())):
            broken.append(target)
    return broken


def unknown_targets(page: str, makefile: str) -> set[str]:
    known = set(re.findall(r"^([a-z][\w-]*):", makefile, flags=re.M))
    return {t for line in code(page) for t in re.findall(r"(?:^|\s)make ([a-z][\w-]*)", line)} - known


def missing_files(page: str) -> set[str]:
    """Paths that begin with one of the repository's folders, and file names directly in it."""
    named = {
        p
        for line in code(page)
        for p in re.findall(r"(?<![\w/.~-])((?:\.ci|platform|experiments|datasets|benchmarks|tests|docs)/[\w./-]*)", line)
    }
    named |= {p for line in code(page) for p in re.findall(r"(?<![\w/.~-])((?:ray_cluster|pyproject|requirements|Makefile)[\w.]*)", line)}
    return {p for p in named if "NAME" not in p and not (ROOT / p).exists()}


def missing_modules(page: str) -> set[str]:
    """`methods/base.py`, `seedbed/seeds.py` and the like."""
    named = {p for line in code(page) for p in re.findall(r"^([a-z_]+(?:/[a-z_]+)*\.py)$", line)}
    return {p for p in named if not any((folder / p).exists() for folder in (PACKAGE, PACKAGE.parent, ROOT))}


def known_flags() -> set[str]:
    from seedbed.analysis.fsl_study import FslStudy
    from seedbed.sweeps.settings import ShapesSweep

    flat = {**FslStudy().flat(), **ShapesSweep().flat()}
    found = {name.replace("_", "-") for name in flat}
    switches = {name for name, value in flat.items() if isinstance(value, bool)}
    found |= {".".join([*name.split(".")[:-1], f"no-{name.split('.')[-1]}"]).replace("_", "-") for name in switches}
    scripts = [ROOT / "datasets" / "voc2012" / name for name in ("prepare.py", "submission.py")]
    source = "".join(path.read_text() for path in (*scripts, PACKAGE / "__main__.py"))
    return found | set(re.findall(r'"--([a-z][\w-]*)"', source)) | {"help", "no-restart"}  # the last is `ray up`'s


def unknown_flags(page: str, known: set[str]) -> set[str]:
    """Dotted flags anywhere, and any flag on a line that runs one of our scripts."""
    used = set()
    for line in code(page):
        line = line.partition(" -- ")[2] if line.startswith("ray ") else line  # before it stand Ray's own
        used |= set(re.findall(r"--([a-z]+\.[a-z][\w.-]*)", line))
        if re.match(r"--[a-z]", line) or re.search(r"(experiments|datasets)/\S+\.py|-m seedbed", line):
            used |= set(re.findall(r"(?<!\S)--([a-z][\w.-]*)", line))
    return {flag for flag in used if flag.replace("_", "-") not in known}


def test_there_are_pages() -> None:
    names = {p.name for p in PAGES}
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "index.md", "architecture.md", "protocol.md", "cluster.md"} <= names


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_page_can_be_followed(page: Path) -> None:
    content = text(page)
    assert not broken_links(page)
    assert not unknown_targets(content, (ROOT / "Makefile").read_text())
    assert not missing_files(content)
    assert not missing_modules(content)
    assert not unknown_flags(content, known_flags())


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    missing = [p.name for p in (ROOT / "docs").glob("*.md") if p.name != "index.md" and f"({p.name})" not in index]
    assert not missing


def test_architecture_page_names_every_module() -> None:
    """Module for module as tests/test_architecture.py has them, row by row."""
    from test_architecture import LAYERS

    page = (ROOT / "docs" / "architecture.md").read_text()
    rows = [set(re.findall(r"`(\w+)/?`", row.split("|")[2])) for row in re.findall(r"^\| [a-zA-Z].*`.*$", page, flags=re.M)]
    there = {p.stem for p in PACKAGE.iterdir() if p.suffix == ".py" or list(p.glob("*.py"))} - {"__init__", "__main__"}
    assert set().union(*rows) == there
    rank = {unit: i for i, units in enumerate(LAYERS) for unit in units}
    flat = [sorted(rank[unit] for unit in row) for row in rows if row]
    assert all(above[-1] <= below[0] for above, below in itertools.pairwise(flat)), "a row is out of order"


def test_checks_can_fail(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Title\n[a](nowhere.md) [b](#title) [c](#other)\n")
    assert broken_links(page) == ["nowhere.md", "#other"]
    assert unknown_targets("`make tee` and\n\n    make test ARGS=x\n", "test: env\n") == {"tee"}
    assert missing_files("`experiments/none.py` `tests/` `ray_cluster.yml` `~/seedbed/platform`") == {
        "experiments/none.py",
        "ray_cluster.yml",
    }
    assert missing_modules("`methods/bass.py` `types.py`") == {"methods/bass.py"}
    assert unknown_flags("`--rib.marign 3`\n\n    python experiments/x.py --sed 3 --out x\n", {"rib.margin", "out"}) == {
        "rib.marign",
        "sed",
    }
