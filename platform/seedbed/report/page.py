"""report.html (first draft)."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path

from seedbed.report.result import StudyResult


def write_report(out: Path, study: StudyResult) -> Path:
    """Write OUT/report.html and return its path."""
    from PIL import Image

    parts = ["<!doctype html><meta charset=utf-8><title>Seedbed</title><h1>CAM, RIB: seed mIoU over threshold</h1>"]
    for panel in study.panels:
        buffer = io.BytesIO()
        Image.fromarray(panel.picture).save(buffer, "PNG")
        parts.append(f'<img alt="{html.escape(panel.id)}" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">')
    path = Path(out) / "report.html"
    path.write_text("\n".join(parts), encoding="utf-8")
    return path
