"""AffinityNet's label making (Ahn and Kwak 2018): affinities of a picture, and the walk of its maps over them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seedbed.artefacts.records import weights_from
from seedbed.data.transforms import normalise
from seedbed.models.affinity import AffinityNet
from seedbed.refine.affinitynet_settings import AffinityConfig
from seedbed.refine.crf import with_background
from seedbed.refine.random_walk import affinitynet_affinity, walk


def features(net: nn.Module, pixels: np.ndarray) -> Tensor:
    """(h, w, 3) uint8 RGB -> (f, ceil(h / stride), ceil(w / stride)) float32, the network's output, on its device.

    RECIPES, section 4b: one scale, no mirror; zeros (the mean color) to the right and below up to a multiple of the stride.
    """
    image = normalise(pixels)[None].to(next(net.parameters()).device)
    with torch.no_grad():
        return net(_filled(image, int(net.stride)))[0].float()  # type: ignore[arg-type]


def pooled(maps_chw: Tensor, stride: int) -> Tensor:
    """(c, h, w) -> (c, ceil(h / stride), ceil(w / stride)): zeros to the right and below, then means of blocks (golden: `cam_low`)."""
    return F.avg_pool2d(_filled(maps_chw[None], stride), stride)[0]


def walked(f9_fhw: Tensor, maps_chw: Tensor, config: AffinityConfig, stride: int = 8) -> Tensor:
    """Golden affinitynet, `*_rw_up_labelled`. Maps (c, h, w) with their background walk over the affinities of the network's output.

    Reduced to the network's stride, walked, enlarged (bilinear, no corner alignment), cropped to (h, w).
    """
    affinity = affinitynet_affinity(F.elu(f9_fhw), config.walk_radius, config.beta)
    low = walk(pooled(maps_chw, stride), affinity, config.steps)
    height, width = maps_chw.shape[1:]
    size = low.shape[1] * stride, low.shape[2] * stride
    return F.interpolate(low[None], size, mode="bilinear", align_corners=False)[0, :, :height, :width]


def walk_maps(net: nn.Module, pixels: np.ndarray, maps_nhw: np.ndarray, config: AffinityConfig) -> np.ndarray:
    """Maps (n, h, w) in [0, 1] at the picture's size -> (n + 1, h, w) float32 after the walk, the background first.

    The background's score is (1 - largest map) ** alpha. Not normalized; the label is the position of the largest. Raises ValueError for
    maps of another size than the picture's.
    """
    if maps_nhw.shape[1:] != pixels.shape[:2]:
        raise ValueError(f"maps of {maps_nhw.shape[1:]} don't go with a picture of {pixels.shape[:2]}")
    f9 = features(net, pixels)
    maps = torch.from_numpy(with_background(maps_nhw, config.alpha)).to(f9.device)
    return walked(f9, maps, config, int(net.stride)).cpu().numpy()  # type: ignore[arg-type]


def load_affinitynet(folder: Path, config: AffinityConfig, device: str) -> AffinityNet:
    """The network of a finished training's artefact, in inference mode on its device."""
    model = AffinityNet(config.backbone)
    model.load_state_dict(weights_from(folder))
    return model.freeze_statistics().eval().to(device)


def _filled(x_nchw: Tensor, stride: int) -> Tensor:
    height, width = x_nchw.shape[2:]
    return F.pad(x_nchw, (0, -width % stride, 0, -height % stride))
