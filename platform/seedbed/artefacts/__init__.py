"""Artefacts: what a stage leaves behind, and how to read it.

from seedbed.artefacts import open_stage
for maps in open_stage("runs/demo", "maps", method="rib"):
    ...
"""

from seedbed.artefacts.files import hold, write_atomically
from seedbed.artefacts.fragments import Fragments, Writer, column, record_hash, stage_schema
from seedbed.artefacts.records import open_stage
from seedbed.artefacts.schemas import LABELS, MAPS, MASKS, PREDICTIONS, SCORED, SCORED_LABELS, SEEDS, THRESHOLDS, WEIGHTS
from seedbed.artefacts.stage import Stage, fills_labels, find_stages

__all__ = [
    "LABELS",
    "MAPS",
    "MASKS",
    "PREDICTIONS",
    "SCORED",
    "SCORED_LABELS",
    "SEEDS",
    "THRESHOLDS",
    "WEIGHTS",
    "Fragments",
    "Stage",
    "Writer",
    "column",
    "fills_labels",
    "find_stages",
    "hold",
    "open_stage",
    "record_hash",
    "stage_schema",
    "write_atomically",
]
