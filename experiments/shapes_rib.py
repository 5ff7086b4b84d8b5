"""RIB on the embedded shapes set: the whole study without a download, CAM and RIB side by side over three seeds.

Paper: Lee et al., "Reducing Information Bottleneck for Weakly Supervised Semantic Segmentation", NeurIPS 2021; the set: docs/shapes.md.

Command: python experiments/shapes_rib.py            (= make demo; --until segmentation goes on to a trained segmenter)

Run time: under 6 min on two cores; --smoke about 1 min.

Expected: seed mIoU 59.0 +- 0.5 (CAM) and 61.4 +- 0.1 (RIB), 48 pictures, the best threshold of each; docs/shapes.md has five other sets.
"""

from seedbed import pipeline as s
from seedbed.study import main

STUDY = s.ShapesExperiment(
    name="shapes_rib",
    seeds=3,
    until="seed",
    data=s.DataConfig(train_split="train", map_split="train", companion_split="train", score_split="train", map_limit=48),
    classifier=s.ClassifierConfig(
        backbone="small", weights="none", optimizer="adam", lr=3e-3, batch=12, epochs=7, schedule="cosine", warm_up=0.05,
        batch_scales=(0.75, 1.0, 1.3333), validate="end", transform=s.TrainTransform(resize_low=0, resize_high=0, crop=96, brightness=0.2),
    ),
    cam=s.CamConfig(scales=(1.0, 0.5, 1.5)),
    rib=s.RibConfig(lr=2e-4, margin=120.0, batch=4, loss_scales=(1.0, 1.5), snapshots=True),
    scoring=s.SeedConfig(low=0.02, high=0.5, step=0.02),
    refine=s.RefineConfig(
        mask_background=0.12, ignore_foreground=0.15, ignore_background=0.09, confident_foreground=0.3, confident_background=0.1,
        irn=s.IrnConfig(
            backbone="small", weights="classifier", epochs=20, batch=16, crop=96, radius=5, walk=s.IrnWalk(pad=0, beta=30.0, squarings=4),
        ),
    ),
    segmenter=s.SegmenterConfig.named("small", weights="none"),
)  # fmt: skip
SMOKE = {"seeds": 1, "shapes.train": 120, "shapes.val": 40, "classifier.epochs": 4, "data.map_limit": 12, "rib.steps": 4} | {
    "refine.irn.batch": 8, "segmenter.steps": 40, "segmenter.batch": 8,
}  # fmt: skip

if __name__ == "__main__":
    main(STUDY, SMOKE)
