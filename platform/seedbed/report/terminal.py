"""The study's table in the terminal."""

from __future__ import annotations

import sys
from typing import Any

from seedbed.report.result import StudyResult


def write_tables(study: StudyResult, *, report: Any = None, stream: Any = None) -> None:
    """Print the table of scores (first draft)."""
    stream = stream or sys.stdout
    for row in study.rows:
        print(row["stage"], str(row["method"]).upper(), row["split"], row["seed"], row["metric"], f"{row['value']:.2f}", file=stream)
    if report is not None:
        print(f"report: {report}", file=stream)
