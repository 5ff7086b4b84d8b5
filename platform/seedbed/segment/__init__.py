"""The segmenter: its settings, its training as a task of the loop, its predictions."""

from seedbed.segment.predict import PredictWork, load_segmenter, predict
from seedbed.segment.settings import SegmenterConfig
from seedbed.segment.task import SegmenterTask

__all__ = ["PredictWork", "SegmenterConfig", "SegmenterTask", "load_segmenter", "predict"]
