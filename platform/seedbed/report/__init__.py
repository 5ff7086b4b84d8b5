"""Tables in the terminal and report.html, from the plain values of a finished study."""

from __future__ import annotations

from seedbed.report.page import write_report
from seedbed.report.result import Panel, StageSummary, StudyResult, SweepRow, SweepTable
from seedbed.report.terminal import write_tables

__all__ = ["Panel", "StageSummary", "StudyResult", "SweepRow", "SweepTable", "write_report", "write_tables"]
