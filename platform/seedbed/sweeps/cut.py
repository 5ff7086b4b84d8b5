"""What is free in a sweep of RIB: the maps of a smaller margin, or of fewer steps, are cut out of those of a longer run, bit by bit.

The official preset's margin only ends the loop, so every smaller m stands in the log and the snapshots of one run. The paper's preset has
a constant learning rate, so every smaller K does. Neither holds the other way round (docs/sweeps.md).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from seedbed.artefacts import Fragments
from seedbed.artefacts.records import maps_from, maps_record
from seedbed.config import digest
from seedbed.local import ImageWork
from seedbed.methods.maps import snapshot_maps
from seedbed.methods.rib import RibConfig, margin_step
from seedbed.pipeline import Experiment
from seedbed.plan import Plan
from seedbed.types import Maps

FREE = ("margin", "steps")


def free_settings(settings: RibConfig) -> tuple[str, ...]:
    """Of margin and steps those whose smaller values are parts of a run with a larger one."""
    s, found = settings, []
    if s.precision == "bf16":  # sums are then rounded as they grow, snapshots are not
        return ()
    if s.margin_use == "stop" and s.aggregate == "sum":
        found.append("margin")
    if s.schedule == "constant" and (s.aggregate == "sum" or (s.margin_use == "clamp" and not s.area_guard)):
        found.append("steps")
    return tuple(found)


def cut_maps(maps: Maps, settings: RibConfig) -> Maps:
    """What a run with these settings leaves of a picture, from the maps with snapshots of a run that was at least as long.

    Both have all but the free settings in common; snapshots are kept where these settings ask for them.
    """
    s, free = settings, free_settings(settings)
    steps, ended, sums, log = maps.steps, maps.ended, maps.sums, maps.log
    if "steps" in free and (steps > s.steps or (steps == s.steps and ended == "companions")):
        steps, ended = s.steps, "steps"
    if "margin" in free and (passed := margin_step(replace(maps, steps=steps), s.margin)) is not None:
        steps, ended = passed, "margin"
    last = s.aggregate == "normalised"  # the weights after the last step have a map too
    if (steps, ended) != (maps.steps, maps.ended):
        sums = snapshot_maps(maps, steps - 1 + last).sums
        lengths = {"loss": steps if last or s.last_step == "full" else steps - 1, "target_loss": steps, "area_ratio": steps + last}
        log = {name: values[: lengths[name]] for name, values in log.items()}
    kept = maps.snapshots[: max(steps + last, 1)] if s.snapshots and maps.snapshots is not None else None
    return replace(maps, sums=sums, steps=steps, ended=ended, log=log, snapshots=kept)


@dataclass(frozen=True)
class CutWork:
    """Maps cut out of a longer run's; pictures that have none there are made by `own`."""

    light: ClassVar[bool] = True

    source: Path
    """Folder of the longer run's maps."""
    settings: RibConfig
    own: ImageWork
    summary: dict[str, Any]
    """What the manifest says of where they come from."""

    def open(self) -> Callable[[str], dict[str, Any]]:
        records = Fragments(self.source)
        opened: list[Callable[[str], dict[str, Any]]] = []

        def cut(ident: str) -> dict[str, Any]:
            began = time.perf_counter()
            if ident in records:
                return maps_record(cut_maps(maps_from(records[ident]), self.settings), time.perf_counter() - began)
            if not opened:
                opened.append(self.own.open())
            return opened[0](ident)

        return cut


def cutting(experiment: Experiment, source: Plan) -> Callable[[int, ImageWork], ImageWork]:
    """The way to this experiment's maps where those of the longer run are whole, else its own."""

    def work(seed: int, own: ImageWork) -> ImageWork:
        stage = source.maps_stage(experiment.labels[-1], seed)
        return own if stage.manifest is None else CutWork(stage.folder, experiment.rib, own, {"cut_from": stage.key})

    return work


def share_runs(experiments: Sequence[Experiment]) -> list[tuple[Experiment, int | None]]:
    """For each trial its experiment, and the number of the trial that its maps are cut from; None where it runs itself.

    A run that others are cut from keeps the map of every step, whatever its settings say: that alone changes none of its scores.
    """
    taken: list[int | None] = [None] * len(experiments)
    groups: dict[str, list[int]] = {}
    for i, e in enumerate(experiments):
        if e.method == "rib" and (free := free_settings(e.rib)):
            same = {**e.to_dict(only_key=True), "rib": {k: v for k, v in e.rib.to_dict(only_key=True).items() if k not in free}}
            groups.setdefault(digest({**same, "free": free}), []).append(i)
    for members in groups.values():
        sources: list[int] = []
        for i in sorted(members, key=lambda i: _length(experiments[i]), reverse=True):
            taken[i] = next((s for s in sources if all(map(_at_least, _length(experiments[s]), _length(experiments[i])))), None)
            if taken[i] is None:
                sources.append(i)
    needed = {s for s in taken if s is not None}
    return [(e.replace(**{"rib.snapshots": True}) if i in needed else e, taken[i]) for i, e in enumerate(experiments)]


def _length(experiment: Experiment) -> tuple[float, ...]:
    """Margin and steps, where they are free; else no reason to prefer one."""
    return tuple(float(getattr(experiment.rib, name)) if name in free_settings(experiment.rib) else 0.0 for name in FREE)


def _at_least(a: float, b: float) -> bool:
    return a >= b
