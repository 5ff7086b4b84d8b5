"""`Experiment`: the settings of all stages of a study, and what a stage is given of them. `stages.py` walks the way."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from seedbed.classifier import ClassifierConfig, ClassifierTask
from seedbed.config import Settings, bounded, nested, setting
from seedbed.data import DataConfig, Store, open_store
from seedbed.data.shapes import ShapesConfig, make_shapes
from seedbed.data.transforms import TrainTransform
from seedbed.loop.settings import WORDS
from seedbed.methods import method_class
from seedbed.methods.cam import CamConfig
from seedbed.methods.rib import RibConfig
from seedbed.refine.irn_settings import IrnConfig, IrnWalk
from seedbed.refine.settings import RefineConfig
from seedbed.seeds import SeedConfig
from seedbed.segment.settings import SegmenterConfig
from seedbed.types import UserError

__all__ = [
    "CamConfig",
    "ClassifierConfig",
    "DataConfig",
    "Experiment",
    "IrnConfig",
    "IrnWalk",
    "RefineConfig",
    "RibConfig",
    "RunConfig",
    "SeedConfig",
    "SegmenterConfig",
    "ShapesConfig",
    "ShapesExperiment",
    "TrainTransform",
]

Until = Literal["maps", "seed", "mask", "segmentation"]
UNTIL = get_args(Until)
"""What a study can end with, in order."""


@dataclass(frozen=True)
class RunConfig(Settings):
    """Where and how the work is done. None of it changes a result but device, threads and the number of training workers."""

    executor: Literal["ray", "local"] = setting("ray", key=False)
    """ray: actors and workers of a cluster; local: this process, without Ray (debugger, machines without Ray). Same bits."""
    actors: int = bounded(2, 1, 4096, key=False)
    """Actors of per-image work."""
    workers: int = bounded(1, 1, 4096)
    """Training workers (data parallel); part of the record, for their number changes the last bits."""
    threads: int = bounded(1, 1, 1024)
    """Torch threads of each actor and worker; part of the record. More actors are faster than more threads."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where networks run. auto: what the cluster's workers have or can start; cuda without any is an error."""
    commit_every: int = bounded(256, 1, 1_000_000, key=False)
    """Pictures a fragment: what a kill can cost at most (or 60 s, whichever comes first)."""
    tracking_uri: str = setting("", key=False)
    """MLflow tracking URI; default MLFLOW_TRACKING_URI, else a sqlite file in the output folder; none: no MLflow."""
    name: str = setting("", key=False)
    """Name of the MLflow run; default: the study's name and settings key."""


@dataclass(frozen=True)
class Experiment(Settings):
    """The settings of all stages of a study. Two calls with the same resulting settings are the same study."""

    name: str = setting("study", key=False)
    """Name of the study: MLflow experiment, and the default output folder runs/NAME."""
    out: str = setting("", key=False)
    """Output folder; default runs/NAME."""
    smoke: bool = setting(False, key=False)
    """The whole study at a size that ends within minutes on two cores, offline."""
    seed: int = bounded(0, 0, 2**31)
    """First random seed."""
    seeds: int = bounded(1, 1, 1000)
    """Number of repetitions; from two on, mean, standard deviation and paired differences are reported."""
    seeds_vary: Literal["rib", "all"] = "all"
    """What is repeated: rib (the fine-tuning on one classifier, as RIB's 56.44 +- 0.05; the networks after it keep the first seed) or all
    (as HFPL's five runs)."""
    explain: bool = setting(False, key=False)
    """Print which stages would run and why, then exit."""
    until: Until = setting("segmentation", key=False)
    """The last stage to run: maps, scored seeds, scored pseudo-labels (mask), or a trained segmenter and its scored predictions."""
    method: Literal["cam", "rib"] = "rib"
    """What makes the maps; plain CAMs are always made beside it."""
    data: DataConfig = nested(DataConfig)
    classifier: ClassifierConfig = nested(ClassifierConfig)
    cam: CamConfig = nested(CamConfig)
    rib: RibConfig = nested(RibConfig)
    scoring: SeedConfig = nested(SeedConfig)
    refine: RefineConfig = nested(RefineConfig)
    segmenter: SegmenterConfig = nested(SegmenterConfig)
    run: RunConfig = nested(RunConfig)

    def folder(self) -> Path:
        return Path(self.out or f"runs/{self.name}").absolute()

    def open_data(self, *, dry: bool = False) -> Store:
        """The sample store that the study reads; a dry call leaves nothing behind."""
        if not self.data.store:
            remedy = "python datasets/voc2012/prepare.py --devkit VOCdevkit --out STORE makes one"
            raise UserError("no sample store is named", field="--data.store", remedy=remedy)
        return open_store(self.data.store, cache=self.data.cache)

    def check_together(self, prefix: str) -> None:
        if self.method == "cam" and self.seeds > 1 and self.seeds_vary == "rib":
            remedy = "say --seeds-vary all, or --method rib"
            raise UserError("plain CAMs do not change from one fine-tuning to the next", field="--seeds-vary", remedy=remedy)


@dataclass(frozen=True)
class ShapesExperiment(Experiment):
    """A study on the embedded shapes set, which it makes itself: no download, exact masks."""

    shapes: ShapesConfig = nested(ShapesConfig)

    def open_data(self, *, dry: bool = False) -> Store:
        """The shapes store in the output folder, made when it is not there yet."""
        folder = self.folder() / "data"
        if dry and not folder.exists():
            folder = Path(tempfile.mkdtemp(prefix="seedbed-explain-"))
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return open_store(make_shapes(folder, self.shapes))


def method_settings(experiment: Experiment, method: str) -> tuple[Any, ...]:
    """What a method's class is constructed with."""
    return {"cam": (experiment.cam,), "rib": (experiment.rib, experiment.cam)}[method]


def code_version(method: str) -> int:
    return int(method_class(method).version)


Weighted = TypeVar("Weighted", bound=Any)


def absolute_weights(config: Weighted) -> Weighted:
    """Settings whose file of weights is found from another folder too: a worker's is another."""
    return config if config.weights in WORDS else config.replace(weights=str(Path(config.weights).absolute()))


def classifier_task(experiment: Experiment, store: Store, seed: int, left_out: tuple[str, ...] = ()) -> ClassifierTask:
    """The classifier's training; `left_out` are pictures that it must not look at."""
    data, config = experiment.data, experiment.classifier.resolved()
    config = absolute_weights(config)
    return ClassifierTask(
        store=data.store if "://" in data.store else str(store.path),
        cache=data.cache,
        train_split=data.train_split,
        validation_split=config.validation_split,
        config=config,
        seed=seed,
        limit=data.limit,
        left_out=left_out,
    )


def explain(experiment: Experiment, say: Callable[[str], None] = print) -> None:
    """One line per stage: name, key, state, reason. Nothing is run and nothing written."""
    from seedbed.local import local_device
    from seedbed.stages import Study

    experiment.check()
    for line in Study.open(experiment, device=local_device(experiment.run.device), dry=True).explanation():
        say(line)
