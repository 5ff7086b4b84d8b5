"""The study's tables in the terminal: ours, the rows without a network, the papers' beside, and in words what to make of them.

With rich they are set in color; without it the same cells are printed as plain aligned text.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from seedbed.report import reading
from seedbed.report.result import StudyResult, SweepTable
from seedbed.report.summary import METRICS, Kind, Row, Table, classifier_line, coverage_line, tables
from seedbed.report.sweep import Column, difference_columns, difference_title, fitting, kinds, sweep_columns, sweep_notes

PAPERS_SHOWN = 6

TRIALS = 25
"""Rows of a search that the terminal shows."""
STYLES = {"method": "bold", "difference": "italic", "without network": "dim", "paper": "cyan", "failed": ""}


def write_tables(study: StudyResult, *, report: Path | str | None = None, stream: TextIO | None = None, width: int | None = None) -> None:
    """Print the tables, warnings and notes of a study to `stream` (stdout); `report` is named at the end."""
    stream = stream if stream is not None else sys.stdout
    width = width or (shutil.get_terminal_size((100, 24)).columns if stream.isatty() else int(os.environ.get("COLUMNS") or 100))
    if isinstance(stream, io.TextIOWrapper) and "utf" not in stream.encoding.lower():
        stream.reconfigure(errors="replace")  # a bare `LANG=C` must not end a finished study
    console = _console(stream, width)
    for table in tables(study):
        _print_table(table, console, stream, width)
    for line in (classifier_line(study), coverage_line(study)):
        if line is not None:
            _say(line, console, stream, width, "")
    if study.sweep is not None:
        _print_sweep(study.sweep, console, stream, width)
    for head, style, sentences in (("warning", "yellow", reading.warnings(study)), ("note", "dim", reading.notes(study))):
        for sentence in sentences:
            _say(f"{head}: {sentence}", console, stream, width, style)
    if report is not None:
        _say(f"report: {report}", console, stream, 10_000, "")


def plain_tables(study: StudyResult, width: int = 100) -> str:
    """The same as text without any color."""
    buffer = io.StringIO()
    for table in tables(study):
        _print_table(table, None, buffer, width)
    if study.sweep is not None:
        _print_sweep(study.sweep, None, buffer, width)
    for head, sentences in (("warning", reading.warnings(study)), ("note", reading.notes(study))):
        for sentence in sentences:
            _say(f"{head}: {sentence}", None, buffer, width, "")
    return buffer.getvalue()


def cells(table: Table, width: int) -> tuple[list[str], list[tuple[Kind, list[str]]]]:
    """Headings, and for every row its kind and its cells. The last column is the letter of the row's protocol.

    Where there is no room, the spread of all but mIoU goes first, then whole columns from the right; the report has them all.
    """
    metrics = [m for m in METRICS if any(m in row.values for row in table.rows)]
    letters = table.protocols()
    for spread, kept in [(True, len(metrics)), *((False, n) for n in range(len(metrics), 0, -1))]:
        mine = metrics[:kept]
        heads = ["", *(METRICS[m] if spread else METRICS[m].replace("precision", "prec.") for m in mine), "threshold", ""]
        rows = [(row.kind, _cells(row, mine, letters, spread)) for row in _shown(table.rows)]
        if sum(_widths([heads, *(row for _, row in rows)])) + 2 * len(heads) <= width:
            break
    return heads, rows


def _cells(row: Row, metrics: Sequence[str], letters: dict[str, str], spread: bool) -> list[str]:
    sign, digits = row.kind == "difference", 1 if row.kind == "paper" else 2
    values = [row.values[m].text(spread=spread or m == "mIoU", sign=sign, digits=digits) if m in row.values else "" for m in metrics]
    label = f"{row.method} (paper)" if row.kind == "paper" else row.label
    return [label, *values, row.threshold + ("°" if row.oracle and row.threshold else ""), letters.get(row.protocol, "")]


def _shown(rows: Sequence[Row]) -> list[Row]:
    """All of ours; of the papers' first those of our own methods and of CAM (IRN's seed is one), as many as have room."""
    papers = [r for r in rows if r.kind == "paper"]
    names = {r.method.upper() for r in rows if r.kind == "method"} | {"IRN"}
    papers.sort(key=lambda r: r.method.upper() not in names)
    keep = {id(r) for r in papers[:PAPERS_SHOWN]}
    return [r for r in rows if r.kind != "paper" or id(r) in keep]


def _console(stream: TextIO, width: int) -> Any:
    try:
        from rich.console import Console
    except ImportError:
        return None
    return Console(file=stream, width=width, highlight=False, no_color=bool(os.environ.get("NO_COLOR")) or None)


def _print_table(table: Table, console: Any, stream: TextIO, width: int) -> None:
    heads, rows = cells(table, width)
    if console is None:
        print(f"\n{table.title}, percent\n{_aligned(heads, rows)}", file=stream)
    else:
        console.print()
        console.print(_rich_table(f"{table.title}, percent", heads, rows))
    for text, letter in _used(table).items():
        _say(f"{letter}  {text}", console, stream, width, "dim", indent=3)
    hidden = len(table.rows) - len(rows)
    if hidden:
        _say(f"{hidden} more rows of papers stand in the report.", console, stream, width, "dim")


def _print_sweep(sweep: SweepTable, console: Any, stream: TextIO, width: int) -> None:
    trials = [row for row in sweep.rows if row.kind == "trial"]
    hidden = {id(row) for row in trials[TRIALS:]} if sweep.search else set()
    shown = replace(sweep, rows=[row for row in sweep.rows if id(row) not in hidden])
    _print_columns(
        f"{sweep.title}: {sweep.stage} on {sweep.split}, percent", sweep_columns(shown), kinds(shown.rows), console, stream, width
    )
    if apart := difference_columns(shown):
        _print_columns(difference_title(sweep), apart, ["method"] * len(apart[0].cells), console, stream, width)
    if hidden:
        _say(f"{len(hidden)} more trials stand in the report.", console, stream, width, "dim")
    for note in sweep_notes(shown):
        _say(note, console, stream, width, "dim", indent=3)


def _print_columns(title: str, columns: Sequence[Column], kind: Sequence[Kind], console: Any, stream: TextIO, width: int) -> None:
    """As many columns as have room."""
    columns, left_out = fitting(columns, width)
    heads = [column.head for column in columns]
    rows = [(k, list(cells)) for k, cells in zip(kind, zip(*(column.cells for column in columns), strict=True), strict=True)]
    if console is None:
        print(f"\n{title}\n{_aligned(heads, rows)}", file=stream)
    else:
        console.print()
        _say(title, console, stream, width, "bold")  # of a narrow table it would be folded to the table's width
        console.print(_rich_table(None, heads, rows))
    if left_out:
        _say(f"No room here for: {', '.join(left_out)}. The report has every column.", console, stream, width, "dim")


def _used(table: Table) -> dict[str, str]:
    shown = {row.protocol for row in _shown(table.rows)}
    return {text: letter for text, letter in table.protocols().items() if text in shown}


def _rich_table(title: str | None, heads: Sequence[str], rows: Sequence[tuple[Kind, list[str]]]) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as RichTable

    out = RichTable(
        box=SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", show_edge=False, padding=(0, 1, 0, 0), header_style="dim"
    )
    for i, head in enumerate(heads):
        out.add_column(head, justify="left" if i in _left(heads) else "right", no_wrap=True)
    for i, (kind, row) in enumerate(rows):
        style = STYLES[kind]
        if kind == "failed":
            style += " red"
        if kind == "difference":
            style += " green" if row[1].startswith("+") else " red"
        following = rows[i + 1][0] if i + 1 < len(rows) else kind
        own = ("method", "difference")
        out.add_row(*row, style=style, end_section=following != kind and not (kind in own and following in own))
    return out


def _left(heads: Sequence[str]) -> set[int]:
    """Columns of words: the first, and a last one without a heading."""
    return {0, len(heads) - 1} if not heads[-1] else {0}


def _aligned(heads: Sequence[str], rows: Sequence[tuple[Kind, list[str]]]) -> str:
    lines = [list(heads), *(row for _, row in rows)]
    widths, edge = _widths(lines), _left(heads)
    text = []
    for line in lines:
        padded = [cell.ljust(w) if i in edge else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))]
        text.append("  ".join(padded).rstrip())
    return "\n".join([text[0], "-" * (sum(widths) + 2 * len(widths) - 2), *text[1:]])


def _widths(lines: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*lines, strict=True)]


def _say(text: str, console: Any, stream: TextIO, width: int, style: str, indent: int = 0) -> None:
    folded = textwrap.fill(text, max(width, 20), subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)
    if console is None:
        print(folded, file=stream)
    else:
        console.print(folded, style=style, markup=False, soft_wrap=True)
