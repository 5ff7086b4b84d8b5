"""The Ray Executor: per-image work over actors (`fanout.py`), training over workers (`train.py`), on the cluster of `cluster.py`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from seedbed.artefacts import Stage
from seedbed.local import ImageWork, LocalExecutor, Shown
from seedbed.loop import Task
from seedbed.pipeline import RunConfig
from seedbed.runtime.cluster import Cluster, connect

LIGHT = 512
"""Pictures up to which light work is done in the driver: starting actors takes longer than counting so few label maps."""


class RayExecutor:
    """Same records as the local one, for any number of actors."""

    def __init__(self, settings: RunConfig, cluster: Cluster) -> None:
        self.settings, self.cluster = settings, cluster
        self.device = cluster.device
        there = cluster.resources.get("CPU", 1.0) / settings.threads if self.device == "cpu" else cluster.resources.get("GPU", 1.0)
        self.trainings = max(1, int(there) // settings.workers)
        self.driver = LocalExecutor(device="cpu", threads=settings.threads, workers=1, commit_every=settings.commit_every)

    def map_images(self, work: ImageWork, ids: Sequence[str], stage: Stage, shown: Shown) -> int:
        from seedbed.runtime.fanout import map_images_on_ray

        if work.light and len(ids) <= LIGHT:
            return self.driver.map_images(work, ids, stage, shown)
        return map_images_on_ray(
            work,
            ids,
            stage,
            actors=self.settings.actors,
            device=self.device,
            gpus_per_actor=self.cluster.gpus_per_actor,
            threads=self.settings.threads,
            commit_every=self.settings.commit_every,
            progress=shown,
        )

    def train(self, task: Task, folder: Path, report: Any = None) -> None:
        from seedbed.loop import follow
        from seedbed.runtime.train import train_on_ray

        with follow(folder, report):
            train_on_ray(task, folder, workers=self.settings.workers, device=self.device, threads=self.settings.threads)


@contextmanager
def ray_executor(settings: RunConfig, out: Path) -> Iterator[RayExecutor]:
    """Connects to Ray or starts one, and ends what it started."""
    with connect(out, actors=settings.actors, workers=settings.workers, threads=settings.threads, device=settings.device) as cluster:
        yield RayExecutor(settings, cluster)
