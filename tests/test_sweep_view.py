"""What a sweep shows: trials that lost pictures, printed values in doubt, differences of every metric, figures, narrow terminals."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from test_sweeping import tiny
from whole_study import WHOLE

from seedbed.report import SweepRow, SweepTable, terminal
from seedbed.report.sweep import difference_columns, fitting, sweep_columns, sweep_notes
from seedbed.report.sweep_figure import sweep_figure
from seedbed.sweeps import findings
from seedbed.sweeps.drive import run
from seedbed.sweeps.isl_tables import ISL_TABLES
from seedbed.sweeps.rib_tables import RIB_TABLES
from seedbed.sweeps.settings import ShapesSweep, Sweep
from seedbed.sweeps.tables import Line, PaperTable, SweepResult
from seedbed.sweeps.trials import TrialExecutor

METRICS = ("mIoU", "F", "J_and_F")
WHY = "FloatingPointError: the loss is not finite"


def three_metrics(base: Any) -> PaperTable:
    lines = (
        Line("CAM", None, "cam"),
        Line("slow", {"rib.lr": 0.001}, printed={"mIoU": (50.3, 13.0)}, default=True),
        Line("diverging", {"rib.lr": 0.003}),
    )
    return PaperTable(
        name="three", title="Three", lines=lines, metrics=METRICS, base={"method": "cam"}, source="hfpl_table4 and rib_tableS1"
    )


@pytest.fixture(scope="module")
def lossy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A sweep whose second trial loses two of ten pictures, and what the terminal said."""
    out = tmp_path_factory.mktemp("lossy") / "out"
    works = TrialExecutor.map_images

    def losing(self: TrialExecutor, work: Any, ids: Any, stage: Any, shown: Any) -> int:
        if stage.name == "maps" and self.trial.setting["rib.lr"] == 0.003:
            for ident in sorted(ids)[:2]:
                stage.set_aside(ident, WHY)
            ids = sorted(ids)[2:]
        return works(self, work, ids, stage, shown)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrialExecutor, "map_images", losing)
        said: list[str] = []
        patch.setattr("sys.stdout", SimpleNamespace(write=lambda text: said.append(text), flush=lambda: None, isatty=lambda: False))
        patch.setenv("COLUMNS", "150")
        run(tiny(out, table="three", **{"scoring.low": 0.38}), {"three": three_metrics})
    return out, "".join(said)


def rows_of(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / "table_three.csv").read_text().splitlines()))


def test_a_trial_that_lost_pictures_is_marked_and_named(lossy: tuple[Path, str]) -> None:
    out, said = lossy
    html = (out / "report.html").read_text()
    records = [json.loads(p.read_text()) for p in (out / "trials").glob("*.json")]
    first, second = (entry["id"] for record in records for entry in record["set_aside"])
    for text in (html, " ".join(said.split())):
        assert "8 of 10 pictures" in text and f"“diverging”: 2 pictures were set aside ({first} and {second}: {WHY})" in text
        assert text.count("pictures were set aside (") == 1, "the other lost nothing"
    assert "Not of all pictures: diverging (8 of 10 pictures)" in html, "the figure says it too"
    assert "Pictures that trials set aside" in html and html.count(second) >= 2
    pictures = {r["label"]: (r["pictures"], r["paired_pictures"]) for r in rows_of(out)}
    assert pictures["slow"] == ("10", "") and pictures["diverging"] == ("8", "8") and pictures["CAM"] == ("10", "10")


def test_a_trials_threshold_at_the_edge_is_warned_about(lossy: tuple[Path, str]) -> None:
    """The grid 0.38 to 0.40 has edges alone, and one value between them."""
    rows = [r for p in (lossy[0] / "trials").glob("*.json") for r in json.loads(p.read_text())["rows"] if r["metric"] == "mIoU"]
    assert any(r["protocol"]["threshold"]["edge"] for r in rows)
    html = (lossy[0] / "report.html").read_text()
    assert any(f"The best {word} of “" in html for word in ("threshold", "thresholds"))


def test_thresholds_of_the_steps_k_are_looked_at_too() -> None:
    scoring = SimpleNamespace(grid=lambda: np.array([0.2, 0.3, 0.4]))
    trial = SimpleNamespace(key="a", setting={"rib.lr": 1.0}, name="a", experiment=SimpleNamespace(scoring=scoring))
    record = {"key": "a", "setting": {}, "rows": [], "over_k": {"0": [[40.0, 0.2], [41.0, 0.3], [42.0, 0.4], [43.0, 0.4]]}}
    table = PaperTable("fig5", "t", (Line("GAP", {"rib.lr": 1.0}),), over_k=True)
    base = SimpleNamespace(summaries=[])
    (found,) = findings.trial_warnings(cast(Any, base), SweepResult(table, [trial], [], {"a": record}, {}))
    assert "“GAP” (at k = 0 and 2)" in found


def test_every_metric_has_its_own_difference(lossy: tuple[Path, str]) -> None:
    out, said = lossy
    content = json.loads((out / "scores.json").read_text())
    assert [(p["second"]["label"], p["metric"]) for p in content["paired"]] == [(x, m) for x in ("CAM", "diverging") for m in METRICS]
    value = {(r["label"], r["metric"]): float(r["value"]) for r in rows_of(out)}
    for p in content["paired"]:
        if p["second"]["label"] == "CAM":  # of the other some pictures are missing
            assert p["difference"] == pytest.approx(value["CAM", p["metric"]] - value["slow", p["metric"]])
    found = [r for r in rows_of(out) if r["label"] == "CAM"]
    assert all(float(r["low"]) <= float(r["difference"]) <= float(r["high"]) for r in found) and len({r["low"] for r in found}) == 3
    assert "Differences from slow" in said and "Differences from slow" in (out / "report.html").read_text()


def test_rows_without_a_network_stand_in_the_table(lossy: tuple[Path, str]) -> None:
    out, said = lossy
    bare = [r for r in rows_of(out) if r["kind"] == "without network"]
    assert [r["label"] for r in bare[::3]] == ["whole picture", "centered box"] and not any(r["difference"] for r in bare)
    assert "whole picture" in said.partition("Three: seed")[2] and '<tr class="without"><th scope="row">whole picture' in (
        out / "report.html"
    ).read_text().replace("  ", " ")


def test_printed_values_in_doubt_have_footnotes(lossy: tuple[Path, str]) -> None:
    out, said = lossy
    for text in ((out / "report.html").read_text(), " ".join(said.split())):
        assert "a deviation of 13; 12.1 is the most possible" in text and "Table S1 does not print its split" in text


def test_ends_of_the_runs_are_kept_and_warned_about(lossy: tuple[Path, str]) -> None:
    records = [json.loads(p.read_text()) for p in (lossy[0] / "trials").glob("*.json")]
    assert sorted(sum(n for steps in r["ends"]["rib"].values() for n in steps.values()) for r in records) == [8, 10]
    record = {"rows": [], "ends": {"rib": {"companions": {"2": 3}, "steps": {"3": 7}}}}
    (found,) = warnings_of({"lr 1": record, "lr 2": {"rows": [], "ends": {"rib": {"steps": {"3": 10}}}}})
    assert "companions ran out" in found and "“lr 1” (30.0%)" in found and "lr 2" not in found


def warnings_of(records: dict[str, Any]) -> list[str]:
    trials = [SimpleNamespace(key=name, setting={"rib.lr": name}, name=name) for name in records]
    table = PaperTable("t", "t", tuple(Line(name, {"rib.lr": name}) for name in records))
    base = SimpleNamespace(summaries=[SimpleNamespace(set_aside=[{"id": "x", "reason": "no picture"}])])
    return findings.trial_warnings(cast(Any, base), SweepResult(table, trials, [], records, {}))


def test_many_trials_are_told_in_short() -> None:
    aside = [{"id": f"p{n}", "reason": "not finite " * 30} for n in range(9)] + [{"id": "x", "reason": "no picture"}]
    found = warnings_of({f"lr {n}": {"rows": [], "set_aside": aside} for n in range(20)})
    assert len(found) == findings.TRIALS + 1 and all(len(line) < 400 for line in found)
    assert "9 pictures" in found[0] and "p0, p1, p2 and 6 more: not finite" in found[0], "x was lost by what all trials share"
    assert "16 more trials" in found[-1] and warnings_of({"lr 1": {"rows": []}}) == []


def test_base_rows_are_compared_at_the_stage_of_the_table(tmp_path: Path) -> None:
    """Masks and segmentations of the base against those of a trial, on the split of the table."""
    for stage, split in (("mask", ""), ("segmentation", "val")):

        def table(base: Any, stage: str = stage, split: str = split) -> PaperTable:
            lines = (Line("two scales", None, "cam"), Line("one scale", {"cam.scales": (1.0,)}, default=True))
            fixed = {"data.segment_splits": (split,)} if split else {}
            return PaperTable("t", "t", lines, stage=stage, split=split, fixed=fixed)

        changes = {**WHOLE, "refine.method": "none", "segmenter.retrain": "no", "segmenter.steps": 10, "data.limit": 6}
        run(ShapesSweep(name="late", out=str(tmp_path)).replace(**changes, table="t"), {"t": table})
        (found,) = json.loads((tmp_path / "scores.json").read_text())["paired"]
        value = {r["label"]: float(r["value"]) for r in csv.DictReader((tmp_path / "table_t.csv").read_text().splitlines())}
        assert (found["stage"], found["split"]) == (stage, split or "train") and found["first"]["label"] == "one scale"
        assert found["difference"] == pytest.approx(value["two scales"] - value["one scale"])


# --- figures and tables from made rows ------------------------------------------------------------------


def made(table: PaperTable, **changes: Any) -> SweepTable:
    rows = [
        SweepRow(
            line.label,
            line.method or "rib",
            values=dict.fromkeys(table.metrics, (40.0 + n, 0.5)),
            printed=line.printed,
            paired={} if line.default else {m: {"difference": 1.0, "low": -0.5, "high": 2.0, "pictures": 10} for m in table.metrics},
            pictures=[10],
            setting=line.setting or {},
            x=line.x,
            group=line.curve,
            state="run now" if line.setting else "base",
        )
        for n, line in enumerate(table.lines)
    ]
    kept = {name: getattr(table, name) for name in ("name", "title", "stage", "split", "metrics", "axis", "axis_name", "figure_metric")}
    return SweepTable(**kept, source=table.source, rows=rows, reference=next(x.label for x in table.lines if x.default), **changes)


def test_figure_6_is_drawn_as_the_paper_draws_it() -> None:
    """J&F over lambda, 0 included, a curve without and one with FSL; one value of it is printed, in Table 5."""
    table = ISL_TABLES["fig6"](Sweep(name="x", method="seam", addons=("isl",), table="fig6"))
    printed = [line for line in table.lines if line.printed]
    assert [line.label for line in printed] == ["SEAM+ISL, lambda = 1"] and printed[0].printed["J_and_F"] == (52.1, 0.4)
    from matplotlib.figure import Figure as Canvas

    figure = sweep_figure(made(table))
    assert figure is not None and figure.caption.startswith("J&F")
    canvas = Canvas(figsize=figure.size, layout="constrained")
    figure.draw(canvas)
    (axes,) = canvas.axes
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("J&F, %", "lambda, the weight of ISL")
    drawn = [bars.lines[0].get_xdata().tolist() for bars in axes.containers]
    assert drawn == [[0.0, 0.2, 0.4, 0.6, 0.8, 1.0]] * 2 and not [line for line in axes.lines if len(line.get_xdata()) == 2]
    assert [text.get_text() for text in canvas.legends[0].get_texts()] == ["ISL", "ISL + FSL"]


@pytest.mark.parametrize(("name", "curves", "panels"), [("5c", False, 2), ("fig5", True, 1), ("fig5", False, 2)])
def test_a_caption_speaks_of_what_is_drawn(name: str, curves: bool, panels: int) -> None:
    """The paper's values are drawn beside ours, but not where the figure shows single steps."""
    from matplotlib.figure import Figure as Canvas

    table = made(RIB_TABLES[name](Sweep(name="x", table=name)), over_k=name == "fig5")
    table = replace(table, rows=[replace(row, curve=[40.0, 41.0] if curves else ()) for row in table.rows])
    figure = sweep_figure(table)
    assert figure is not None and ("On the right" in figure.caption) is (panels == 2)
    canvas = Canvas(figsize=figure.size, layout="constrained")
    figure.draw(canvas)
    assert len(canvas.axes) == panels


@pytest.mark.parametrize("words", ["ISL", "a curve of very many words that tell every setting of the trials that are its points"])
def test_a_legend_is_not_cut_off(words: str) -> None:
    lines = [
        Line(f"{c} {x}", {"rib.tau": x, "rib.lr": c}, x=x, curve=f"{words} {c}", default=(c, x) == (0, 1)) for c in range(4) for x in (1, 2)
    ]
    figure = sweep_figure(made(PaperTable("t", "t", tuple(lines), axis="rib.tau")))
    assert figure is not None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=figure.size, layout="constrained")
    figure.draw(canvas)
    FigureCanvasAgg(canvas).draw()
    box, whole = canvas.legends[0].get_window_extent(), canvas.bbox
    assert box.x0 >= 0 and box.x1 <= whole.x1 and box.y1 <= whole.y1
    assert canvas.axes[0].get_window_extent().height > 0.3 * whole.height


def test_a_scale_by_decades_has_plain_numbers() -> None:
    rows = [SweepRow(str(n), "rib", {"mIoU": (40.0 + n, None)}, setting={"rib.lr": 10.0**-n}, state="found") for n in range(1, 7)]
    figure = sweep_figure(SweepTable("", "random search", "seed", "train", ("mIoU",), rows, search=True))
    assert figure is not None and "mathdefault" not in figure.drawn().svg


@pytest.mark.parametrize("width", [60, 80, 100, 150])
@pytest.mark.parametrize("name", ["fig6", "5", "gate"])
def test_the_terminal_drops_columns_instead_of_squeezing_them(name: str, width: int, capsys: pytest.CaptureFixture[str]) -> None:
    view = made(ISL_TABLES[name](Sweep(name="x", method="seam", addons=("isl",), table=name)))
    import sys

    for console in (None, terminal._console(sys.stdout, width)):
        terminal._print_sweep(view, console, sys.stdout, width)
        lines = capsys.readouterr().out.splitlines()
        rows = [line for line in lines if "40.00" in line or "N = 10" in line]
        assert rows and all(len(line.rstrip()) <= width for line in lines if "−0.50 to" in line or "40.00" in line)
        assert not any("…" in line for line in lines) and any("40.00 ± 0.50" in line for line in lines)
        assert ("No room here" in " ".join(lines)) is (width < (150 if name == "fig6" else 100))


def test_what_is_lost_is_said_in_every_width() -> None:
    rows = [
        SweepRow("a trial with a long label " * 2, "rib", {"mIoU": (40.0, 0.5)}, pictures=[8, 9], setting={"rib.lr": 1.0}, state="found"),
        SweepRow("reference", "cam", {"mIoU": (41.0, 0.5)}, pictures=[10, 10], state="base"),
        SweepRow("other", "rib", {}, setting={"rib.lr": 2.0}, state="failed"),
    ]
    view = SweepTable("", "t", "seed", "train", ("mIoU",), rows, "reference")
    columns, left_out = fitting(sweep_columns(view), 60)
    assert not left_out and columns[-1].cells == ["8 to 9 of 10 pictures", "", "failed"] and columns[0].cells[0].endswith("…")
    assert "differences are over the pictures that both rows have" in sweep_notes(view)[-1] and not difference_columns(view)
