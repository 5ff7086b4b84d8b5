"""The space of a search: which settings vary, over ranges or choices, and what is drawn from it."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from seedbed.pipeline import Experiment
from seedbed.types import UserError

Setting = dict[str, Any]
"""Dotted name -> value: what one trial changes."""

DRAWS = 100
"""How often a setting is drawn for each that is wanted, before a space counts as having no more."""
EXAMPLE = "say for instance --space rib.tau=0.2:0.6 rib.lr=1e-6:1e-4:log rib.pooling=gap,gndrp"


@dataclass(frozen=True)
class Range:
    low: float
    high: float
    log: bool = False
    whole: bool = False
    """Whole numbers only."""

    def draw(self, rng: np.random.Generator) -> Any:
        if self.whole and not self.log:
            return int(rng.integers(int(self.low), int(self.high) + 1))
        if self.log:
            return self.settled(math.exp(rng.uniform(math.log(self.low), math.log(self.high))))
        return self.settled(rng.uniform(self.low, self.high))

    def settled(self, value: float) -> Any:
        """Six digits are more than a setting needs, and read well; never outside."""
        return min(max(round(value) if self.whole else float(f"{value:.6g}"), self.low), self.high)


@dataclass(frozen=True)
class Choice:
    options: tuple[Any, ...]

    def draw(self, rng: np.random.Generator) -> Any:
        return self.options[int(rng.integers(len(self.options)))]


Space = Mapping[str, Range | Choice]


def read_space(words: Sequence[str], base: Experiment) -> Space:
    """`rib.tau=0.2:0.6`, `rib.lr=1e-6:1e-4:log`, `rib.pooling=gap,gndrp`, or one JSON object of the same; UserError for anything else."""
    known = base.flat()
    found: dict[str, Range | Choice] = {}
    for name, text in _pairs(words):
        name = name.strip().removeprefix("--").replace("-", "_")
        if name not in known:
            near = [n for n in known if n.endswith("." + name.rpartition(".")[2])]
            remedy = f"did you mean {' or '.join(near)}?" if near else "--help lists all settings"
            raise UserError(f"--space names {name}, which is no setting", field="--space", remedy=remedy)
        if name in found:
            raise UserError(f"--space names {name} twice", field="--space", remedy="give all its values at once, as in rib.tau=0.2,0.3,0.4")
        hint, changes_results = _field(base, name)
        if not changes_results:
            message = f"--space can't vary {name}: no trial's result depends on it"
            raise UserError(message, field="--space", remedy=f"give --{name.replace('_', '-')} to the whole sweep, and vary something else")
        found[name] = dimension = _dimension(name, text, hint)
        for value in (dimension.low, dimension.high) if isinstance(dimension, Range) else dimension.options:
            base.replace(**{name: value}).check()
    if not found:
        raise UserError("the search space is empty", field="--space", remedy=EXAMPLE)
    return found


def _pairs(words: Sequence[str]) -> list[tuple[str, Any]]:
    text = " ".join(words).strip()
    if text.startswith("{"):
        try:
            return json.loads(text, object_pairs_hook=list)  # a name that stands there twice is seen
        except ValueError as error:
            raise UserError(f"--space is no JSON object: {error}", field="--space", remedy=EXAMPLE) from error
    pairs = []
    for word in words:
        name, equals, values = word.partition("=")
        if not equals or not values:
            raise UserError(f"--space {word!r} gives no values", field="--space", remedy=EXAMPLE)
        pairs.append((name, values))
    return pairs


CONTENT = ("refine.saliency",)
"""Paths that do not enter a key, but whose content does."""


def _field(base: Experiment, name: str) -> tuple[Any, bool]:
    """A setting's type as it is written down, and whether results depend on it."""
    *above, last = name.split(".")
    owner: Any = base
    for part in above:
        owner = getattr(owner, part)
    metadata = next(f.metadata for f in dataclasses.fields(owner) if f.name == last)
    return typing.get_type_hints(type(owner))[last], metadata.get("key", True) or name in CONTENT


def _dimension(name: str, given: Any, hint: Any) -> Range | Choice:
    """A range is low:high or low:high:log, everything else a list of choices; all of the kind that the setting is declared as."""
    kinds = _kinds(hint)
    if not kinds & {bool, int, float, str, types.NoneType} and not _options(hint):
        raise UserError(f"--space can't vary {name}, which is a list", field="--space", remedy="run one study for each of its values")
    if isinstance(given, str) and ":" in given:
        return _range(name, given, whole=float not in kinds, of_numbers=bool(kinds & {int, float}))
    if given in ([], {}, ""):
        raise UserError(f"--space gives no values for {name}", field="--space", remedy=EXAMPLE)
    options = given.split(",") if isinstance(given, str) else given if isinstance(given, list) else [given]
    return Choice(tuple(dict.fromkeys(_of_kind(name, option, hint) for option in options)))


def _range(name: str, given: str, *, whole: bool, of_numbers: bool) -> Range:
    low, high, *more = given.split(":")
    try:
        ends = float(low), float(high)
    except ValueError:
        raise UserError(f"--space {name}={given}: a range is two numbers", field="--space", remedy=EXAMPLE) from None
    if whole and all(map(math.isfinite, ends)):  # of a setting that is a whole number, those within
        ends = math.ceil(ends[0]), math.floor(ends[1])
    log = more == ["log"]
    if more not in ([], ["log"]) or not ends[0] < ends[1] or (log and ends[0] <= 0) or not of_numbers:
        raise UserError(f"--space {name}={given} is no range of this setting", field="--space", remedy=EXAMPLE)
    return Range(*ends, log, whole)


def _kinds(hint: Any) -> set[Any]:
    """The types that a setting may have."""
    parts = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    return {typing.get_origin(part) or part for part in parts}


def _options(hint: Any) -> tuple[Any, ...]:
    """Of a setting that is one of some words (or numbers): these."""
    parts = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    return tuple(option for part in parts if typing.get_origin(part) is typing.Literal for option in typing.get_args(part))


def _of_kind(name: str, option: Any, hint: Any) -> Any:
    """An option as the setting's own type: words of the command line are read as what the setting is declared as."""
    kinds, text = _kinds(hint), str(option).strip()
    if types.NoneType in kinds and (option is None or text.lower() == "none"):
        return None
    for literal in _options(hint):
        if str(literal) == text:
            return literal
    if bool in kinds and text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        if kind in kinds and not isinstance(option, bool):
            try:
                return kind(text)
            except ValueError:
                continue
    if isinstance(option, str) and (str in kinds or _options(hint)):  # a word that is none of them is named with the others by `check`
        return text
    kind_text = " or ".join(sorted("none" if k is types.NoneType else getattr(k, "__name__", str(k)) for k in kinds))
    raise UserError(f"--space {name}: {option!r} is no value of this setting", field="--space", remedy=f"it takes {kind_text}")


def size(space: Space) -> int | None:
    """How many different trials there are; None where a range of fractions is among them."""
    if any(isinstance(d, Range) and not d.whole for d in space.values()):
        return None
    return math.prod(len(d.options) if isinstance(d, Choice) else int(d.high) - int(d.low) + 1 for d in space.values())


def grid(space: Space) -> list[Setting]:
    """Every combination, the last name fastest; UserError for a range."""
    for name, d in space.items():
        if isinstance(d, Range):
            remedy = "give choices (rib.tau=0.3,0.4,0.5), or say --search random"
            raise UserError(f"a grid can't hold the range of {name}", field="--space", remedy=remedy)
    return every(space)


def every(space: Space) -> list[Setting]:
    """Every combination of a finite space."""
    values = [d.options if isinstance(d, Choice) else range(int(d.low), int(d.high) + 1) for d in space.values()]
    return [dict(zip(space, combination, strict=True)) for combination in itertools.product(*values)]


def draw(space: Space, trials: int, seed: int, *, fewer: bool = False) -> list[Setting]:
    """Different settings, always the same for a seed: the first n of a longer search are those of a shorter one.

    UserError where there are not so many; with `fewer` as many as there are.
    """
    most = size(space)
    if most is not None and trials > most:
        if not fewer:
            raise too_many(trials, most)
        trials = most
    rng = np.random.default_rng([seed, 0x5EED])
    found: dict[str, Setting] = {}
    for _ in range(DRAWS * trials):  # a range of fractions has as many as its digits: how many is not known before
        setting = {name: d.draw(rng) for name, d in space.items()}
        found.setdefault(setting_id(setting), setting)
        if len(found) >= trials:
            return list(found.values())
    if fewer:
        return list(found.values())
    raise too_many(trials, len(found))


def setting_id(setting: Setting) -> str:
    """Equal for equal settings, in whatever order."""
    return json.dumps(setting, sort_keys=True, default=str)


def too_many(trials: int, most: int) -> UserError:
    return UserError(f"--trials is {trials}, but the grid has {most}", field="--trials", remedy=f"say --trials {most} or less")
