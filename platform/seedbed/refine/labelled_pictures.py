"""Pictures with the label maps of an artefact, as a refinement's network is trained on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from seedbed.artefacts import Fragments
from seedbed.artefacts.records import decode_png, scores_from
from seedbed.data.store import open_store
from seedbed.data.transforms import generator
from seedbed.types import UserError


class LabelledPictures:
    """Decoded pairs by id, and their order. A picture without a label, with one of another size, or that can't be decoded is set aside by
    name (in `set_aside`, which the caller hands in) and the next one takes its place, so that a step depends on nothing but its number.
    """

    def __init__(
        self,
        store: str,
        cache: str | None,
        labels: Path,
        ids: Sequence[str],
        set_aside: dict[str, str],
        megabytes: int,
        stage: str,
        seed: int,
        called: str = "label to train on",
    ) -> None:
        self.store, self.records = open_store(store, cache=cache), Fragments(labels)
        self.folder, self.stage, self.seed, self.set_aside = labels, stage, seed, set_aside
        self.called, self.several = called, called.replace("label", "labels")
        self.ids = [ident for ident in ids if ident in self.records]
        set_aside.update({ident: f"no {called}" for ident in ids if ident not in self.records})
        self._decoded: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._room = megabytes << 20

    def steps(self, batch: int, flag: str) -> int:
        """Of one epoch; fewer pictures than a batch are a UserError on `flag`."""
        steps = len(self.ids) // batch
        if steps == 0:
            message = f"{len(self.ids)} pictures have {self.several}, fewer than a batch of {batch}"
            remedy = f"say {flag} {max(len(self.ids), 1)} or less, or name a larger split with --data.map-split"
            raise UserError(message, file=self.folder, field=flag, remedy=remedy)
        return steps

    def identity(self) -> list[str]:
        """What of them decides a training: a checksum of the pictures, then one of each label."""
        return [self.store.inputs_checksum(self.ids), *(self.records.hashes[ident] for ident in self.ids)]

    def order(self, epoch: int) -> list[str]:
        """The pictures as an epoch takes them."""
        return [self.ids[i] for i in generator(self.seed, self.stage, "", epoch).permutation(len(self.ids))]

    def at(self, order: Sequence[str], row: int) -> tuple[str, np.ndarray, np.ndarray]:
        """Id, pixels and labels of a row of the order, or of the next one that has both."""
        for ident in (*order[row:], *order[:row]):
            found = self.pair(ident)
            if found is not None:
                return ident, *found
        remedy = f"make the store again from a whole devkit, and the {self.several} from it"
        raise UserError(f"no picture with a {self.called} can be used", file=self.folder, field="picture", remedy=remedy)

    def labels(self, ident: str) -> np.ndarray:
        """(h, w) uint8."""
        return decode_png(self.records[ident]["label_map"])

    def pair(self, ident: str) -> tuple[np.ndarray, np.ndarray] | None:
        """(h, w, 3) uint8 and the labels; None where it is set aside."""
        found = self._decoded.get(ident)
        if found is not None or ident in self.set_aside:
            return found
        try:
            pixels, labels = self.store[ident].pixels(), self.labels(ident)
        except Exception as error:  # one bad picture never ends a run
            reason = error.message if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            self.set_aside[ident] = reason.splitlines()[0][:300]
            return None
        if labels.shape[-2:] != pixels.shape[:2]:
            sizes = (f"{height} x {width}" for height, width in (labels.shape[-2:], pixels.shape[:2]))
            self.set_aside[ident] = "its label has {} pixels, the picture {}".format(*sizes)
            return None
        if pixels.nbytes + labels.nbytes <= self._room:
            self._room -= pixels.nbytes + labels.nbytes
            self._decoded[ident] = pixels, labels
        return pixels, labels


class ScoredPictures(LabelledPictures):
    """With the scores that the labels are made of after the crop."""

    def labels(self, ident: str) -> np.ndarray:
        """(2, n + 1, h, w) uint16, see `scores_from`."""
        return scores_from(self.records[ident])


def window(side: int, crop: int, rng: np.random.Generator) -> tuple[slice, slice]:
    """Of one side: the part of the picture that is kept, and where in the crop it comes to lie; uniform over all places."""
    offset = int(rng.integers(abs(side - crop), endpoint=True))
    if side > crop:
        return slice(offset, offset + crop), slice(0, crop)
    return slice(0, side), slice(offset, offset + side)
