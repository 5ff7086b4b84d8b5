"""HFPL's ablations: the weight of ISL, how many positions it draws, binomial against multinomial, and the gate of FSL, all on SEAM.

Paper: Jonnarth et al., "High-fidelity Pseudo-labels for Boosting Weakly-Supervised Segmentation", WACV 2024, Fig. 6, Tables 4, 5 and
6, section 5.5. Every trial is a whole study: SEAM with its add-ons, AffinityNet, segmenter; scored on train (fig6, 5) or val (4, gate, 6).

Command: python experiments/sweep_isl.py --data.store voc2012 --table 5 --classifier.weights resnet38.params    (or fig6, 4, gate, 6;
           seam or cam: the rows of Table 6, seeds alone)
         python experiments/sweep_isl.py --data.store voc2012 --search optuna --trials 20 --space isl.weight=0:1 isl.samples=1:100 \
           --classifier.weights resnet38.params

Run time: a day of a GPU and more for each trial at paper settings (not measured yet); --smoke --table gate about 6 min on two cores.

Expected with ImageNet weights, J on train at N = 1, 5, 10, 50, 100: 61.6, 62.6, 63.0, 63.0, 62.9.
"""

from typing import Any

from seedbed import pipeline as s
from seedbed.sweeps.addon_tables import ADDON_TABLES
from seedbed.sweeps.drive import main
from seedbed.sweeps.isl_tables import ISL_TABLES
from seedbed.sweeps.settings import Sweep
from seedbed.sweeps.tables import plain_name

SWEEP = Sweep(
    name="sweep_isl", method="seam", addons=("isl",),
    data=s.DataConfig(train_split="trainaug", map_split="trainaug", companion_split="trainaug", score_split="train"),
    classifier=s.ClassifierConfig.named("seam"), refine=s.RefineConfig.named("hfpl", method="affinitynet"),
    scoring=s.SeedConfig(low=0.0, high=0.59), segmenter=s.SegmenterConfig.named("hfpl"),
)  # fmt: skip


def recipe(chosen: s.Experiment) -> dict[str, Any]:
    """As voc_hfpl.py has it: CAM and RIB as IRN trains and refines them, their add-ons scaled as for SIPE (Sec. 5.1); SEAM's three networks
    start from one file."""
    method = "cam" if isinstance(chosen, Sweep) and plain_name(chosen.table) == "cam" else chosen.method
    if method != "seam":
        return {
            "method": method, "classifier": s.ClassifierConfig(), "refine": s.RefineConfig(), "segmenter": s.SegmenterConfig(),
            "scoring": s.SeedConfig(), "isl": s.IslConfig.named("sipe"), "fsl": s.FslConfig.named("sipe"),
        }  # fmt: skip
    weights = chosen.classifier.weights if chosen.classifier.backbone == "resnet38" else "imagenet"
    return {"refine.affinitynet.weights": weights, "segmenter.weights": weights}


# As voc_hfpl's, and fewer pictures: the scores mean nothing but that all stages work.
SMOKE = {
    "data.limit": 12, "data.train_split": "train", "data.map_split": "train", "data.companion_split": "train",
    "classifier.backbone": "small", "classifier.weights": "none", "classifier.validate": "end", "classifier.optimizer": "adam",
    "classifier.epochs": 6, "classifier.batch": 6, "classifier.lr": 3e-3, "classifier.lr_classifier_factor": 1.0,
    "classifier.transform.resize_low": 72, "classifier.transform.resize_high": 112, "classifier.transform.crop": 80,
    "cam.long_side": 112, "cam.scales": (1.0, 0.5), "scoring.low": 0.05, "scoring.high": 0.6,
    "refine.crf_seeds": False, "refine.score_crf.iterations": 2, "refine.affinitynet.backbone": "small",
    "refine.affinitynet.weights": "classifier", "refine.affinitynet.epochs": 2, "refine.affinitynet.crop": 96,
    "segmenter.model": "small", "segmenter.backbone": "small", "segmenter.weights": "none", "segmenter.optimizer": "adam",
    "segmenter.lr": 1e-3, "segmenter.lr_head_factor": 1.0, "segmenter.schedule": "cosine", "segmenter.steps": 20, "segmenter.batch": 6,
    "segmenter.crop": 96, "segmenter.scales": (0.5, 0.75), "segmenter.test_scales": (1.0,), "segmenter.crf": "none",
}  # fmt: skip

if __name__ == "__main__":
    main(SWEEP, {**ISL_TABLES, **ADDON_TABLES}, SMOKE, recipe=recipe)
