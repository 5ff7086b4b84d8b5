"""The sparse walk beside the dense one: golden numbers, any size and radius, what can't walk, and memory."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import plain_random_walk as plain
import pytest
import torch

from seedbed.refine.paths import directions, paths, source_grid, source_indices
from seedbed.refine.random_walk import Affinity, affinitynet_affinity, affinitynet_radius, irn_affinity, largest_on_paths, walk

MATRIX, RESULT, PAIR = {"rtol": 0, "atol": 5e-4}, {"rtol": 0, "atol": 2e-4}, {"rtol": 0, "atol": 1e-5}


# --- golden numbers ----------------------------------------------------------------------------------


@pytest.mark.golden
def test_irn_walk(golden: Any) -> None:
    case = golden("irn")
    edge, radius, beta, times = case["edge"][0], int(case["radius"]), float(case["beta"]), 2 ** int(case["exp_times"])
    padded = torch.from_numpy(case["edge_padded"])
    np.testing.assert_allclose(1 - largest_on_paths(padded, radius)[0], case["affinity_sparse"], **PAIR)
    np.testing.assert_allclose(irn_affinity(edge, radius, 1).dense(), case["affinity_dense"], **PAIR)
    affinity = irn_affinity(edge, radius, beta)
    np.testing.assert_allclose(affinity.transition(), case["transition_times0"], **PAIR)
    np.testing.assert_allclose(torch.linalg.matrix_power(affinity.transition(), times), case["transition"], **MATRIX)
    np.testing.assert_allclose(walk(case["x"] * (1 - edge), affinity, times), case["rw"][:, 0], **RESULT)


@pytest.mark.golden
def test_affinitynet_walk(golden: Any) -> None:
    case = golden("affinitynet")
    features = torch.nn.functional.elu(torch.from_numpy(case["f9"][0]))
    radius = int(case["radius"])
    np.testing.assert_allclose(affinitynet_affinity(features, radius, 1).dense(), case["aff_dense"], **PAIR)
    h, w = features.shape[1:]
    rows, columns = source_grid((h, w), radius)
    sources = affinitynet_affinity(features, radius, 1).weights_dhw[:, :rows, radius - 1 : radius - 1 + columns]
    np.testing.assert_allclose(sources.flatten(1), case["aff_sparse"][0], **PAIR)
    _, beta, squarings = case["hfpl_params_alpha_beta_logt"]  # the stored maps are those of this background
    affinity = affinitynet_affinity(features, radius, float(beta))
    np.testing.assert_allclose(torch.linalg.matrix_power(affinity.transition(), 2 ** int(squarings)), case["hfpl_transition"], **MATRIX)
    np.testing.assert_allclose(walk(case["cam_low"], affinity, 2 ** int(squarings)), case["hfpl_rw_low"], **RESULT)
    assert affinitynet_radius(case["small_f9"].shape[2:], radius) == int(case["small_radius_hfpl"])


@pytest.mark.golden
@pytest.mark.parametrize("name", ["r5", "r10"])
def test_paths_and_pairs(golden: Any, name: str) -> None:
    case = golden("irn")
    radius = int(case[f"{name}_radius_floor"]) + 1
    np.testing.assert_array_equal([path.destination for path in paths(radius)], case[f"{name}_search_dst"])
    found = [list(group) for _, group in itertools.groupby(paths(radius), lambda path: len(path.cells))]
    assert len(found) == case[f"{name}_n_groups"]
    for number, group in enumerate(found):
        np.testing.assert_array_equal([path.cells for path in group], case[f"{name}_search_paths_g{number}"])
    size = tuple(int(side) for side in case[f"{name}_default_size"])
    sources = source_indices(size, radius)
    np.testing.assert_array_equal(sources, case[f"{name}_src_indices"])
    steps = np.array([path.destination for path in paths(radius)]) @ [size[1], 1]
    np.testing.assert_array_equal(steps[:, None] + sources, case[f"{name}_dst_indices"])


# --- beside the dense walk ---------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 1), (3, 4), (9, 9), (13, 10), (24, 7)])
@pytest.mark.parametrize("radius", [1, 2, 3, 5, 8])
def test_irn_is_the_dense_walk(size: tuple[int, int], radius: int) -> None:
    rng = np.random.default_rng([*size, radius])
    edge, maps = rng.random(size, np.float32) ** 2, rng.random((3, *size), np.float32)
    matrix = plain.irn_matrix(edge.astype(np.float64), radius)
    np.testing.assert_allclose(irn_affinity(edge, radius, 1).dense(), matrix, atol=1e-6)
    found = walk(maps, irn_affinity(edge, radius, 4), 2**5)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, plain.walk(maps.astype(np.float64), matrix, 4, 5), atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (3, 3), (5, 40), (8, 10), (11, 11), (14, 12)])
def test_affinitynet_is_the_dense_walk(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(size)
    features, maps = rng.normal(size=(6, *size)).astype(np.float32), rng.random((2, *size), np.float32)
    matrix = plain.affinitynet_matrix(features.astype(np.float64), 5)
    np.testing.assert_allclose(affinitynet_affinity(features, 5, 1).dense(), matrix, atol=1e-6)
    found = walk(maps, affinitynet_affinity(features, 5, 8), 2**6)
    np.testing.assert_allclose(found, plain.walk(maps.astype(np.float64), matrix, 8, 6), atol=1e-6)


def random_affinity(size: tuple[int, int], radius: int = 4, seed: int = 0) -> Affinity:
    return irn_affinity(np.random.default_rng(seed).random(size).astype(np.float64), radius, 2.5)


def test_double_precision_and_tensors() -> None:
    """What goes in says what comes out; the maps handed in stay as they are."""
    maps = np.random.default_rng(1).random((2, 9, 11))
    before, affinity = maps.copy(), random_affinity((9, 11))
    found = walk(maps, affinity, 16)
    assert found.dtype == np.float64 and isinstance(walk(torch.from_numpy(maps), affinity, 16), torch.Tensor)
    np.testing.assert_array_equal(maps, before)
    exact = maps.reshape(2, -1) @ np.linalg.matrix_power(affinity.transition().numpy(), 16)
    np.testing.assert_allclose(found.reshape(2, -1), exact, atol=1e-12 * 4)


def test_a_walk_is_linear_keeps_constants_and_composes() -> None:
    """The rows of a step's weights add up to one; walks follow one another; classes don't see each other."""
    affinity, rng = random_affinity((12, 9)), np.random.default_rng(2)
    one, two = rng.random((2, 1, 12, 9))
    np.testing.assert_allclose(walk(np.full((1, 12, 9), 3.0), affinity, 64), 3.0, atol=1e-9)
    np.testing.assert_allclose(walk(walk(one, affinity, 5), affinity, 7), walk(one, affinity, 12), atol=1e-10)
    np.testing.assert_allclose(walk(2 * one + two, affinity, 9), 2 * walk(one, affinity, 9) + walk(two, affinity, 9), atol=1e-10)
    np.testing.assert_array_equal(walk(np.concatenate([one, two]), affinity, 9)[1:], walk(two, affinity, 9))
    found = walk(one, affinity, 30)
    assert one.min() <= found.min() and found.max() <= one.max()


def test_nothing_crosses_a_closed_edge() -> None:
    edge = np.zeros((8, 11))
    edge[:, 5] = 1.0
    maps = np.zeros((1, 8, 11))
    maps[:, :, :5] = 1.0
    found = walk(maps, irn_affinity(edge, 5, 10), 256)
    np.testing.assert_allclose(found, maps, atol=1e-9)


GATHERED = [("irn", size, radius) for size in [(1, 1), (1, 9), (7, 1), (3, 4), (10, 7), (24, 7)] for radius in (1, 2, 4, 8)]
GATHERED += [("affinitynet", size, 5) for size in [(1, 1), (2, 5), (3, 3), (5, 40), (14, 12)]]


@pytest.mark.parametrize(("kind", "size", "radius"), GATHERED)
def test_the_gathered_steps_of_a_gpu_are_the_same(kind: str, size: tuple[int, int], radius: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where no pixel has a partner: IRN's radius 1, and AffinityNet's maps with a side of two or less."""
    from seedbed.refine import random_walk

    rng = np.random.default_rng([*size, radius])
    maps = rng.random((2, *size))
    affinity = random_affinity(size, radius) if kind == "irn" else affinitynet_affinity(rng.normal(size=(6, *size)), radius, 8)
    plainly = walk(maps, affinity, 33)
    monkeypatch.setattr(random_walk, "_steps", random_walk._steps_gathered)
    np.testing.assert_allclose(walk(maps, affinity, 33), plainly, atol=1e-12)


def test_tiles_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    maps, affinity = np.random.default_rng(5).random((2, 13, 9)), random_affinity((13, 9))
    whole = walk(maps, affinity, 21)
    for tile in (1, 7, 50):
        monkeypatch.setattr("seedbed.refine.random_walk.TILE", tile)
        np.testing.assert_array_equal(walk(maps, affinity, 21), whole)


def test_any_map_walks_as_the_dense_matrix_says() -> None:
    """Sizes, radii, exponents, and edges at both ends of their range and at faint distances from them."""
    pytest.importorskip("hypothesis")
    from hypothesis import given, settings
    from hypothesis import strategies as st

    values = st.sampled_from([0.0, 1.0, 1e-30, 1 - 1e-7, 0.5]) | st.floats(0, 1)

    @settings(max_examples=60)
    @given(st.data(), st.integers(1, 8), st.integers(1, 8), st.integers(1, 7), st.floats(0.1, 20), st.integers(0, 7))
    def check(data: Any, h: int, w: int, radius: int, beta: float, squarings: int) -> None:
        edge, one = (np.array(data.draw(st.lists(values, min_size=h * w, max_size=h * w))).reshape(h, w) for _ in range(2))
        affinity = irn_affinity(edge, radius, beta)
        np.testing.assert_allclose(affinity.dense(), plain.irn_matrix(edge, radius) ** beta, atol=1e-12)
        found = walk(one[None], affinity, 2**squarings)
        np.testing.assert_allclose(found, plain.walk(one[None], plain.irn_matrix(edge, radius), beta, squarings), atol=1e-9)
        assert one.min() - 1e-12 <= found.min() and found.max() <= one.max() + 1e-12

    check()


def test_directions_hold_every_pair_once() -> None:
    for radius in range(1, 12):
        found = directions(radius)
        both = {*found, *((-dy, -dx) for dy, dx in found), (0, 0)}
        reach = range(-radius, radius + 1)
        near = {(dy, dx) for dy in reach for dx in reach if dy * dy + dx * dx < radius * radius}
        assert both == near and len(both) == 2 * len(found) + 1
        for path in paths(radius):
            assert path.cells[0] == path.destination and path.cells[-1] == (0, 0)
            assert set(path.cells) == set(plain.path(*path.destination))


# --- what can't walk, and what is empty ------------------------------------------------------------------


def test_maps_of_another_size() -> None:
    with pytest.raises(ValueError, match=r"can't walk over affinities of \(9, 11\)"):
        walk(np.zeros((1, 9, 10)), random_affinity((9, 11)), 4)
    with pytest.raises(ValueError, match="-1 steps"):
        walk(np.zeros((1, 9, 11)), random_affinity((9, 11)), -1)
    with pytest.raises(TypeError, match="uint8"):
        walk(np.zeros((1, 9, 11), np.uint8), random_affinity((9, 11)), 1)
    with pytest.raises(ValueError, match="two dimensions"):
        irn_affinity(np.zeros((1, 4, 4)), 3, 1)
    with pytest.raises(ValueError, match="three dimensions"):
        affinitynet_affinity(np.zeros((4, 4)), 3, 1)


def test_no_class_and_no_step() -> None:
    affinity = random_affinity((5, 6))
    assert walk(np.zeros((0, 5, 6)), affinity, 8).shape == (0, 5, 6)
    maps = np.random.default_rng(0).random((1, 5, 6))
    same = walk(maps, affinity, 0)
    np.testing.assert_array_equal(same, maps)
    assert same is not maps
    np.testing.assert_array_equal(walk(np.zeros((2, 5, 6)), affinity, 8), 0)


def test_faint_numbers_cost_no_time_and_no_exactness() -> None:
    """A lone peak among strong edges: affinities down to 1e-40 and values that fade away."""
    rng = np.random.default_rng(4)
    edge = 1 - rng.random((20, 20)) * 1e-3
    maps = np.zeros((1, 20, 20))
    maps[0, 10, 10] = 1
    affinity = irn_affinity(edge, 5, 10)
    exact = maps.reshape(1, -1) @ np.linalg.matrix_power(affinity.transition().numpy(), 256)
    np.testing.assert_allclose(walk(maps, affinity, 256).reshape(1, -1), exact, atol=1e-14)


MEMORY = """
import resource, sys
import numpy as np
sys.path.insert(0, sys.argv[1])
from seedbed.refine.random_walk import irn_affinity, walk
resource.setrlimit(resource.RLIMIT_DATA, (int(sys.argv[2]), int(sys.argv[2])))
side = int(sys.argv[3])
rng = np.random.default_rng(0)
edge, maps = rng.random((side, side), np.float32), rng.random((2, side, side), np.float32)
found = walk(maps, irn_affinity(edge, 5, 10), int(sys.argv[4]))
assert np.isfinite(found).all() and found.max() <= 1
print(found.shape)
"""


@pytest.mark.parametrize(
    ("side", "limit", "steps"), [(250, 1 << 30, 16), pytest.param(1000, 8 << 30, 4, marks=pytest.mark.slow)], ids=["stride 4", "full size"]
)
def test_a_picture_of_1000_x_1000_fits(side: int, limit: int, steps: int) -> None:
    """At the stride of 4 that IRN walks at the dense matrix takes 15.6 GB, at full size 4 TB."""
    source = str(Path(__file__).resolve().parents[2] / "platform")
    run = subprocess.run(
        [sys.executable, "-c", MEMORY, source, str(limit), str(side), str(steps)], capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr[-2000:]
