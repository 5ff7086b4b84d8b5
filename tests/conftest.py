"""Fixtures shared by all tests: golden numbers, shared real data, one small Ray for those that need it."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

# Ray reads these when it is imported.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
os.environ.setdefault("OMP_NUM_THREADS", "1")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell starts what it puts into the background so, and children inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

import numpy as np
import pytest

with contextlib.suppress(ImportError):  # a bare machine has no hypothesis and runs the tests without it
    from hypothesis import settings

    settings.register_profile("seedbed", deadline=None)  # a busy machine is no failure
    settings.load_profile("seedbed")

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("SEEDBED_SHARED", ROOT.parent / "shared"))
GOLDEN = [Path(os.environ["SEEDBED_GOLDEN"])] if "SEEDBED_GOLDEN" in os.environ else [ROOT / "tests" / "golden", SHARED / "golden"]


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, np.ndarray]]:
    """`golden("rib_stop")` -> the arrays of that case, from the first folder that has it."""

    def load(case: str) -> dict[str, np.ndarray]:
        for folder in GOLDEN:
            path = folder / f"{case}.npz"
            if path.exists():
                with np.load(path, allow_pickle=False) as arrays:
                    return {name: arrays[name] for name in arrays.files}
        pytest.skip(f"no {case}.npz in {', '.join(map(str, GOLDEN))} (set SEEDBED_GOLDEN)")

    return load


@pytest.fixture(scope="session")
def devkit() -> Path:
    """The real VOC 2012 subset in devkit layout."""
    path = SHARED / "data" / "voc2012-animals" / "VOCdevkit"
    if not path.exists():
        pytest.skip(f"no {path} (set SEEDBED_SHARED to the folder with data/)")
    return path


@pytest.fixture(scope="session")
def small_ray() -> Iterator[None]:
    """One Ray of four CPUs for the whole test session."""
    import ray

    ray.init(num_cpus=4, include_dashboard=False, object_store_memory=256 << 20, log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()
