"""DeepLab-v2's input at several scales, where a picture is so thin that a side would vanish."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from seedbed.models.deeplab import DeepLabV2, shrunk
from seedbed.segment.predict import predict, probabilities
from seedbed.segment.settings import SegmenterConfig


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1)])
def test_a_side_of_one_pixel(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model, config = DeepLabV2(3, 50, blocks=(1, 1, 1, 1)).eval(), SegmenterConfig(crf="none", test_scales=(0.5, 1.0), test_flip=True)
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    prob = probabilities(model, pixels, config)
    assert tuple(prob.shape) == (3, *size) and bool(torch.isfinite(prob).all())
    assert predict(model, pixels, config).shape == size
    image = torch.rand(1, 3, *size)
    for scale in (0.5, 0.75, 0.1):
        small = shrunk(image, scale)
        assert tuple(small.shape[-2:]) == tuple(max(1, int(side * scale)) for side in size)
        assert image.min() - 1e-6 <= small.min() and small.max() <= image.max() + 1e-6, "nothing but the picture itself is seen"
        long = image.expand(1, 3, *(40 if side == 1 else side for side in size))
        thick = shrunk(long, scale)[..., : small.shape[-2], : small.shape[-1]]
        torch.testing.assert_close(small, thick, msg="a side of 1 stands for any length of the same")


def test_longer_sides_are_shrunk_as_ever() -> None:
    image = torch.rand(2, 3, 11, 2)
    expected = torch.nn.functional.interpolate(image, scale_factor=0.75, mode="bilinear", recompute_scale_factor=False)
    assert torch.equal(shrunk(image, 0.75), expected)
