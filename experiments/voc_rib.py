"""RIB on PASCAL VOC 2012: classifier, per-image fine-tuning, seeds, IRN's refinement, DeepLab-v2, and the scores of each.

Paper: Lee et al., "Reducing Information Bottleneck for Weakly Supervised Semantic Segmentation", NeurIPS 2021, Tables 1, 2, 6.

Command: python datasets/voc2012/prepare.py --devkit VOCdevkit --out voc2012
         python experiments/voc_rib.py --data.store voc2012                    (--until seed stops at the seeds)

Run time: a day or more on a GPU at paper settings (maps of 10,582 pictures, two segmenters; not measured yet);
--smoke about 6 min on two cores, --smoke --until seed about 2 min.

Expected with ImageNet weights, mIoU on train: seed 48.8 (CAM) and 56.5 (RIB), after the CRF 62.9, mask 70.6; segmentation on val 68.3.
"""

from seedbed.pipeline import DataConfig, Experiment
from seedbed.study import main

STUDY = Experiment(
    name="voc_rib",
    data=DataConfig(train_split="trainaug", map_split="trainaug", companion_split="trainaug", score_split="train"),
)

# Everything at a size for two cores: few pictures, small and not pre-trained, so that the scores mean nothing but that all stages work.
SMOKE = {
    "data.limit": 20, "data.train_split": "train", "data.map_split": "train", "data.companion_split": "train",
    "classifier.backbone": "resnet18", "classifier.weights": "none", "classifier.validate": "end", "classifier.optimizer": "adam",
    "classifier.epochs": 18, "classifier.batch": 10, "classifier.lr": 5e-4, "classifier.lr_classifier_factor": 1.0,
    "classifier.transform.resize_low": 72, "classifier.transform.resize_high": 112, "classifier.transform.crop": 80,
    "cam.long_side": 112, "rib.steps": 3, "rib.batch": 3, "rib.lr": 1e-4, "rib.margin": 60.0, "scoring.low": 0.05, "scoring.high": 0.6,
    "refine.irn.backbone": "resnet18", "refine.irn.weights": "classifier", "refine.irn.epochs": 6, "refine.irn.batch": 10,
    "refine.irn.crop": 128, "refine.irn.walk.pad": 0, "refine.label_crf.iterations": 3, "refine.score_crf.iterations": 3,
    "refine.affinitynet.backbone": "resnet18", "refine.affinitynet.weights": "classifier", "refine.affinitynet.epochs": 6,
    "refine.affinitynet.crop": 128,
    "segmenter.model": "small", "segmenter.backbone": "resnet18", "segmenter.weights": "none", "segmenter.optimizer": "adam",
    "segmenter.lr": 1e-3, "segmenter.lr_head_factor": 1.0, "segmenter.schedule": "cosine", "segmenter.steps": 30, "segmenter.batch": 8,
    "segmenter.crop": 96, "segmenter.scales": (0.5, 0.75), "segmenter.crf": "none",
}  # fmt: skip

if __name__ == "__main__":
    main(STUDY, SMOKE)
