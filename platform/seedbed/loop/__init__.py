"""The one training loop, torch only.

A `Task` says what is trained; `train` does it on one process of a group; `train_locally` makes that group without Ray (`runtime/train.py`
makes it with Ray). All of them leave `folder/weights.pt`, a plain state dictionary, and go on from `folder/checkpoint.pt` after a kill.
"""

from seedbed.loop.local import train_locally
from seedbed.loop.parallel import WorkerLost, backend_for, data_parallel, persist
from seedbed.loop.record import follow, read_log
from seedbed.loop.run import train
from seedbed.loop.task import Counting, Pace, Task, TrainingDiverged, share

__all__ = [
    "Counting",
    "Pace",
    "Task",
    "TrainingDiverged",
    "WorkerLost",
    "backend_for",
    "data_parallel",
    "follow",
    "persist",
    "read_log",
    "share",
    "train",
    "train_locally",
]
