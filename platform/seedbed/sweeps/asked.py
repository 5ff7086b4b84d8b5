"""What was asked for: the table with its stage and split; and what is refused because it would be ignored, or would vary nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from seedbed.addons import ADDONS
from seedbed.pipeline import UNTIL, Experiment
from seedbed.sweeps import tables
from seedbed.sweeps.settings import Sweep
from seedbed.sweeps.space import Choice, Setting, Space, draw, grid, setting_id, size, too_many
from seedbed.sweeps.tables import PaperTable, TableOf
from seedbed.sweeps.trials import scored_split
from seedbed.types import UserError

OWNERS = (*ADDONS, "rib", "seam")
"""What the flags of add-ons and methods begin with."""
PROBES = 64
"""Settings of an optimizer's search, which is not known before, that are looked at."""


def chosen_table(sweep: Sweep, table_of: Mapping[str, TableOf]) -> PaperTable:
    """The paper's, or a plain one for a grid of the user's own; of a search its stage and split alone."""
    found = _table_or_grid(sweep, table_of)
    if sweep.stop != "none" and found.stage != "seed":
        message = f"trials are stopped early by their seeds, and these are scored by the {found.stage}"
        raise UserError(message, field="--stop", remedy="say --stop none, or search with --until seed")
    return found


def base_of(sweep: Sweep, table: PaperTable) -> Sweep:
    """What all trials are changed from."""
    split = {"data.score_split": table.split} if table.split and table.stage != "segmentation" else {}
    return sweep.replace(**{"until": table.stage, "baseline": "seed", **split, **table.fixed})


def _table_or_grid(sweep: Sweep, table_of: Mapping[str, TableOf]) -> PaperTable:
    if sweep.table:
        found = tables.named(table_of, sweep.table, sweep)
        if found.methods and sweep.method not in found.methods:
            message = f"table {found.name} is about {' and '.join(found.methods)}, not about {sweep.method}"
            remedy = f"say --method {found.methods[0]}, or leave --table out and name what varies with --space"
            raise UserError(message, field="--method", remedy=remedy)
        return found if sweep.search == "grid" else replace(found, name="", title=f"{found.title}, {sweep.search} search", lines=())
    if sweep.until == "maps" and (sweep.search == "optuna" or sweep.stop != "none"):
        raise UserError("maps have no score to go by", field="--until", remedy="say --until seed")
    base = {"method": "cam"} if sweep.method == "rib" else {}
    return PaperTable(name="", title=f"{sweep.search} search", lines=(), stage=sweep.until, split=scored_split(sweep), base=base)


def chosen_settings(sweep: Sweep, table: PaperTable, space: Space) -> list[Setting]:
    """Of the trials, as far as they are known before any has run."""
    if sweep.search == "random":
        return draw(space, sweep.trials, sweep.seed)
    most: int | None
    found: list[Setting]
    if sweep.search == "optuna":
        most, found = size(space), []
    else:
        found = table.settings if table.lines else grid(space)
        most = len(found)
    if most is not None and sweep.trials > most:
        raise too_many(sweep.trials, most)
    return found[: sweep.trials or None]


# --- what a table would ignore --------------------------------------------------------------------------


def said_flags(arguments: Sequence[str], known: Iterable[str]) -> tuple[str, ...]:
    """The settings that a command line names, whatever it says of them."""
    found, known = [], set(known)
    for word in arguments:
        if word.startswith("--"):
            name = word[2:].partition("=")[0].replace("-", "_")
            above, dot, last = name.rpartition(".")
            found.append(name if name in known else f"{above}{dot}{last.removeprefix('no_')}")
    return tuple(name for name in dict.fromkeys(found) if name in known)


def refuse_ignored(sweep: Sweep, table: PaperTable, trials: Sequence[Experiment], said: Iterable[str]) -> None:
    """UserError for a flag that no trial follows, because the table sets another value in all of them."""
    wanted, have = sweep.flat(), [e.flat() for e in trials]
    for name in said:
        if have and not any(_same(flat[name], wanted[name]) for flat in have):
            flag = f"--{name.replace('_', '-')}"
            values = " or ".join(dict.fromkeys(_words(flat[name]) for flat in have))
            what = f"table {table.name or sweep.table}" if sweep.table else "a sweep"
            message = f"{what} sets {flag} to {values} in all its trials, and would ignore {_words(wanted[name])}"
            remedy = f"leave {flag} out" + (", or leave --table out and name what varies with --space" if sweep.table else "")
            raise UserError(message, field=flag, remedy=remedy)


def refuse_idle(sweep: Sweep, said: Iterable[str], keys_of: Callable[[Sweep], Sequence[str]]) -> None:
    """UserError for a flag of an add-on or a method that changes nothing: no trial has it, or the table sets it in all that do.

    keys_of: of a sweep, the keys of all its trials and of what they share.
    """
    plain, flat = type(sweep)().flat(), sweep.flat()
    for name in said:
        owner, _, last = name.partition(".")
        if owner not in OWNERS or last not in getattr(sweep, owner).to_dict(only_key=True) or _same(flat[name], plain[name]):
            continue
        if keys_of(sweep) == keys_of(sweep.replace(**{name: plain[name]})):
            flag = f"--{name.replace('_', '-')}"
            message = f"{flag} {_words(flat[name])} changes none of these trials: they do not use it, or have values of their own"
            raise UserError(message, field=flag, remedy="leave it out, or choose what uses it")


def _same(a: Any, b: Any) -> bool:
    return a == b or (isinstance(a, float) and isinstance(b, int | float) and math.isclose(a, b, rel_tol=1e-5))


def _words(value: Any) -> str:
    return (" ".join(map(str, value)) or "none") if isinstance(value, list) else str(value)


# --- what would vary nothing ----------------------------------------------------------------------------


def probes(space: Space) -> list[Setting]:
    """Settings that an optimizer may choose."""
    return draw(space, PROBES, 0, fewer=True) if space else []


def refuse_unused(base: Experiment, space: Space, settings: Sequence[Setting], key_of: Callable[[Setting], str]) -> None:
    """UserError for a name of the space that changes the key of no trial: it would be shown as if it had an effect.

    A setting that some of the trials use is fine: the others share a trial. `settings`: the trials, as far as they are known.
    """
    settings = settings or probes(space)
    found: dict[str, str | None] = {}

    def key(setting: Setting) -> str | None:
        """None: it can't work at all."""
        ident = setting_id(setting)
        if ident not in found:
            try:
                base.replace(**setting).check()
                found[ident] = key_of(setting)
            except UserError:
                found[ident] = None
        return found[ident]

    for name, dimension in space.items():
        values = dimension.options if isinstance(dimension, Choice) else (dimension.low, dimension.high)
        now = base.flat()[name]
        others = values if len(values) > 1 else tuple(v for v in (now,) if v != values[0])
        work = [s for s in settings if key(s) is not None] if others else []
        if work and not any(key(s) != key({**s, name: value}) for s in work for value in others):
            message = f"--space varies {name}, which nothing in these trials uses"
            raise UserError(message, field="--space", remedy=_what_uses(name, base))


def _what_uses(name: str, base: Experiment) -> str:
    owner = name.partition(".")[0]
    if owner in ADDONS and owner not in base.addons:
        return f"say --addons {' '.join((*base.addons, owner))}"
    if owner in ("rib", "seam") and base.method != owner:
        return f"say --method {owner}"
    stage = {"refine": "mask", "segmenter": "segmentation"}.get(owner, "maps")
    if UNTIL.index(base.until) < UNTIL.index(stage):
        return f"say --until {stage}"
    return "leave it out of --space, or choose what uses it"
