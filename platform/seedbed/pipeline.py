"""`Experiment`: the settings of all stages of a study, and what a stage is given of them. `stages.py` walks the way."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from seedbed.addons import ADDONS, addon_class
from seedbed.addons.fsl import FslConfig
from seedbed.addons.isl import IslConfig
from seedbed.classifier import ClassifierConfig, ClassifierTask
from seedbed.config import Settings, bounded, nested, setting
from seedbed.data import DataConfig, Store, open_store
from seedbed.data.shapes import ShapesConfig, make_shapes
from seedbed.data.transforms import TrainTransform
from seedbed.loop.settings import WORDS
from seedbed.methods import method_class
from seedbed.methods.cam import CamConfig
from seedbed.methods.rib import RibConfig
from seedbed.methods.seam import SeamConfig
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
    "FslConfig",
    "IrnConfig",
    "IrnWalk",
    "IslConfig",
    "RefineConfig",
    "RibConfig",
    "RunConfig",
    "SeamConfig",
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
    """Training workers (data parallel); part of the record, for their number changes the last bits, and what batch norm sees."""
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
    method: Literal["cam", "rib", "seam"] = "rib"
    """What makes the maps; beside RIB's those of the classifier that it starts from (cam) are made and scored, too."""
    baseline: Literal["seed", "mask", "segmentation"] = setting("seed", key=False)
    """How far those plain maps go beside the method's: to their seeds, or on to masks and a segmenter of their own, for the comparison."""
    addons: tuple[Literal["isl", "fsl"], ...] = ()
    """What is added to the training of the method's classifier: isl (importance sampling loss), fsl (feature similarity loss)."""
    data: DataConfig = nested(DataConfig)
    classifier: ClassifierConfig = nested(ClassifierConfig)
    cam: CamConfig = nested(CamConfig)
    rib: RibConfig = nested(RibConfig)
    seam: SeamConfig = nested(SeamConfig)
    isl: IslConfig = nested(IslConfig)
    fsl: FslConfig = nested(FslConfig)
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

    def label(self, method: str) -> str:
        """A method's name with what was added to its training: `seam+isl+fsl`."""
        return "+".join((method, *(name for name in ADDONS if name in self.addons)))

    @property
    def random_seeds(self) -> range:
        """Those of the repetitions."""
        return range(self.seed, self.seed + self.seeds)

    @property
    def labels(self) -> tuple[str, ...]:
        """What this study makes maps of: its method, after the plain maps of the same network where there are any."""
        return tuple(self.label(m) for m in (("cam", "rib") if self.method == "rib" else (self.method,)))

    @property
    def trainer(self) -> str:
        """The method whose loss trains the classifier: RIB starts from CAM's."""
        return "cam" if self.method == "rib" else self.method

    @property
    def refinement(self) -> RefineConfig:
        """With the alphas that go with the classifier's add-ons, where none are said (HFPL, sections 5.1 and 5.5)."""
        isl = "isl" in self.addons and self.isl.weight * self.isl.scale > 0
        fsl = "fsl" in self.addons and self.fsl.weight > 0
        if (isl and self.isl.posterior == "multinomial") or (fsl and self.fsl.gate == "a"):
            return self.refine.with_alphas(2.0, 4.0)
        return self.refine.with_alphas(1.0 if isl else 4.0, 24.0)

    def check_together(self, prefix: str) -> None:
        self.refinement.check_together("refine.")
        if self.until == "segmentation" and self.segmenter.retrain == "yes" and not (self.refine.ignores() or self.refine.saliency):
            message = "the labels leave no pixel open: a second segmenter would be trained on those of the first"
            raise UserError(message, field="--segmenter.retrain", remedy="leave it out, or say --refine.labels thresholds")
        for name in self.addons:
            addon_class(name)  # says which there are
        if len(set(self.addons)) < len(self.addons):
            message = f"--addons names {', '.join(sorted({a for a in self.addons if self.addons.count(a) > 1}))} twice"
            raise UserError(message, field="--addons", remedy="name each add-on once")
        multinomial = {"--isl.posterior": "isl" in self.addons and self.isl.posterior == "multinomial"}
        multinomial["--fsl.gate"] = "fsl" in self.addons and self.fsl.gate == "a"
        for flag in (flag for flag, asked in multinomial.items() if asked and self.trainer != "seam"):
            message = f"{flag} takes classes as excluding one another and the background, which {self.trainer} has no score for"
            raise UserError(message, field=flag, remedy="choose the binomial form, or --method seam")
        if self.method != "rib" and self.seeds > 1 and self.seeds_vary == "rib":
            message = f"the maps of {self.method} do not change from one fine-tuning of RIB to the next"
            raise UserError(message, field="--seeds-vary", remedy="say --seeds-vary all, or --method rib")


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
    """What a method's class is constructed with; the method may be named with its add-ons."""
    return {"cam": (experiment.cam,), "rib": (experiment.rib, experiment.cam), "seam": (experiment.seam, experiment.cam)}[plain(method)]


def training_settings(experiment: Experiment) -> tuple[Any, ...]:
    """What the method that trains the classifier is constructed with, as far as the training depends on it."""
    return (experiment.seam.replace(output=SeamConfig().output),) if experiment.trainer == "seam" else ()


def plain(label: str) -> str:
    """A method's name without its add-ons."""
    return label.partition("+")[0]


def code_version(method: str) -> int:
    return int(method_class(plain(method)).version)


def addon_settings(experiment: Experiment) -> dict[str, Settings]:
    """The add-ons of a study, in the order in which they are applied, with their settings."""
    return {name: getattr(experiment, name) for name in ADDONS if name in experiment.addons}


def addons_key(experiment: Experiment) -> dict[str, Any]:
    """What a classifier's key says of them; nothing without any."""
    found = {n: {**s.to_dict(only_key=True), "version": addon_class(n).version} for n, s in addon_settings(experiment).items()}
    return {"addons": found} if found else {}


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
        method=experiment.trainer,
        method_settings=training_settings(experiment),
        addons=tuple(addon_settings(experiment).items()),
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
