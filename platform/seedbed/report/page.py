"""report.html: one file that needs nothing else, from the plain values of a study; the figures are also written beside it."""

from __future__ import annotations

import html
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seedbed.progress import duration
from seedbed.report import reading, sections, summary
from seedbed.report.drawing import color_variable
from seedbed.report.figures import figures
from seedbed.report.pictures import colors, shown
from seedbed.report.published import doubts, paper_rows
from seedbed.report.result import StudyResult
from seedbed.report.terminal import plain_tables

PANELS = 12
"""Pictures shown; more make the file large and say nothing new."""

ROW_GROUPS = (
    (("method", "difference"), ""),
    (("without network",), "without a network"),
    (("paper",), "in the papers, under their own protocols"),
)


def write_report(out: Path, study: StudyResult) -> Path:
    """Write OUT/report.html and OUT/figures/NAME.{svg,png}; returns the path of the page. The page appears whole or not at all.

    Without matplotlib the figures are left out, their values stay as tables; without jinja2 the page is the terminal's tables as text.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    drawn = _drawn(out / "figures", study)
    try:
        import jinja2
    except ImportError:
        return _write(out / "report.html", _plain_page(out, study))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("seedbed.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    page = environment.get_template("page.html.j2").render(**_content(out, study, drawn))
    return _write(out / "report.html", page)


def _drawn(folder: Path, study: StudyResult) -> list[dict[str, Any]]:
    """Every figure as a file and as markup."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return []
    folder.mkdir(exist_ok=True)
    found = [figure.drawn() for figure in figures(study)]
    for drawn in found:
        drawn.write(folder)
    return [{"name": d.figure.name, "title": d.figure.title, "caption": d.figure.caption, "markup": _Markup(d.markup())} for d in found]


class _Markup(str):
    """Text that is HTML already."""

    def __html__(self) -> str:
        return self


def _write(path: Path, text: str) -> Path:
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)
    return path


def _content(out: Path, study: StudyResult, drawn: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    tables = summary.tables(study)
    papers = [p for p in paper_rows(study.paper_rows, summary.dataset_of(study)) if any(p.stage == t.stage for t in tables)]
    panels = [shown(panel, study.classes, study.palette) for panel in study.panels[:PANELS]]
    groups = [group for group in sections.figure_groups(study, drawn) if group[3] or group[4]]
    runs = max((len(v.runs) for t in tables for r in t.rows for v in r.values.values()), default=0)
    classes_of = sorted({str(r["table"]) for r in study.paper_rows if str(r.get("metric", "")).startswith("IoU:")})
    sweep = sections.sweep(study, drawn)
    anchors = [
        *([("sweep", "Sweep")] if sweep else []),
        ("scores", "Scores"),
        *([("pictures", "Pictures")] if panels else []),
        *((g[0], g[1]) for g in groups),
    ]
    anchors += [(s.lower(), s) for s in ("Stages", "Protocol", "Settings", "Provenance")]
    present = [m for m in summary.METRICS if any(m in r.values for t in tables for r in t.rows)]
    changed = sections.changed(study.experiment)
    return {
        "name": _name(out, study), "facts": _facts(study), "head": reading.headline(study), "version": _version(),
        "css": _Markup((Path(__file__).parent / "page.css").read_text(encoding="utf-8")),
        "warnings": reading.warnings(study), "notes": reading.notes(study), "sections": anchors, "sweep": sweep,
        "tables": tables, "metrics": {m: summary.METRICS[m] for m in present}, "row_groups": ROW_GROUPS, "spread": runs if runs > 1 else 0,
        "repetitions": sections.repetitions, "color": color_variable,
        "footnotes": list(dict.fromkeys(line for lines in doubts(papers, classes_of).values() for line in lines)),
        "panels": panels, "columns": max((len(p.tiles) for p in panels), default=1), "hidden": max(0, len(study.panels) - PANELS),
        "marks": [(label, value, color_variable(method)) for label, value, method in summary.thresholds(study)],
        "any_void": any(p.void for p in panels),
        "scale": ", ".join("#{:02x}{:02x}{:02x}".format(*c) for c in colors()[::32].tolist() + colors()[-1:].tolist()),
        "figure_groups": groups, "stages": study.stages, "aside": [(s.name, e) for s in study.stages for e in s.set_aside],
        "duration": duration, "records": sections.records(study, tables), "settings": sections.settings(study, changed), "changed": changed,
        "provenance": sections.provenance(study),
    }  # fmt: skip


def _name(out: Path, study: StudyResult) -> str:
    return str(getattr(study.experiment, "name", "") or study.provenance.get("name") or out.absolute().name)


def _facts(study: StudyResult) -> list[str]:
    """The line under the title."""
    run, facts = study.provenance, []
    record: Mapping[str, Any] = next((r["protocol"] for r in study.rows if r["metric"] == "mIoU" and r.get("protocol")), {})
    if record:
        facts.append(summary.scored_on(record))
    if (line := summary.classifier_line(study)) is not None:
        facts.append(line)
    if run.get("started"):
        facts.append(f"started {str(run['started'])[:16].replace('T', ' ')}")
    if isinstance(run.get("seconds"), int | float):
        facts.append(f"took {duration(run['seconds'])}")
    git = run.get("git")
    if isinstance(git, Mapping) and git.get("commit"):
        facts.append(f"commit {str(git['commit'])[:7]}" + (" with changes" if git.get("dirty") else ""))
    if run.get("key"):
        facts.append(f"settings key {run['key']}")
    return facts


def _version() -> str:
    from seedbed import __version__

    return __version__


def _plain_page(out: Path, study: StudyResult) -> str:
    """What is left without jinja2: the tables as text, and the pictures."""
    images = "".join(
        f'<img alt="{html.escape(t.alt)}" title="{html.escape(t.alt)}" src="{t.address}">'
        for panel in study.panels[:PANELS]
        for t in shown(panel, study.classes, study.palette).tiles
    )
    title, text = html.escape(_name(out, study)), html.escape(plain_tables(study, 160))
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
    return f"{head}<h1>{title}</h1><pre>{text}</pre>{images}</html>\n"
