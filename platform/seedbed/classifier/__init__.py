"""The classifier behind all maps: its settings, and its training as a task of the loop."""

from seedbed.classifier.settings import ClassifierConfig
from seedbed.classifier.task import ClassifierTask

__all__ = ["ClassifierConfig", "ClassifierTask"]
