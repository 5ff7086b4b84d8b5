"""Seedbed: weakly supervised semantic segmentation, from class labels to scores that can be trusted.

    from seedbed import Experiment, run

Importing this package loads nothing heavy: torch comes with the first stage, Ray and MLflow with a run that uses them.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["Experiment", "__version__", "run"]

_LAZY = {"Experiment": "seedbed.pipeline", "run": "seedbed.study"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'seedbed' has no attribute {name!r}")
