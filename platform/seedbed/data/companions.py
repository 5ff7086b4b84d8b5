"""RIB's other pictures: chosen from a class index, decoded and augmented ahead of the step that needs them.

A target's companions depend on the random seed, the target and the pool alone, never on workers or on what was done before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from seedbed.data.settings import evenly
from seedbed.data.store import Store
from seedbed.data.transforms import TrainTransform, generator
from seedbed.types import UserError

Exhausted = Literal["reshuffle", "stop"]


class CompanionPool:
    """Pictures by the classes they hold: who shares none with a target is one look at the index."""

    def __init__(self, labels_nc: np.ndarray, ids: Sequence[str]) -> None:
        if len(labels_nc) != len(ids):
            raise ValueError(f"{len(labels_nc)} rows of labels for {len(ids)} ids")
        self.ids = np.asarray(ids, dtype=object)
        self._held_cn = np.ascontiguousarray(np.asarray(labels_nc, bool).T)

    def __len__(self) -> int:
        return len(self.ids)

    def disjoint(self, labels_c: np.ndarray) -> np.ndarray:
        """Ids, in the order of the pool, of the pictures that share no class with these labels. A picture without any class shares none."""
        return self.ids[~self._held_cn[np.asarray(labels_c, bool)].any(axis=0)]

    def disjoint_counts(self, labels_nc: np.ndarray) -> np.ndarray:
        """(n,) int64: the size of the pool that each of these targets would have."""
        held = self._held_cn.astype(np.float32)
        return ((np.asarray(labels_nc, np.float32) @ held) == 0).sum(axis=1)


class CompanionSource:
    """Batches of companions for one target after the other.

    For a target the pool (labelled pictures of the split without the target; with `disjoint` only those without a common class) is shuffled
    and handed out without replacement; what is left over at the end is dropped. Then `exhausted` decides: "reshuffle" begins a new pass,
    "stop" ends, as the official code does. A pool smaller than one batch has no batch in either case: the iterator ends at once.
    """

    def __init__(
        self,
        store: Store,
        split: str | Sequence[str],
        transform: TrainTransform,
        batch: int,
        seed: int,
        exhausted: Exhausted = "reshuffle",
        disjoint: bool = True,
        threads: int = 1,
        limit: int = 0,
    ) -> None:
        """`split`: a name (then at most `limit` of it, as `DataConfig.select` takes them), or the ids themselves.

        `threads` decode and augment; they change no bit.
        """
        ids = evenly(store.ids(split), limit) if isinstance(split, str) else list(split)
        ids = [ident for ident, labelled in zip(ids, store.has_label(ids), strict=True) if labelled]
        self.store, self.transform, self.batch, self.seed = store, transform, batch, seed
        self.exhausted, self.disjoint, self.threads = exhausted, disjoint, threads
        self.pool = CompanionPool(store.labels(ids), ids)
        self._threads: ThreadPoolExecutor | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_threads": None}

    def candidates(self, target: str, labels_c: np.ndarray) -> np.ndarray:
        """Ids that may be a target's companions, in the order of the split."""
        ids = self.pool.disjoint(labels_c) if self.disjoint else self.pool.ids
        return ids[ids != target]

    def order(self, target: str, labels_c: np.ndarray) -> Iterator[list[str]]:
        """The ids of each step's companions, nothing decoded. Endless under "reshuffle" unless the pool is smaller than a batch."""
        ids = self.candidates(target, labels_c)
        whole = len(ids) // self.batch if self.batch else 0
        visit = 0
        while whole and (visit == 0 or self.exhausted == "reshuffle"):
            shuffled = ids[generator(self.seed, "companions", target, visit).permutation(len(ids))]
            for start in range(0, whole * self.batch, self.batch):
                yield list(shuffled[start : start + self.batch])
            visit += 1

    def for_target(self, target: str, labels_c: np.ndarray, steps: int | None = None) -> Iterator[tuple[Tensor, Tensor]] | None:
        """Per step images (b, 3, s, s) float32 and labels (b, c) float32; None where the batch size is 0.

        The next step's batch is made while the caller works on this one, and none beyond it; with `steps` given, none beyond those.
        """
        return self._batches(target, labels_c, steps) if self.batch else None

    def _batches(self, target: str, labels_c: np.ndarray, steps: int | None) -> Iterator[tuple[Tensor, Tensor]]:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self.threads, thread_name_prefix="companions")
        order = self.order(target, labels_c)
        over = Event()
        step = 0

        def begin() -> list[Future[tuple[str, Tensor]]]:
            """Hands the next step's pictures to the threads; an empty list at the end."""
            nonlocal step
            ids = next(order, []) if steps is None or step < steps else []
            begun = [self._threads.submit(self._image, over, target, labels_c, ident, step) for ident in ids]  # type: ignore[union-attr]
            pending.append(begun)
            step += 1
            return begun

        pending: list[list[Future[tuple[str, Tensor]]]] = []
        try:
            begin()
            while pending[0]:
                begin()
                made = [image.result() for image in pending.pop(0)]
                labels = torch.from_numpy(self.store.labels([ident for ident, _ in made]).astype(np.float32))
                yield torch.stack([image for _, image in made]), labels
        finally:
            over.set()
            for images in pending:
                for image in images:
                    image.cancel()

    def _image(self, over: Event, target: str, labels_c: np.ndarray, ident: str, step: int) -> tuple[str, Tensor]:
        """The companion, or, where its picture can't be decoded, the next candidate of the split that can: a bad picture costs no other."""
        if over.is_set():
            raise RuntimeError("nobody waits for this picture any more")
        first: UserError | None = None
        ids = self.candidates(target, labels_c)
        at = int(np.flatnonzero(ids == ident)[0]) if len(ids) else 0
        for candidate in (ident, *ids[at + 1 :], *ids[:at]):
            try:
                pixels = self.store[str(candidate)].pixels()
            except UserError as error:
                first = first or error
                continue
            return str(candidate), self.transform(pixels, generator(self.seed, f"companions/{target}", str(candidate), step))
        assert first is not None
        raise first
