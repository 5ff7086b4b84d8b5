"""High-fidelity pseudo-labels on PASCAL VOC 2012: ISL and FSL on CAM, RIB or SEAM, and everything after the maps.

Paper: Jonnarth et al., "High-fidelity Pseudo-labels for Boosting Weakly-Supervised Segmentation", WACV 2024, Tables 1, 2, 5, 6.

Command: python datasets/voc2012/prepare.py --devkit VOCdevkit --out voc2012
         python experiments/voc_hfpl.py --data.store voc2012 --method seam --addons isl fsl --classifier.weights resnet38.params

Run time: days on a GPU at paper settings (not measured yet); --smoke about 6 min on two cores, --smoke --until seed about 2 min.

Expected with ImageNet weights, SEAM: seed mIoU on train 55.0 without, 60.6 with both; segmentation on val 63.9 and 66.7.
"""

from typing import Any

from seedbed import pipeline as s
from seedbed.study import main

STUDY = s.Experiment(
    name="voc_hfpl", method="seam",
    data=s.DataConfig(train_split="trainaug", map_split="trainaug", companion_split="trainaug", score_split="train"),
    classifier=s.ClassifierConfig.named("seam"), scoring=s.SeedConfig(low=0.0, high=0.59),
    refine=s.RefineConfig.named("hfpl", method="affinitynet"), segmenter=s.SegmenterConfig.named("hfpl"),
)  # fmt: skip


def recipe(chosen: s.Experiment) -> dict[str, Any]:
    """CAM and RIB as IRN trains and refines them, add-ons scaled as for SIPE, whose rate and size of maps they share (Sec. 5.1);
    SEAM's three networks start from one file."""
    if chosen.method != "seam":
        return {
            "classifier": s.ClassifierConfig(), "refine": s.RefineConfig(), "segmenter": s.SegmenterConfig(), "scoring": s.SeedConfig(),
            "isl": s.IslConfig.named("sipe"), "fsl": s.FslConfig.named("sipe"),
        }  # fmt: skip
    weights = chosen.classifier.weights if chosen.classifier.backbone == "resnet38" else "imagenet"
    return {"refine.affinitynet.weights": weights, "segmenter.weights": weights}


# Everything at a size for two cores: few pictures, small and not pre-trained, so that the scores mean nothing but that all stages work.
SMOKE = {
    "data.limit": 20, "data.train_split": "train", "data.map_split": "train", "data.companion_split": "train",
    "classifier.backbone": "small", "classifier.weights": "none", "classifier.validate": "end", "classifier.optimizer": "adam",
    "classifier.epochs": 18, "classifier.batch": 10, "classifier.lr": 3e-3, "classifier.lr_classifier_factor": 1.0,
    "classifier.transform.resize_low": 72, "classifier.transform.resize_high": 112, "classifier.transform.crop": 80,
    "cam.long_side": 112, "rib.steps": 3, "rib.batch": 3, "rib.lr": 1e-4, "rib.margin": 60.0, "scoring.low": 0.05, "scoring.high": 0.6,
    "refine.irn.backbone": "small", "refine.irn.weights": "classifier", "refine.irn.epochs": 6, "refine.irn.batch": 10,
    "refine.irn.crop": 128, "refine.irn.walk.pad": 0, "refine.label_crf.iterations": 3, "refine.score_crf.iterations": 3,
    "refine.affinitynet.backbone": "small", "refine.affinitynet.weights": "classifier", "refine.affinitynet.epochs": 4,
    "refine.affinitynet.crop": 96,
    "segmenter.model": "small", "segmenter.backbone": "small", "segmenter.weights": "none", "segmenter.optimizer": "adam",
    "segmenter.lr": 1e-3, "segmenter.lr_head_factor": 1.0, "segmenter.schedule": "cosine", "segmenter.steps": 30, "segmenter.batch": 8,
    "segmenter.crop": 96, "segmenter.scales": (0.5, 0.75), "segmenter.test_scales": (1.0,), "segmenter.crf": "none",
}  # fmt: skip

if __name__ == "__main__":
    main(STUDY, SMOKE, recipe=recipe)
