"""Companions: disjoint, in the official order, the same bits however they are made, and never further ahead than one step."""

from __future__ import annotations

import itertools
import pickle
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from seedbed.data import Store
from seedbed.data.companions import CompanionPool, CompanionSource
from seedbed.data.transforms import TrainTransform, generator

TRANSFORM = TrainTransform(resize_low=12, resize_high=20, crop=16)
MakeStore = Callable[..., Store]


def mixed(n: int) -> list[list[int] | None]:
    """Class i % 3 each; every seventh picture has no label, every fifth a second class."""
    rows: list[list[int] | None] = []
    for i in range(n):
        row = [int(i % 3 == c) for c in range(3)]
        if i % 5 == 0:
            row[(i + 1) % 3] = 1
        rows.append(None if i % 7 == 6 else row)
    return rows


@pytest.fixture
def store(make_store: MakeStore) -> Store:
    return make_store(mixed(40))


def source(store: Store, batch: int = 4, **more: object) -> CompanionSource:
    return CompanionSource(store, "all", TRANSFORM, batch, 0, **more)  # type: ignore[arg-type]


LABEL = np.array([1, 0, 0], np.uint8)


@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), max_size=20), st.lists(st.booleans(), min_size=4, max_size=4))
def test_disjoint(rows: list[list[bool]], target: list[bool]) -> None:
    labels = np.array(rows, bool).reshape(-1, 4)
    pool = CompanionPool(labels, [str(i) for i in range(len(rows))])
    wanted = [str(i) for i, row in enumerate(rows) if not any(a and b for a, b in zip(row, target, strict=True))]
    assert list(pool.disjoint(np.array(target))) == wanted
    assert pool.disjoint_counts(np.array([target])).tolist() == [len(wanted)]


def test_pool(store: Store) -> None:
    found = source(store)
    candidates = list(found.candidates("p0000", LABEL))
    assert candidates and "p0000" not in candidates and len(set(candidates)) == len(candidates)
    assert all(store[i].labels is not None and not (store[i].labels & LABEL).any() for i in candidates)
    everyone = list(source(store, disjoint=False).candidates("p0000", LABEL))
    assert "p0000" not in everyone and len(everyone) == int(store.has_label(store.ids()).sum()) - 1
    assert list(source(store, limit=10).pool.ids) == [i for i in store.ids()[::4] if store[i].labels is not None]
    named = CompanionSource(store, ["p0003", "p0001", "p0006"], TRANSFORM, 4, 0)
    assert list(named.pool.ids) == ["p0003", "p0001"], "ids themselves, those without label left out"


def test_one_pass_without_replacement_then_another(store: Store) -> None:
    reshuffled, stopped = source(store), source(store, exhausted="stop")
    n = len(reshuffled.candidates("p0000", LABEL))
    whole = n // 4
    first = list(stopped.order("p0000", LABEL))
    assert len(first) == whole and all(len(ids) == 4 for ids in first), "what is left over is dropped"
    flat = list(itertools.chain(*first))
    assert len(set(flat)) == len(flat)
    endless = list(itertools.islice(reshuffled.order("p0000", LABEL), 3 * whole))
    assert endless[:whole] == first, "equal to the official run as long as that one goes on"
    second = list(itertools.chain(*endless[whole : 2 * whole]))
    assert len(set(second)) == len(second) and second != flat
    assert first != list(stopped.order("p0003", LABEL)) and first != list(
        CompanionSource(store, "all", TRANSFORM, 4, 1, "stop").order("p0000", LABEL)
    )


def test_batches_do_not_depend_on_anything_else(store: Store) -> None:
    def batches(made: CompanionSource, target: str = "p0000") -> list[tuple[torch.Tensor, torch.Tensor]]:
        found = made.for_target(target, LABEL, steps=5)
        assert found is not None
        return list(found)

    one = source(store)
    expected = batches(one)
    assert len(expected) == 5
    again = source(store, threads=3)
    batches(again, "p0003")  # what was done before
    for others in (batches(again), batches(pickle.loads(pickle.dumps(one)))):
        assert all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(expected, others, strict=True))
    for (images, labels), (step, ids) in zip(expected, enumerate(one.order("p0000", LABEL)), strict=False):
        assert images.shape == (4, 3, 16, 16) and images.dtype == labels.dtype == torch.float32
        assert labels.tolist() == store.labels(ids).tolist() and not (labels.numpy() * LABEL).any()
        for image, ident in zip(images, ids, strict=True):
            assert torch.equal(image, TRANSFORM(store[ident].pixels(), generator(0, "companions/p0000", ident, step)))


def test_ends(store: Store) -> None:
    n = len(source(store).candidates("p0000", LABEL))
    assert source(store, batch=0).for_target("p0000", LABEL) is None, "a batch of 0: no companions"
    for exhausted in ("stop", "reshuffle"):
        too_large = source(store, batch=n + 1, exhausted=exhausted).for_target("p0000", LABEL)
        assert too_large is not None and next(too_large, None) is None
        exact = source(store, batch=n, exhausted=exhausted).for_target("p0000", LABEL)
        assert exact is not None and len(list(itertools.islice(exact, 3))) == (1 if exhausted == "stop" else 3)
    assert len(list(source(store, exhausted="stop").for_target("p0000", LABEL) or ())) == n // 4
    assert list(source(store).for_target("p0000", LABEL, steps=0) or ()) == []


def test_one_step_ahead_and_no_further(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []
    getitem = Store.__getitem__
    monkeypatch.setattr(Store, "__getitem__", lambda self, ident: (decoded.append(ident), getitem(self, ident))[1])
    made = source(store)
    found = made.for_target("p0000", LABEL)
    assert found is not None and not decoded, "nothing before the first step"
    for step in range(1, 4):
        next(found)
        until = time.monotonic() + 10
        while len(decoded) < 4 * (step + 1) and time.monotonic() < until:
            time.sleep(0.002)
        assert len(decoded) == 4 * (step + 1), "the next step's pictures are made while this one is worked on"
        time.sleep(0.02)
        assert len(decoded) == 4 * (step + 1), "and none beyond"
    found.close()
    assert len(decoded) == 16
    decoded.clear()
    assert len(list(made.for_target("p0003", LABEL, steps=2) or ())) == 2 and len(decoded) == 8, "none beyond the last step"


def test_left_early(store: Store) -> None:
    """Most runs end before the last step: what was begun is given up, and the next target is not held up."""
    made = source(store, threads=2)
    before = threading.active_count()
    for _ in range(20):
        found = made.for_target("p0000", LABEL)
        assert found is not None
        next(found)
        del found
    assert threading.active_count() <= before + 2


def test_damaged_companion(make_store: MakeStore, flipped: Callable) -> None:
    from seedbed.data import open_store

    whole = make_store([[1, 0], [0, 1], [0, 1]])
    path = whole.path / whole.info.files[0]["name"]
    flipped(path, path.read_bytes().index(bytes(whole["p0002"].picture)) + 300)
    damaged = open_store(whole.path)
    found = CompanionSource(damaged, "all", TRANSFORM, 2, 0).for_target("p0000", np.array([1, 0]))
    assert found is not None
    images, labels = next(found)  # the other candidate takes its place, and no good picture pays for a bad one
    assert torch.equal(labels, torch.tensor([[0.0, 1.0], [0.0, 1.0]]))
    again = CompanionSource(damaged, "all", TRANSFORM, 2, 0).for_target("p0000", np.array([1, 0]))
    assert again is not None and torch.equal(images, next(again)[0])
