"""What the papers print: the tables of RIB (Lee et al. 2021) and HFPL (Jonnarth et al. 2024), to stand beside ours.

The numbers are the printed ones (`papers_tables/SOURCES.md`); none was computed here.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from seedbed.types import UserError

CLAIMS = "claims"
"""Name of the table of single numbers in prose and captions."""

AS_PRINTED = {
    "cam": ("IRN",),  # IRN's seed is a plain CAM, the one RIB starts from
    "rib": ("RIB",),
    "seam": ("SEAM",),
    "seam+isl": ("SEAM+ISL",),
    "seam+fsl": ("SEAM+FSL",),
    "seam+isl+fsl": ("SEAM+ISL/FSL",),
}
"""Our name of a method -> the papers'."""

SEED_TABLES = ("rib_table1", "rib_table6", "hfpl_table1")
"""Where seeds are scored; RIB's Table 6 adds precision and recall."""
SEED_METRICS = ("seed_mIoU", "precision", "recall", "F1")


@cache
def tables() -> tuple[str, ...]:
    """Names of all tables, e.g. `rib_table1`."""
    return tuple(sorted(f.name.removesuffix(".csv") for f in _folder().iterdir() if f.name.endswith(".csv")))


def rows(table: str, **where: str) -> list[dict[str, Any]]:
    """One table's rows in its own order, only those whose columns have the given texts.

    value and std are numbers, value the printed text where it is none, std None where there is none. A wrong name raises UserError.
    """
    if table not in tables():
        raise UserError(f"there is no table {table!r}", field="table", remedy=f"choose one of {', '.join(tables())}")
    found = [dict(row) for row in _read(table)]
    if found and not where.keys() <= found[0].keys():
        raise ValueError(f"columns are {', '.join(found[0])}")
    return [row for row in found if all(row[column] == text for column, text in where.items())]


def seed_rows_of(dataset: str, methods: Sequence[str]) -> list[dict[str, Any]]:
    """The papers' seed scores of these methods on this dataset: mean IoU, and RIB's precision, recall and F1.

    Of several runs of one method the mean, not the best. Nothing for a dataset that no paper measured, and each value once.
    """
    names = {name for method in methods for name in AS_PRINTED.get(method, ())}
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for table in SEED_TABLES:
        for row in rows(table):
            best_or_quoted = table == "hfpl_table1" and "stat=mean" not in row["note"]
            if row["method"] in names and row["metric"] in SEED_METRICS and _same(dataset, row["dataset"]) and not best_or_quoted:
                found.setdefault((table, row["dataset"], row["split"], row["method"], row["metric"]), row)
    return list(found.values())


LATER_TABLES = {
    "crf": ("rib_table1", ("crf_mIoU",)),
    "mask": ("rib_table1", ("mask_mIoU",)),
    "segmentation": ("rib_table2", ("mIoU",)),
    "segmentation coco": ("rib_table4", ("mIoU",)),
    "segmentation saliency": ("rib_table3", ("mIoU",)),
    "segmentation seam": ("hfpl_table2", ("J", "F", "J_and_F")),
}
"""Scored stage after the seeds -> the table that it is printed in, and its metrics there."""


def later_rows_of(dataset: str, methods: Sequence[str], stages: Sequence[str]) -> list[dict[str, Any]]:
    """The papers' rows of these methods on this dataset at the stages after the seeds: CRF'd seeds, masks, segmentations."""
    names = {name for method in methods for name in AS_PRINTED.get(method, ())}
    names |= {f"{name}-Sal" for name in names}
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for stage, (table, metrics) in LATER_TABLES.items():
        for row in rows(table) if stage.split()[0] in stages else ():
            if row["method"] in names and row["metric"] in metrics and _same(dataset, row["dataset"]) and "best of" not in row["note"]:
                where = (table, row["dataset"], row["split"], row["method"], row["refinement"], row["metric"])
                found.setdefault(where, row)
    return list(found.values())


CLASS_TABLES = {"seed": ("rib_table7",), "segmentation": ("rib_tableS2_voc_per_class", "rib_tableS3_coco_per_class")}
"""Scored stage -> the tables that print single classes of it."""

SHORTENED = {
    "bkg": "background",
    "aero": "aeroplane",
    "bike": "bicycle",
    "table": "diningtable",
    "motor": "motorbike",
    "plant": "pottedplant",
    "tv": "tvmonitor",
}
"""Classes as RIB's appendix prints them -> as VOC names them."""


def class_rows_of(dataset: str, methods: Sequence[str], stages: Sequence[str]) -> list[dict[str, Any]]:
    """The papers' IoU of single classes, of these methods on this dataset (RIB's Tables 7, S2, S3), with VOC's own names of its classes."""
    names = {name for method in methods for name in AS_PRINTED.get(method, ())}
    names |= {f"{name}-Sal" for name in names}
    found = []
    for stage in stages:
        for table in CLASS_TABLES.get(stage, ()):
            for row in rows(table):
                kind, _, name = row["metric"].partition(":")
                if kind == "IoU" and row["method"] in names and _same(dataset, row["dataset"]):
                    name = SHORTENED.get(name, name) if "VOC" in row["dataset"] else name
                    found.append({**row, "metric": f"IoU:{name}", "stage": stage})
    return found


@cache
def _read(table: str) -> tuple[dict[str, Any], ...]:
    with (_folder() / f"{table}.csv").open(encoding="utf-8", newline="") as text:
        return tuple(
            {**row, "value": _number(row["value"]), "std": _number(row["std"]) if row["std"] else None} for row in csv.DictReader(text)
        )


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _same(ours: str, printed: str) -> bool:
    return any(family in ours.lower() and family in printed.lower() for family in ("voc", "coco"))


def _folder() -> Any:
    return files("seedbed") / "papers_tables"
