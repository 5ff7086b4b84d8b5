"""Tables and report from made-up studies: no network, no store, no pipeline."""

from __future__ import annotations

import dataclasses
import html
import io
import itertools
import re
import statistics
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seedbed import papers
from seedbed.report import (
    Panel,
    StageSummary,
    StudyResult,
    drawing,
    figures,
    pictures,
    published,
    reading,
    sections,
    summary,
    write_report,
    write_tables,
)

CLASSES = ("bird", "cat", "cow", "dog", "horse", "sheep")
PALETTE = [(0, 0, 0), (128, 128, 0), (64, 0, 0), (64, 128, 0), (64, 0, 128), (192, 0, 128), (128, 64, 0)]
SCORES = {
    "cam": {"mIoU": 42.7, "F": 31.9, "precision": 51.8, "recall": 70.4},
    "rib": {"mIoU": 46.0, "F": 33.1, "precision": 60.9, "recall": 65.2},
    "whole_picture": {"mIoU": 10.7, "F": 8.1, "precision": 14.2, "recall": 50.0},
    "centred_box": {"mIoU": 26.6, "F": 15.5, "precision": 38.7, "recall": 51.3},
}
PAPER_ROWS = [
    {"table": table, "dataset": "PASCAL VOC 2012", "split": "train", "method": method, "refinement": "", "metric": metric, "value": value,
     "std": "", "source": "reported", "note": ""}
    for table, method, metric, value in (
        ("rib_table1", "IRN", "seed_mIoU", "48.8"), ("rib_table1", "RIB", "seed_mIoU", "56.5"),
        ("rib_table6", "IRN", "precision", "66.0"), ("rib_table6", "IRN", "recall", "66.4"), ("rib_table6", "IRN", "F1", "66.2"),
        ("rib_table6", "RIB", "precision", "67.3"), ("rib_table6", "RIB", "recall", "78.9"), ("rib_table6", "RIB", "F1", "72.6"),
    )
]  # fmt: skip


def protocol(method: str, seed: int, threshold: float) -> dict[str, Any]:
    bare = method not in ("cam", "rib")
    return {
        "dataset": "voc2012", "split": "train", "images": 437, "subset": True,
        "initial_weights": "none", "network": not bare, "from_scratch": not bare, "scales": [1.0, 0.5, 1.5, 2.0], "flip": True, "crf": None,
        "threshold": {"value": None, "source": "fixed"} if bare else {"value": threshold, "source": "oracle"},
        "labels": {"source": "annotations", "oracle": False}, "contour_tolerance": 0.008, "absent_classes": "truth",
        "classes": ["background", *CLASSES], "settings_key": f"{len(method):08x}{seed:08x}", "git": "3b4909c",
    }  # fmt: skip


def score_rows(seeds: int = 3, thresholds: dict[str, float] | None = None, scores: dict[str, dict[str, float]] | None = None) -> list[dict]:
    rng, rows = np.random.default_rng(5), []
    thresholds = thresholds or {"cam": 0.28, "rib": 0.31}
    for method, values in (scores or SCORES).items():
        gain = {name: 4 + rng.normal(0, 6) for name in ("background", *CLASSES)}
        for seed in range(seeds if method in ("cam", "rib") else 1):
            record = protocol(method, seed, thresholds.get(method, 0.0) + 0.01 * (seed % 2) * (thresholds.get(method, 0.0) < 0.45))
            moved = {
                m: v + (0 if method not in ("cam", "rib") else rng.normal(0, 2.5 if method == "rib" else 0.5)) for m, v in values.items()
            }
            moved["J_and_F"] = (moved["mIoU"] + moved["F"]) / 2
            moved["F1"] = 2 * moved["precision"] * moved["recall"] / (moved["precision"] + moved["recall"])
            for name in ("background", *CLASSES):
                base = 78.0 if name == "background" else 20 + 5 * len(name)
                moved[f"IoU:{name}"] = base + (gain[name] if method == "rib" else 0) + rng.normal(0, 1)
                if name != "background":
                    moved[f"F:{name}"] = 0.7 * moved[f"IoU:{name}"]
            rows += [
                {"stage": "seed", "method": method, "split": "train", "seed": seed, "metric": m, "value": float(v), "protocol": record}
                for m, v in moved.items()
            ]
    for seed in range(seeds):
        record = {**protocol("cam", seed, 0.0), "split": "val", "images": 445}
        rows.append(
            {
                "stage": "classifier",
                "method": "cam",
                "split": "val",
                "seed": seed,
                "metric": "mAP",
                "value": 91.0 + seed,
                "protocol": record,
            }
        )
    return rows


def made_panel(index: int, height: int, width: int) -> Panel:
    """A picture of two soft animals-to-be on a textured ground, with maps that spread from head to body over k."""
    rng = np.random.default_rng(index)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    waves = 0.5 + 0.18 * np.sin(9 * x + 5 * y + index) + 0.1 * np.sin(31 * y - 11 * x * (index % 3)) + rng.normal(0, 0.03, x.shape)
    hue = np.array([[0.55, 0.72, 0.42], [0.62, 0.66, 0.75], [0.78, 0.70, 0.52]][index % 3])
    picture, truth = waves[..., None] * hue * 1.3, np.zeros((height, width), np.uint8)
    heads, bodies = np.zeros_like(x), np.zeros_like(x)
    for j in range(1 + index % 2):
        cy, cx, r, tilt = rng.uniform(0.3, 0.45), rng.uniform(0.3, 0.4) + 0.34 * j, rng.uniform(0.18, 0.27), rng.uniform(-0.6, 0.6)
        u, v = (x - cx) * np.cos(tilt) + (y - cy) * np.sin(tilt), (y - cy) * np.cos(tilt) - (x - cx) * np.sin(tilt)
        body, head = (u / r) ** 2 + (v / (0.6 * r)) ** 2, ((u - 0.9 * r) ** 2 + (v + 0.35 * r) ** 2) / (0.42 * r) ** 2
        inside = (body < 1) | (head < 1)
        colour = np.array([0.75, 0.45, 0.25]) if j == 0 else np.array([0.35, 0.35, 0.4])
        picture = np.where(inside[..., None], colour * (0.8 + 0.5 * waves[..., None] * (1 + 0.4 * np.sin(60 * u)[..., None])), picture)
        edge = (np.minimum(body, head) < 1.12) & ~inside
        truth[edge], truth[inside] = 255, 1 + (index + 2 * j) % len(CLASSES)
        heads, bodies = np.maximum(heads, np.exp(-head)), np.maximum(bodies, np.exp(-0.9 * body**2))
    noise = np.clip(rng.normal(0.03, 0.02, (height // 16 + 1, width // 16 + 1)), 0, 1).repeat(16, 0).repeat(16, 1)[:height, :width]
    share = {"CAM": 0.15, "RIB k=0": 0.15, "RIB k=3": 0.45, "RIB k=6": 0.65, "RIB k=9": 0.8}
    maps = {name: np.clip(np.maximum(heads, s * bodies) * 0.97 + noise, 0, 1) for name, s in share.items()}
    lead = int(truth[(truth > 0) & (truth < 255)][0])
    seeds = {"CAM": np.where(maps["CAM"] > 0.28, lead, 0), "RIB": np.where(maps["RIB k=9"] > 0.31, lead, 0)}
    return Panel(
        f"made_{index:06d}", (np.clip(picture, 0, 1) * 255).astype(np.uint8), truth if index != 5 else None, maps,
        {name: value.astype(np.uint8) for name, value in seeds.items()},
    )  # fmt: skip


def made_study(seeds: int = 3, panels: int = 8, size: tuple[int, int] = (150, 200), **changes: Any) -> StudyResult:
    grid = np.round(np.arange(0.20, 0.495, 0.01), 2)
    curves = {
        m: {"thresholds": grid.tolist(), "mIoU": (SCORES[m]["mIoU"] - 320 * (grid - best) ** 2).tolist(), "std": [0.6] * len(grid)}
        for m, best in (("cam", 0.28), ("rib", 0.31))
    }
    steps = {"k": range(11), "mIoU": [42.7, 43.5, 44.2, 44.7, 45.1, 45.4, 45.6, 45.8, 45.9, 46.0, 46.0]}
    experiment = SimpleNamespace(
        name="voc_rib",
        flat=lambda: {"seed": 0, "seeds": seeds, "data.store": "voc.store", "data.train_split": "trainaug", "data.score_split": "train",
                      "classifier.backbone": "resnet18", "classifier.weights": "none", "classifier.epochs": 12, "classifier.lr": 0.02,
                      "cam.scales": [1.0, 0.5, 1.5, 2.0], "rib.margin": 600, "rib.lr": 8e-6, "rib.tau": 0.4, "rib.steps": 10,
                      "rib.batch": 20, "rib.preset": "official", "run.actors": 2, "run.device": "auto"},
    )  # fmt: skip
    lost = [{"id": "2008_000123", "reason": "VOC2012/JPEGImages/2008_000123.jpg is truncated (31,201 of 87,110 bytes decoded)"}]
    values: dict[str, Any] = {
        "experiment": experiment,
        "rows": score_rows(seeds),
        "curves": curves,
        "over_k": {"rib": [{"k": k, "mIoU": v, "threshold": 0.28 + 0.003 * k} for k, v in zip(*steps.values(), strict=True)]},
        "ends": {"rib": {"margin": {2: 3, 3: 9, 4: 14, 5: 11, 6: 8}, "area": {2: 4, 3: 6, 5: 2}, "steps": {10: 352},
                         "companions": {7: 20, 8: 8}}},
        "panels": [made_panel(i, *size) for i in range(panels)],
        "stages": [
            StageSummary("classifier 0", "0f3a9c1177e2b4d8", 1, 1, 412.0, digest="9c" * 32),
            StageSummary("maps cam 0", "51c07fd2a3be6690", 437, 437, 96.4, digest="a1" * 32),
            StageSummary("maps rib 0", "be11a02c5d9f3e74", 436, 120, 512.7, lost, digest="77" * 32),
            StageSummary("seeds rib 0", "d2d2109be8f34a61", 436, 436, 21.9, digest="e4" * 32),
        ],
        "provenance": {
            "command": ["experiments/voc_rib.py", "--smoke", "--seed", "0"], "key": "5b1d0e77c2f94a38",
            "started": "2026-03-01T10:12:31+00:00", "seconds": 1043.2, "status": 0,
            "git": {"commit": "3b4909c8bd0d2f4c8dcc38b1bd5f77c9a4b2a0aa", "dirty": False},
            "versions": {"python": "3.11.9", "seedbed": "0.1.0", "torch": "2.13.0", "numpy": "2.3.1", "ray": "2.60.0", "mlflow": "3.17.0"},
            "hardware": {"cpu": "AMD EPYC 9R14", "cores": 2, "memory_gib": 7.6, "gpus": []},
            "settings": {"rib": {"tau": 0.4}},
        },
        "paper_rows": PAPER_ROWS, "classes": CLASSES, "palette": PALETTE,
    }  # fmt: skip
    return StudyResult(**{**values, **changes})


FEW: dict[str, Any] = {"curves": {}, "over_k": {}}
"""Fewer figures to draw, where they are not what a test looks at."""


@pytest.fixture(scope="module")
def study() -> StudyResult:
    return made_study()


@pytest.fixture(scope="module")
def page(study: StudyResult, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("report")
    assert write_report(out, study) == out / "report.html"
    return (out / "report.html").read_text(encoding="utf-8")


def terminal(study: StudyResult, width: int = 80, **more: Any) -> str:
    stream = io.StringIO()
    write_tables(study, stream=stream, width=width, **more)
    return stream.getvalue()


# --- what is said about the numbers ------------------------------------------------------------------


def test_mean_and_spread_are_of_the_repetitions(study: StudyResult) -> None:
    values = [r["value"] for r in study.rows if (r["method"], r["metric"]) == ("rib", "mIoU")]
    row = next(r for r in summary.tables(study)[0].rows if r.label == "RIB")
    assert row.values["mIoU"].mean == pytest.approx(statistics.fmean(values))
    assert row.values["mIoU"].std == pytest.approx(statistics.stdev(values))


def test_rows_of_mean_and_std_are_not_repetitions(study: StudyResult) -> None:
    extra = [{**r, "seed": seed, "value": value} for r in study.rows for seed, value in (("mean", 99.0), ("std", 50.0))]
    assert summary.tables(made_study(rows=[*study.rows, *extra])) == summary.tables(study)


@given(st.dictionaries(st.integers(0, 9), st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=2))
def test_the_difference_is_paired(values: dict[int, tuple[float, float]]) -> None:
    """Its spread is that of the differences: a shift that all repetitions share leaves it alone."""

    def row(label: str, runs: dict[int, float]) -> summary.Row:
        return summary.Row(label, "method", {"mIoU": summary.Value(statistics.fmean(runs.values()), 0.0, runs)})

    rib, cam = row("RIB", {s: b for s, (_, b) in values.items()}), row("CAM", {s: a for s, (a, _) in values.items()})
    apart = summary.difference(rib, cam).values["mIoU"]
    assert apart.mean == pytest.approx(rib.values["mIoU"].mean - cam.values["mIoU"].mean, abs=1e-9)
    assert apart.std == pytest.approx(statistics.stdev(b - a for a, b in values.values()), abs=1e-9)


def test_repetitions_that_do_not_match_have_no_paired_spread() -> None:
    rib = summary.Row("RIB", "method", {"mIoU": summary.Value(50.0, 1.0, {0: 49.0, 1: 51.0})})
    cam = summary.Row("CAM", "method", {"mIoU": summary.Value(45.0, None, {0: 45.0})})
    apart = summary.difference(rib, cam).values["mIoU"]
    assert apart.mean == 5.0 and apart.std is None and not apart.runs


def test_headline_says_what_the_repetitions_settle() -> None:
    rows = [r for r in score_rows() if (r["method"], r["metric"]) not in (("cam", "mIoU"), ("rib", "mIoU"))]
    for gains, settled in (((3.0, 3.1, 2.9), True), ((-4.0, 9.0, 1.0), False)):
        more = [
            {"stage": "seed", "method": m, "split": "train", "seed": s, "metric": "mIoU", "value": 40.0 + (g if m == "rib" else 0.0),
             "protocol": protocol(m, s, 0.3)}
            for s, g in enumerate(gains) for m in ("cam", "rib")
        ]  # fmt: skip
        sentence = reading.headline(made_study(rows=[*rows, *more])).sentence
        assert ("do not settle" in sentence) is not settled
        assert f"ahead in {sum(g > 0 for g in gains)} of 3" in sentence


@pytest.mark.parametrize(("value", "warned"), [(0.20, True), (0.49, True), (0.30, False)])
def test_a_threshold_at_the_edge_is_warned_about(value: float, warned: bool) -> None:
    found = reading.warnings(made_study(rows=score_rows(1, {"cam": value, "rib": 0.31})))
    assert any("edge of the grid" in w and "CAM" in w for w in found) is warned


@pytest.mark.parametrize(("companions", "warned"), [(6, True), (5, False), (0, False)])
def test_more_than_five_percent_without_companions_is_warned_about(companions: int, warned: bool) -> None:
    ends = {"rib": {"steps": {10: 100 - companions}, "companions": {4: companions}}}
    assert any("companions ran out" in w for w in reading.warnings(made_study(ends=ends))) is warned


def test_a_method_below_the_rows_without_a_network_has_shown_nothing() -> None:
    low = {**SCORES, "cam": {**SCORES["cam"], "mIoU": 20.0}}
    found = [w for w in reading.warnings(made_study(rows=score_rows(scores=low))) if "shown nothing" in w]
    assert len(found) == 1 and found[0].startswith("CAM") and "centered box" in found[0]


def test_scratch_is_never_beside_a_paper_unsaid(study: StudyResult) -> None:
    assert any("not comparable" in note for note in reading.notes(study))
    rows = [{**r, "protocol": {**r["protocol"], "initial_weights": "imagenet", "from_scratch": False}} for r in study.rows]
    assert not any("scratch" in note for note in reading.notes(made_study(rows=rows)))


def test_papers_are_gathered_by_method_with_their_doubts(study: StudyResult) -> None:
    papers = published.paper_rows(study.paper_rows, "voc2012")
    assert [p.method for p in papers] == ["IRN", "RIB"]
    assert papers[1].values == {"mIoU": (56.5, None), "precision": (67.3, None), "recall": (78.9, None), "F1": (72.6, None)}
    assert papers[1].place == "RIB, Tables 1 and 6" and "ImageNet" in papers[1].protocol and papers[0].quoted
    assert set(published.doubts(papers)) == {"rib_table1", "rib_table6"}


def test_only_seeds_have_a_threshold_that_is_an_oracle() -> None:
    rows = [*papers.rows("hfpl_table2", method="SEAM", split="val"), *papers.rows("hfpl_table1", method="SEAM+ISL/FSL")]
    protocols = {p.stage: p.protocol for p in published.paper_rows(rows, "voc2012")}
    assert "oracle" not in protocols["segmentation"] and "absent classes zero" in protocols["segmentation"]
    assert "threshold oracle (grid 0 to 0.59" in protocols["seed"]


def test_papers_of_another_dataset_are_left_out_where_ours_is_there() -> None:
    coco = {**PAPER_ROWS[1], "dataset": "MS COCO 2014", "value": 36.5}
    assert [p.values["mIoU"][0] for p in published.paper_rows([coco, PAPER_ROWS[1]], "voc2012")] == [56.5]


def test_every_footnoted_table_exists() -> None:
    known = papers.tables()
    assert all(any(name.startswith(table) for name in known) for table in published.DOUBTS)


# --- the terminal ------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [60, 80, 110, 200])
@pytest.mark.parametrize("rich", [True, False])
def test_terminal_fits(study: StudyResult, width: int, rich: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not rich:
        monkeypatch.setitem(sys.modules, "rich.console", None)
    text = terminal(study, width, report="runs/demo/report.html")
    for word in ("CAM", "RIB", "RIB − CAM", "mIoU", "report.html", "whole picture", "centered box", "IRN (paper)", "oracle", "0.28–0.29°"):
        assert word in text
    assert "…" not in text and max(map(len, text.splitlines())) <= width
    assert ("recall" in text) is (width > 60)


def test_terminal_without_any_score() -> None:
    text = terminal(made_study(rows=[], curves={}, over_k={}, ends={}, panels=0), report="report.html")
    assert "report.html" in text


def test_terminal_that_cannot_print_a_sign(study: StudyResult) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    write_tables(study, stream=stream, width=80)
    stream.flush()
    assert b"RIB" in stream.buffer.getvalue()


# --- the page ----------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Elements with their attributes, and whether every element that is opened is closed."""

    VOID = ("meta", "link", "img", "br", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {k: v or "" for k, v in attrs}))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {k: v or "" for k, v in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def all(self, *tags: str) -> list[dict[str, str]]:
        return [attrs for tag, attrs in self.elements if tag in tags]


def test_page_stands_alone(page: str) -> None:
    parsed = Page(page)
    assert not parsed.open, "elements left open"
    pictures = set(re.findall(r"data:image/[a-z+]+;base64,([A-Za-z0-9+/=]{500,})", page))
    assert len(pictures) >= 6
    addresses = [
        a[name] for a in parsed.all("script", "img", "link", "a", "use", "image") for name in ("src", "href", "xlink:href") if name in a
    ]
    assert addresses and all(a.startswith(("data:", "#")) for a in addresses)
    assert not re.search(r"url\((?!#)", page), "a style loads something"
    assert not re.search(r"@import|@font-face", page)


def test_page_is_of_a_sane_size(page: str) -> None:
    assert len(page) < 2_000_000
    assert max(map(len, re.findall(r"base64,([^\"]+)", page))) < 80_000


def test_page_can_be_read_without_eyes_and_without_a_mouse(page: str) -> None:
    parsed = Page(page)
    assert all(image.get("alt") for image in parsed.all("img"))
    assert all(svg.get("role") == "img" and svg.get("aria-labelledby") for svg in parsed.all("svg"))
    assert len(parsed.all("caption")) == len(parsed.all("table"))
    assert all("scope" in th for th in parsed.all("th"))
    assert all(a.get("tabindex") == "0" and a.get("aria-label") for a in parsed.all("div") if a.get("class") == "scroll")
    ids = [attrs["id"] for _, attrs in parsed.elements if "id" in attrs]
    assert len(ids) == len(set(ids)), "an id stands twice"
    anchors = {a["href"][1:] for a in parsed.all("a") if a.get("href", "").startswith("#")}
    assert anchors <= set(ids)


def test_page_says_it_all(page: str, study: StudyResult) -> None:
    text = re.sub(r"<[^>]+>", " ", page)
    for word in (
        "CAM",
        "RIB",
        "threshold",
        "seed",
        "2008_000123",
        "is truncated",
        "rib.margin",
        "2.13.0",
        "AMD EPYC",
        "be11a02c5d9f3e74",
        "56.5",
        "void",
    ):
        assert word in text, word
    for sentence in (*reading.warnings(study), *reading.notes(study)):
        assert html.escape(sentence, quote=False).replace("'", "&#39;") in page
    for field in study.rows[0]["protocol"]:
        assert field in text
    for name in ("threshold", "over_k", "repetitions", "ends_rib", "classes_iou", "classes_f"):
        assert f'id="{name}-alt"' in page


def test_drawings_follow_the_theme(page: str) -> None:
    """In the page a drawing has no color of its own, so that dark is dark; and the style sheet's light theme is the drawing's."""
    for svg in re.findall(r"<svg.*?</svg>", page, re.S):
        assert not re.search(r"#[0-9a-f]{6}\b", re.sub(r"url\(#[^)]*\)|xlink:href=\"[^\"]*\"", "", svg))
    light, dark = (dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", part)) for part in re.findall(r":root \{(.*?)\n *\}", page, re.S)[:2])
    assert {name: light[name] for name in drawing.THEME} == drawing.THEME
    assert set(drawing.THEME) <= set(dark)
    for theme in (light, dark):
        for name in ("ink", "soft", "cam", "rib"):
            assert contrast(theme[name], theme["sheet"]) >= 4.5, name


def contrast(one: str, other: str) -> float:
    """WCAG 2.2's contrast ratio."""

    def luminance(color: str) -> float:
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_words_from_outside_are_no_markup(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    lost = StageSummary(f"maps {evil}", "k", 1, 1, 1.0, [{"id": evil, "reason": evil}])
    panel = dataclasses.replace(made_panel(0, 40, 50), id=evil)
    rows = score_rows(1)
    for row in rows:
        row["metric"] = row["metric"].replace("cat", evil)
    classes = [c.replace("cat", evil) for c in CLASSES]
    made = made_study(**FEW, stages=[lost], rows=rows, classes=classes, warnings=[evil], provenance={"name": evil, "git": {"commit": evil}})
    text = write_report(tmp_path, dataclasses.replace(made, panels=[panel])).read_text()
    assert evil not in text and "&lt;script&gt;" in text
    assert not Page(text).open


def test_page_of_almost_nothing(tmp_path: Path) -> None:
    """A study that ended with its maps: no scores, no curves, no panels, no provenance."""
    text = write_report(tmp_path, StudyResult(experiment=None, rows=[])).read_text()
    assert not Page(text).open and tmp_path.name in text


def test_page_of_one_method_and_one_seed(tmp_path: Path) -> None:
    rows = [r for r in score_rows(1) if r["method"] != "rib"]
    made = made_study(
        rows=rows, curves={"cam": {"thresholds": [0.1, 0.2], "mIoU": [3.0, 4.0]}}, over_k={}, ends={}, paper_rows=[], panels=1
    )
    text = write_report(tmp_path, made).read_text()
    assert not Page(text).open and "RIB −" not in text


@pytest.mark.parametrize("missing", ["jinja2", "matplotlib"])
def test_a_bare_machine_has_a_page_too(missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    text = write_report(tmp_path, made_study(panels=2, **FEW)).read_text()
    assert "RIB" in text and "mIoU" in text and text.count("data:image/webp;base64,") >= 6


def test_figures_lie_beside_the_page_and_are_the_same_each_time(study: StudyResult, tmp_path: Path) -> None:
    drawn = figures.figures(study)
    assert {f.name for f in drawn} == {"threshold", "over_k", "repetitions", "ends_rib", "classes_iou", "classes_f"}
    first = drawn[0].drawn()
    first.write(tmp_path)
    assert (tmp_path / "threshold.png").read_bytes().startswith(b"\x89PNG") and (tmp_path / "threshold.svg").read_text() == first.svg
    assert drawn[0].drawn().svg == first.svg


@given(st.dictionaries(st.integers(0, 50), st.floats(0, 100), min_size=1, max_size=8), st.floats(0.1, 5))
def test_labels_keep_apart(places: dict[int, float], gap: float) -> None:
    moved = figures._apart(places, gap)
    ordered = sorted(moved.values())
    assert all(b - a >= gap - 1e-6 for a, b in itertools.pairwise(ordered))
    assert statistics.fmean(moved.values()) == pytest.approx(statistics.fmean(places.values()), abs=1e-6)


# --- pictures ----------------------------------------------------------------------------------------


def test_a_brighter_map_is_a_brighter_color() -> None:
    """The color map's lightness rises evenly, so that no step of the map is made up by the colors."""
    linear = (pictures.colors() / 255.0) ** 2.2
    lightness = 116 * np.cbrt(linear @ [0.2126, 0.7152, 0.0722]) - 16
    assert (np.diff(lightness[8:]) > 0).all()
    assert np.diff(lightness[16::16]).std() < 0.35 * np.diff(lightness[16::16]).mean()


def test_label_maps_have_the_palette_and_void_is_hatched() -> None:
    picture, labels = np.full((40, 60, 3), 128, np.uint8), np.zeros((40, 60), np.uint8)
    labels[:20, :30], labels[:20, 30:] = 4, 255
    image = np.asarray(pictures.painted(picture, labels, PALETTE))
    scale = image.shape[0] // 40
    assert scale * 60 == image.shape[1] <= pictures.LONG_SIDE
    assert (image[: 20 * scale, : 30 * scale] == PALETTE[4]).all()
    assert set(np.unique(image[: 20 * scale, 30 * scale :])) == {110, 250}
    assert image[20 * scale :].min() > 180, "background is the faded picture"


@pytest.mark.parametrize("shape", [(1, 1), (7, 900), (500, 375), (96, 96), (2, 3000)])
def test_pictures_of_any_shape_are_shown(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    panel = Panel("p", rng.integers(0, 255, (*shape, 3), np.uint8), rng.integers(0, 3, shape, np.uint8), {"CAM": rng.random(shape)}, {})
    tiles = pictures.shown(panel, CLASSES, PALETTE).tiles
    assert [t.caption for t in tiles] == ["picture", "CAM", "truth"]
    assert all(max(t.size) <= pictures.LONG_SIDE for t in tiles)


def test_iou_of_a_picture() -> None:
    truth = np.array([[0, 0, 1, 1], [0, 0, 1, 255]], np.uint8)
    assert pictures.picture_iou(truth, truth) == 1.0
    assert pictures.picture_iou(np.zeros_like(truth), truth) == pytest.approx((4 / 7) / 2)


def test_many_steps_are_thinned_to_first_last_and_some_between() -> None:
    maps = {"CAM": np.zeros((4, 4)), **{f"RIB k={k}": np.zeros((4, 4)) for k in range(20)}}
    kept = list(pictures._thinned(maps, 6))
    assert kept[0] == "CAM" and kept[1] == "RIB k=0" and kept[-1] == "RIB k=19" and len(kept) <= pictures.TILES - 3


def test_printed_classes_stand_beside_ours() -> None:
    row = {"table": "rib_tableS2", "split": "val", "method": "RIB", "stage": "segmentation", "metric": "IoU:cat", "value": 88.7}
    other = {**row, "table": "rib_table7", "split": "train", "method": "IRN", "stage": "seed", "metric": "IoU:boat", "value": 35.3}
    assert sections.printed_classes([row, other], "segmentation", "val") == {"RIB in Table S2": {"cat": 88.7}}
    assert sections.printed_classes([row, other], "seed", "train") == {"IRN's CAM in Table 7": {"boat": 35.3}}
    assert sections.printed_classes([row], "segmentation", "train") == {}
    ours = next(r for r in score_rows(1) if r["metric"].startswith("IoU:cat"))
    here = {**row, "split": ours["split"], "stage": ours["stage"]}
    shown = next(t for t in sections._class_tables(made_study(rows=score_rows(1), paper_rows=[here])) if "J, RIB in Table S2" in t["heads"])
    cells = {line[0]: line[-1] for line in shown["rows"]}
    assert cells["cat"] == "88.7" and set(cells.values()) == {"88.7", ""}
