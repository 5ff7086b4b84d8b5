"""The papers' numbers, checked against what the papers themselves say of them."""

from __future__ import annotations

import csv
import os
import statistics
from pathlib import Path

import pytest

from seedbed.metrics.region import harmonic_mean
from seedbed.papers import class_rows_of, later_rows_of, rows, seed_rows_of, tables
from seedbed.types import UserError

SHARED = Path(os.environ.get("SEEDBED_SHARED", Path(__file__).resolve().parents[2] / "shared"))

COLUMNS = ["table", "dataset", "split", "method", "backbone", "refinement", "supervision", "metric", "value", "std", "source", "note"]


def test_all_tables_of_both_papers_are_there() -> None:
    expected = {f"rib_table{n}" for n in ("1", "2", "3", "4", "5a", "5b", "5c", "6", "7", "S1", "S2_voc_per_class", "S3_coco_per_class")}
    expected |= {f"hfpl_table{n}" for n in range(1, 9)} | {"claims"}
    assert set(tables()) == expected


@pytest.mark.parametrize("table", tables())
def test_every_row_is_whole(table: str) -> None:
    found = rows(table)
    assert found and all(list(row) == COLUMNS for row in found)
    assert all(isinstance(row["value"], float) for row in found) or table in ("hfpl_table8", "claims")
    assert all(row["std"] is None or row["std"] > 0 for row in found)
    assert table == "claims" or all(table.startswith(row["table"]) for row in found)
    assert {row["source"] for row in found} <= {"reported", "reproduced"}


@pytest.mark.parametrize("table", tables())
def test_they_are_the_numbers_that_were_handed_over(table: str) -> None:
    path = SHARED / "papers" / "tables" / f"{table}.csv"
    if not path.exists():
        pytest.skip(f"no {path} (set SEEDBED_SHARED)")
    with path.open(encoding="utf-8", newline="") as text:
        theirs = list(csv.DictReader(text))
    for mine, their in zip(rows(table), theirs, strict=True):
        assert all(mine[c] == their[c] for c in COLUMNS if c not in ("value", "std"))
        assert str(mine["value"]) == their["value"] or mine["value"] == float(their["value"])


def test_table_6_has_the_harmonic_means_of_its_averages() -> None:
    for method in ("IRN", "Chang et al.", "SEAM", "RIB"):
        value = {row["metric"]: row["value"] for row in rows("rib_table6", method=method)}
        assert harmonic_mean(value["precision"], value["recall"]) == pytest.approx(value["F1"], abs=0.1)


def test_classes_of_rib_average_to_its_score() -> None:
    val = rows("rib_tableS2_voc_per_class", method="RIB", split="val")
    classes = [row["value"] for row in val if row["metric"].startswith("IoU:")]
    assert len(classes) == 21 and statistics.fmean(classes) == pytest.approx(
        rows("rib_table2", method="RIB", split="val")[0]["value"], abs=0.1
    )


def test_seed_rows_that_stand_beside_ours() -> None:
    found = seed_rows_of("PASCAL VOC 2012", ["cam", "rib"])
    table = {(row["method"], row["metric"]): row["value"] for row in found}
    assert table["IRN", "seed_mIoU"] == 48.8 and table["RIB", "seed_mIoU"] == 56.5 and table["RIB", "F1"] == 72.6
    assert len(found) == len(table) == 8, "RIB's Table 1 prints RIB twice"
    assert all(row["split"] == "train" and row["table"] in ("rib_table1", "rib_table6") for row in found)
    assert {row["method"] for row in seed_rows_of("voc2012", ["rib"])} == {"RIB"}
    assert {row["value"] for row in seed_rows_of("MS COCO 2014", ["cam", "rib"])} == {33.5, 36.5}


def test_runs_are_told_by_their_mean_not_by_their_best() -> None:
    hfpl = [row for row in seed_rows_of("voc", ["seam", "seam+isl+fsl"]) if row["table"] == "hfpl_table1"]
    assert [(row["method"], row["value"], row["std"]) for row in hfpl] == [("SEAM", 55.0, 0.4), ("SEAM+ISL/FSL", 60.6, 0.3)]


def test_no_paper_measured_made_pictures() -> None:
    assert seed_rows_of("shapes", ["cam", "rib"]) == [] and seed_rows_of("voc2012", ["whole_picture"]) == []


def test_rows_cannot_be_changed_for_others() -> None:
    rows("rib_table1")[0]["value"] = -1
    assert rows("rib_table1")[0]["value"] > 0


def test_wrong_names() -> None:
    with pytest.raises(UserError, match="rib_table9") as error:
        rows("rib_table9")
    assert "rib_table1" in error.value.remedy
    with pytest.raises(ValueError, match="columns"):
        rows("rib_table1", place="train")


def test_rows_of_the_later_stages() -> None:
    found = {
        (r["metric"], r["split"], r["method"], r["refinement"]): r["value"]
        for r in later_rows_of("voc2012", ["cam", "rib"], ["crf", "mask"])
    }
    assert found[("crf_mIoU", "train", "RIB", "CRF")] == 62.9 and found[("mask_mIoU", "train", "RIB", "IRN")] == 70.6
    assert found[("mask_mIoU", "train", "RIB", "PSA")] == 68.6 and found[("mask_mIoU", "train", "IRN", "IRN")] == 66.3
    segmented = {(r["table"], r["split"], r["method"]): r["value"] for r in later_rows_of("voc2012", ["rib"], ["segmentation"])}
    assert segmented[("rib_table2", "val", "RIB")] == 68.3 and segmented[("rib_table3", "val", "RIB-Sal")] == 70.2
    assert {r["value"] for r in later_rows_of("MS COCO 2014", ["rib"], ["segmentation"])} == {43.8}
    assert later_rows_of("shapes", ["rib"], ["mask"]) == [] and later_rows_of("voc2012", ["rib"], ["seed"]) == []


def test_single_classes_under_vocs_names() -> None:
    """RIB's Tables 7 (seeds) and S2 (segmentations); the shortened names of the appendix are those of the devkit."""
    boats = {
        (r["table"], r["split"], r["method"]): r["value"]
        for r in class_rows_of("voc2012", ["rib"], ["seed", "segmentation"])
        if r["metric"] == "IoU:boat"
    }
    assert boats["rib_table7", "train", "RIB"] == 38.8 and boats["rib_tableS2", "val", "RIB"] == 64.9
    val = {r["metric"] for r in class_rows_of("voc2012", ["rib"], ["segmentation"]) if r["split"] == "val" and r["method"] == "RIB"}
    assert {"IoU:background", "IoU:aeroplane", "IoU:diningtable", "IoU:tvmonitor"} <= val and len(val) == 21
    assert len({r["metric"] for r in class_rows_of("coco2014", ["rib"], ["segmentation"])}) == 81
    assert class_rows_of("shapes", ["rib"], ["seed", "segmentation"]) == []
