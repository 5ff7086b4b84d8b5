"""Predictions of a trained segmenter: scales and mirrors averaged, optional dense CRF, one picture at a time, nothing of it kept."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from seedbed.artefacts.records import label_record, weights_from
from seedbed.data.transforms import MEAN, STD
from seedbed.models.segmenter import Segmenter
from seedbed.segment.augment import DeepLabCrop, network_input, scaled_size
from seedbed.segment.networks import build_segmenter
from seedbed.segment.resample import cubic, linear, sampled
from seedbed.segment.settings import SegmenterConfig

Record = dict[str, Any]


def load_segmenter(folder: Path, config: SegmenterConfig, num_classes: int, device: str = "cpu") -> Segmenter:
    """The network of a finished segmenter stage, for inference; num_classes with background."""
    model = build_segmenter(config, num_classes)
    model.load_state_dict(weights_from(folder))
    return model.eval().to(device)


@torch.no_grad()
def probabilities(model: Segmenter, pixels: np.ndarray, config: SegmenterConfig) -> Tensor:
    """A picture (h, w, 3) uint8 RGB to (c, h, w) float32 on the model's device, c with background: softmax of the mean class scores."""
    device = next(model.parameters()).device
    shape = (pixels.shape[0], pixels.shape[1])
    total: Tensor | None = None
    for scale in config.test_scales:
        image = torch.from_numpy(scaled_input(model, pixels, scale)).to(device)
        views = torch.stack([image, image.flip(-1)]) if config.test_flip else image[None]
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            scores = model(views)
        scores = _enlarged(scores.float(), views.shape[-2:], model.align_corners)
        scores = _enlarged(scores, shape, model.align_corners)
        merged = scores[0] + scores[1].flip(-1) if config.test_flip else scores[0]
        total = merged if total is None else total.add_(merged)
    assert total is not None
    passes = len(config.test_scales) * (2 if config.test_flip else 1)
    return total.div_(passes).softmax(0)


def predict(model: Segmenter, pixels: np.ndarray, config: SegmenterConfig) -> np.ndarray:
    """(h, w) uint8 label map, 0 background, class index + 1; after the dense CRF where the settings say so."""
    prob_chw = probabilities(model, pixels, config)
    if config.crf == "none":
        return prob_chw.argmax(0).to(torch.uint8).cpu().numpy()
    from seedbed.refine.crf import segmentation_crf

    refined = segmentation_crf(crf_picture(pixels, config.crf), prob_chw.cpu().numpy(), form=config.crf)
    return refined.argmax(0).astype(np.uint8)


def scaled_input(model: Segmenter, pixels: np.ndarray, scale: float) -> np.ndarray:
    """(3, h', w') float32: what the network sees of a picture at a scale, resized after normalising as the official codes do."""
    image = network_input(pixels, model.input)
    if scale == 1.0:
        return image
    step: float | None
    if model.resizing == "cubic":
        (height, width), taps, step = scaled_size(pixels.shape, scale), cubic, 1 / scale
    else:
        (height, width), taps, step = DeepLabCrop.size(pixels.shape, scale), linear, None
    down, across = taps(pixels.shape[0], height, step), taps(pixels.shape[1], width, step)
    return np.ascontiguousarray(sampled(image.transpose(1, 2, 0), down, across).transpose(2, 0, 1))


def crf_picture(pixels: np.ndarray, form: Literal["deeplab", "yudewang"]) -> np.ndarray:
    """What the CRF sees: the picture; in YudeWang's codebase the normalised one turned back in float32 and truncated, so that many values
    are one lower."""
    if form == "deeplab":
        return pixels
    image = network_input(pixels, "rgb").transpose(1, 2, 0)
    back = (image * np.array(STD, np.float32) + np.array(MEAN, np.float32)) * np.float32(255)
    return np.clip(back, 0, 255).astype(np.uint8)


def _enlarged(scores_nchw: Tensor, size: Any, align_corners: bool) -> Tensor:
    if tuple(scores_nchw.shape[-2:]) == tuple(size):
        return scores_nchw
    return F.interpolate(scores_nchw, tuple(size), mode="bilinear", align_corners=align_corners)


@dataclass(frozen=True)
class PredictWork:
    """A picture's label map by a trained segmenter."""

    light: ClassVar[bool] = False

    store: str
    cache: str | None
    segmenter: Path
    """Folder of the segmenter's artefact."""
    config: SegmenterConfig
    num_classes: int
    """With background."""
    device: str
    threads: int

    def open(self) -> Callable[[str], Record]:
        from seedbed.data import open_store

        torch.set_num_threads(self.threads)
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = self.config.precision == "tf32"
        store = open_store(self.store, cache=self.cache)
        model = load_segmenter(self.segmenter, self.config, self.num_classes, self.device)
        if self.config.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

        def work(ident: str) -> Record:
            began = time.perf_counter()
            labels = predict(model, store[ident].pixels(), self.config)
            return label_record(ident, labels, time.perf_counter() - began)

        return work
