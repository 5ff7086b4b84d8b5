"""IRN's label making (Ahn et al. 2019): boundaries of a picture, and the walk of its maps between them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seedbed.artefacts.records import weights_from
from seedbed.data.transforms import normalise
from seedbed.models.irn import STRIDE, IrnNet
from seedbed.refine.irn_settings import IrnConfig, IrnWalk
from seedbed.refine.random_walk import as_tensor, irn_affinity, walk


def irn_edge(net: nn.Module, pixels: np.ndarray, settings: IrnWalk) -> Tensor:
    """(h, w, 3) uint8 RGB -> (ceil(h / 4), ceil(w / 4)) float32 probabilities of a boundary, on the network's device.

    RECIPES, section 3: one scale, the picture and its mirror, both with zeros to the right and below up to `settings.pad`; the sigmoid of
    the mean of both logits. The network must be in inference mode.
    """
    height, width = pixels.shape[:2]
    image = normalise(pixels)
    views = torch.stack([image, image.flip(-1)]) if settings.flip else image[None]
    place = next(net.parameters()).device
    views = F.pad(views.to(place), (0, max(settings.pad - width, 0), 0, max(settings.pad - height, 0)))
    with torch.no_grad():
        logits = net(views)[0].float()[:, 0, : -(-height // STRIDE), : -(-width // STRIDE)]
    return torch.sigmoid((logits[0] + logits[1].flip(-1)) / 2 if settings.flip else logits[0])


def walked(maps_chw: Tensor, edge_hw: Tensor, size: tuple[int, int], settings: IrnWalk) -> Tensor:
    """README irn.npz: the maps (c, h', w') times (1 - edge) walk, and are enlarged to a picture of (h, w), (c, h, w).

    Enlarged 4 times (bilinear, no corner alignment) and cropped; not divided by anything. Raises ValueError where maps and edges, both at
    stride 4, differ in size.
    """
    if maps_chw.shape[1:] != edge_hw.shape:
        raise ValueError(
            f"maps of {tuple(maps_chw.shape[1:])} don't go with boundaries of {tuple(edge_hw.shape)}: both have stride {STRIDE}"
        )
    affinity = irn_affinity(edge_hw, settings.radius, settings.beta)
    out = walk(maps_chw * (1 - edge_hw), affinity, settings.steps)
    if not len(out):
        return out.new_zeros(0, *size)
    enlarged = F.interpolate(out[None], scale_factor=STRIDE, mode="bilinear", align_corners=False)[0]
    return enlarged[:, : size[0], : size[1]]


def walk_maps(net: nn.Module, pixels: np.ndarray, maps_chw: np.ndarray, config: IrnConfig) -> np.ndarray:
    """Maps (c, ceil(h / 4), ceil(w / 4)) of a picture, raised to their power before, after the walk: (c, h, w) float32, not normalized."""
    edge = irn_edge(net, pixels, config.walk)
    maps = as_tensor(maps_chw).to(edge.device, torch.float32)
    return walked(maps, edge, (pixels.shape[0], pixels.shape[1]), config.walk).cpu().numpy()


def load_irn(folder: Path, config: IrnConfig, device: str) -> IrnNet:
    """The network of a finished training's artefact, in inference mode on its device."""
    model = IrnNet(config.backbone)
    model.load_state_dict(weights_from(folder))
    return model.eval().to(device)
