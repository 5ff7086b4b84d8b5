"""A method without and with ISL, FSL and both: the shape of HFPL's Table 6 (Jonnarth et al. 2024), for the methods that are here."""

from __future__ import annotations

from collections.abc import Callable

from seedbed.pipeline import Experiment
from seedbed.sweeps.tables import Line, PaperTable, TableOf

CHOICES = {"isl": ("isl",), "fsl": ("fsl",), "isl+fsl": ("isl", "fsl")}


def _of(method: str) -> Callable[[Experiment], PaperTable]:
    def table(base: Experiment) -> PaperTable:
        name = method.upper()
        return PaperTable(
            name=method,
            title=f"{name} without and with ISL and FSL (the shape of HFPL's Table 6)",
            lines=(
                Line(name, None, method, default=True),
                *(Line(f"{name}+{label.upper()}", {"addons": addons}) for label, addons in CHOICES.items()),
            ),
            metrics=("mIoU", "F", "J_and_F"),
            base={"addons": ()},
            fixed={"method": method},
            note="the paper's Table 6 prints final segmentations on VOC val; these are seeds",
        )

    return table


ADDON_TABLES: dict[str, TableOf] = {method: _of(method) for method in ("cam", "seam")}
