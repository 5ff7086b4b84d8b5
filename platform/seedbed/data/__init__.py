"""Published layouts to sample stores, and from there to tensors: `open_store` is where everything begins."""

from __future__ import annotations

from seedbed.data.store import DataConfig, Store, StoreInfo, StoreWriter, open_store

__all__ = ["DataConfig", "Store", "StoreInfo", "StoreWriter", "open_store"]
