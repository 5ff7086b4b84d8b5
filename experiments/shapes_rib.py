"""RIB on the embedded shapes set: the whole study without a download, CAM and RIB side by side over three seeds.

Paper: Lee et al., "Reducing Information Bottleneck for Weakly Supervised Semantic Segmentation", NeurIPS 2021; the set: docs/shapes.md.

Command: python experiments/shapes_rib.py            (= make demo)

Run time: about 6 min on two cores; --smoke about 1 min.

Expected: docs/shapes.md has five seeds; RIB is not made to win here.
"""

from seedbed.pipeline import CamConfig, ClassifierConfig, DataConfig, RibConfig, SeedConfig, ShapesExperiment, TrainTransform
from seedbed.study import main

STUDY = ShapesExperiment(
    name="shapes_rib",
    seeds=3,
    until="seed",
    data=DataConfig(train_split="train", map_split="train", companion_split="train", score_split="train", map_limit=48),
    classifier=ClassifierConfig(
        backbone="small", weights="none", optimizer="adam", lr=3e-3, batch=12, epochs=7, schedule="cosine", warm_up=0.05,
        batch_scales=(0.75, 1.0, 1.3333), validate="end", transform=TrainTransform(resize_low=0, resize_high=0, crop=96, brightness=0.2),
    ),
    cam=CamConfig(scales=(1.0, 0.5, 1.5)),
    rib=RibConfig(lr=2e-4, margin=120.0, batch=4, loss_scales=(1.0, 1.5), snapshots=True),
    scoring=SeedConfig(low=0.02, high=0.5, step=0.02),
)  # fmt: skip
SMOKE = {"seeds": 1, "shapes.train": 120, "shapes.val": 40, "classifier.epochs": 4, "data.map_limit": 12, "rib.steps": 4}

if __name__ == "__main__":
    main(STUDY, SMOKE)
