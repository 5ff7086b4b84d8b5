"""Which store, and which pictures of it: the settings that every experiment on real pictures has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from seedbed.config import Settings, bounded, setting

if TYPE_CHECKING:
    from seedbed.data.store import Store


@dataclass(frozen=True)
class DataConfig(Settings):
    """Store and splits. What a store holds enters the keys by checksum, never by its address."""

    store: str = setting("", key=False)
    """Sample store: a folder, or the address of one on any file system that pyarrow knows (s3://, gs://, hdfs://, file://)."""
    train_split: str = "trainaug"
    """Pictures that the classifier is trained on. RIB, IRN: trainaug."""
    map_split: str = "trainaug"
    """Pictures that get maps and pseudo-labels. RIB: trainaug."""
    companion_split: str = "trainaug"
    """Pictures that RIB takes its companions from. RIB: trainaug."""
    score_split: str = "train"
    """Pictures whose seeds are scored. RIB: train."""
    segment_splits: tuple[str, ...] = ("train", "val")
    """Splits that the segmenter is scored on. RIB: val; HFPL's Table 5 and Fig. 6: train.
    A split without masks is segmented, not scored."""
    limit: int = bounded(0, 0)
    """At most so many pictures of every split, taken at equal distances from its list; 0: all."""
    map_limit: int = bounded(0, 0)
    """At most so many pictures that get maps and are scored, so that a small study can still train on all; 0: as `limit`."""
    skip_unreadable: bool = setting(False, key=False)
    """Read every picture before the first stage and leave out those whose bytes are damaged, instead of failing on them later. Of masks
    nothing is read: a picture whose mask is damaged is trained on, and set aside where it would be scored."""
    cache: str | None = setting(None, key=False)
    """Folder of this node that stores with an address are brought to; none: a folder in the system's temporary one."""

    def open(self) -> Store:
        from seedbed.data.store import open_store

        return open_store(self.store, self.cache)

    def select(self, store: Store, split: str, *, mapped: bool = False) -> tuple[list[str], dict[str, str]]:
        """The ids of a split that these settings ask for, in its order, and the reason for each that was left out as damaged."""
        ids = evenly(store.ids(split), (mapped and self.map_limit) or self.limit)
        if not self.skip_unreadable:
            return ids, {}
        damaged = store.damaged(ids)
        return [ident for ident in ids if ident not in damaged], damaged


def evenly(ids: Sequence[str], limit: int) -> list[str]:
    """At most `limit` of them, at equal distances, the first one always among them; 0 means all."""
    if not limit or limit >= len(ids):
        return list(ids)
    return [ids[i * len(ids) // limit] for i in range(limit)]
