"""Artefacts: what a stage leaves behind, and how to read it.

from seedbed.artefacts import open_stage
for maps in open_stage("runs/demo", "maps", method="rib"):
    ...
"""

from seedbed.artefacts.records import MAPS, SEEDS, THRESHOLDS, WEIGHTS, open_stage
from seedbed.artefacts.stage import Fragments, Stage, Writer, column, find_stages, hold, record_hash, stage_schema, write_atomically

__all__ = [
    "MAPS",
    "SEEDS",
    "THRESHOLDS",
    "WEIGHTS",
    "Fragments",
    "Stage",
    "Writer",
    "column",
    "find_stages",
    "hold",
    "open_stage",
    "record_hash",
    "stage_schema",
    "write_atomically",
]
