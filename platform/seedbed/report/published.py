"""The papers' printed rows, made ready to stand beside ours: which stage they belong to, under what protocol, and with which doubts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

PAPERS = {"rib": "Lee et al. 2021 (RIB)", "hfpl": "Jonnarth et al. 2024 (HFPL)"}

STAGE_OF = {"seed_mIoU": ("seed", "mIoU"), "crf_mIoU": ("crf", "mIoU"), "mask_mIoU": ("mask", "mIoU")}
"""Metrics whose name says the stage; the others are those of the table they stand in."""

TABLE_STAGE = {"rib_table6": "seed"}
"""Tables of bare metrics that do not measure segmentations."""

SKIPPED = ("IoU:", "F:", "hparam:", "count:", "delta_", "rel_delta_")
"""Metrics that no row of a table of ours has."""

IMAGES = {"train": "1,464", "val": "1,449", "test": "1,456"}

OWN = {"rib": "absent classes skip; weights ImageNet", "hfpl": "absent classes zero; weights ImageNet"}
"""What is known of the numbers that a paper's authors produced themselves; a quoted number keeps its own, often unsaid, protocol."""

THRESHOLDS = {
    "rib": "threshold oracle (grid 0.20 to 0.49, value not printed)",
    "hfpl": "threshold oracle (grid 0 to 0.59, value not printed)",
}
"""Of their seeds; what comes after has none that is chosen with the masks scored."""

DOUBTS: dict[str, tuple[str, ...]] = {
    "rib_table1": (
        "RIB's Table 1 prints the seeds of RIB and AdvCAM twice, once for each refinement; the dagger marks of its COCO rows are lost "
        "in the web text.",
    ),
    "rib_table2": (
        "RIB's section 4.2.2 calls CONTA (66.1 on val) the best competitor, but its Table 2 lists RRM with 66.3; CONTA leads on test only.",
        "RIB's appendix A.1 says that 67.83 without re-training is ahead of all of Table 2; the box-supervised BBAM (73.7) and "
        "Song et al. (70.2) are higher.",
    ),
    "rib_table4": ("IRN's classes in RIB's Table S3 average 41.49, printed as 41.4; from the classes the gain of RIB is 2.27, not 2.4.",),
    "rib_table6": (
        "RIB's Table 6 does not say which stage it measures; the prose speaks of localization maps. F1 is the harmonic mean of the "
        "averages printed.",
    ),
    "rib_tableS1": ("RIB's Table S1 does not print its split; train is inferred from Table 1.",),
    "rib_tableS2": (
        "In RIB's Table S2 the test row of SSDD repeats its val row in all 22 values; HFPL's Table 7 gives 65.5 on test.",
        "In RIB's Table S2 the test classes of FickleNet average 65.00, printed as 65.3; the val classes of BBAM 73.64, printed as 73.7.",
    ),
    "rib_tableS3": ("IRN's classes in RIB's Table S3 average 41.49, printed as 41.4; from the classes the gain of RIB is 2.27, not 2.4.",),
    "hfpl_table3": ("HFPL's text says five runs for every deviation, the caption of its Table 3 says three.",),
    "hfpl_table4": (
        "HFPL's section 5.5 gives a range of 40 to 61 over five runs, but its Table 4 prints a deviation of 13; 12.1 is the most possible.",
    ),
    "hfpl_table6": (
        "HFPL's section S.2 prints a gain in F of +1.0 for ISL alone; its Table 6 gives 1.11.",
        "The check marks of HFPL's Table 6 are lost in the web text: ISL alone and FSL alone are told by the order of its rows.",
    ),
    "hfpl_table7": ("HFPL's section S.2 leaves out methods with saliency, yet its Table 7 lists CIAN and MCIS.",),
    "hfpl_table8": ("HFPL marks COCO-pretrained weights for SIPE Res101 only; its Table 8 uses the same weights for Spatial-BCE Res101.",),
}
"""Where a table contradicts its paper or another table, or does not say what it measures; printed as footnotes."""


@dataclass
class PaperRow:
    """One method of one paper at one stage, its metrics gathered from all tables of that paper."""

    paper: str
    method: str
    stage: str
    dataset: str
    split: str
    refinement: str
    values: dict[str, tuple[float, float | None]] = field(default_factory=dict)
    """Metric -> (value, std or None), as printed."""
    tables: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    quoted: bool = False
    protocol: str = ""

    @property
    def label(self) -> str:
        if self.stage == "seed" and self.method == "IRN":
            return "IRN's CAM"
        return self.method + (f" + {self.refinement}" if self.refinement and self.refinement != self.method else "")

    @property
    def place(self) -> str:
        """`RIB, Tables 1 and 6`."""
        numbers = [t.partition("_table")[2].split("_")[0] for t in self.tables]
        return f"{self.paper.upper()}, Table{'s' if len(numbers) > 1 else ''} {' and '.join(numbers)}"


def paper_rows(rows: Iterable[Mapping[str, Any]], dataset: str = "") -> list[PaperRow]:
    """Rows of the CSV tables gathered by method and stage; of several datasets only ours, where it is among them."""
    rows = [r for r in rows if _number(r.get("value")) is not None and not str(r.get("metric", "")).startswith(SKIPPED)]
    same = [r for r in rows if _family(str(r.get("dataset", ""))) == _family(dataset)]
    gathered: dict[tuple[str, ...], PaperRow] = {}
    for row in same or rows:
        table, metric = str(row.get("table", "")), str(row["metric"])
        stage, metric = STAGE_OF.get(metric) or (TABLE_STAGE.get(table, "segmentation"), "mIoU" if metric == "J" else metric)
        paper = table.partition("_")[0]
        where = (str(row.get("dataset") or ""), str(row.get("split") or ""), str(row.get("refinement") or ""))
        entry = gathered.setdefault((paper, stage, str(row["method"]), *where), PaperRow(paper, str(row["method"]), stage, *where))
        entry.values.setdefault(metric, (float(row["value"]), _number(row.get("std"))))
        if table not in entry.tables:
            entry.tables.append(table)
        note = str(row.get("note") or "")
        if ("SUSPECT" in note or "INCONSISTENT" in note) and note not in entry.notes:
            entry.notes.append(note)
        entry.quoted = row.get("source") == "reported" and (paper != "rib" or entry.method != "RIB")
        entry.protocol = str(row.get("protocol") or "") or _protocol(entry)
    return sorted(gathered.values(), key=lambda row: row.method != "IRN")  # its seed is the plain CAM: first, as ours is


def doubts(rows: Sequence[PaperRow], others: Iterable[str] = ()) -> dict[str, tuple[str, ...]]:
    """Table -> footnotes, for the tables that are shown: those of the rows, and `others`."""
    shown = {t: t.split("_voc")[0].split("_coco")[0] for t in [*(t for row in rows for t in row.tables), *others]}
    found = {table: DOUBTS.get(key, ()) for table, key in shown.items()}
    for row in rows:
        found[row.tables[0]] = (*found[row.tables[0]], *row.notes)
    return {table: notes for table, notes in found.items() if notes}


def _protocol(row: PaperRow) -> str:
    images = IMAGES.get(row.split, "") if _family(row.dataset) == "voc" else ""
    words = [f"{row.dataset} {row.split}" + (f", {images} images" if images else "")]
    if row.quoted:
        words.append("quoted there; threshold, absent classes and weights not stated")
    else:
        words += [THRESHOLDS[row.paper]] if row.stage in ("seed", "crf") and row.paper in THRESHOLDS else []
        words.append(OWN.get(row.paper, "protocol not known"))
    return "; ".join(words)


def _family(dataset: str) -> str:
    name = dataset.lower()
    return next((family for family in ("voc", "coco") if family in name), name)


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
