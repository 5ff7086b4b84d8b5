"""RIB's ablations on the embedded shapes set: the tables of sweep_rib without a download, with exact masks.

Paper: Lee et al. 2021, Tables 5(a), 5(b), 5(c), S1 and Fig. 5; the set and its settings: docs/shapes.md. Margin, learning rate, batch and
steps are the paper's grids as multiples of this set's own.

Command: python experiments/sweep_shapes.py --table 5c                        (or 5a, 5b, S1, fig5; --seeds 1 for a look)

Run time: on two cores 5c about 7 min, 5a and fig5 some 3 more each with the same --out; --smoke --table 5c about 2 min.
"""

from seedbed import pipeline as s
from seedbed.sweeps.drive import main
from seedbed.sweeps.rib_tables import RIB_TABLES
from seedbed.sweeps.settings import ShapesSweep

SWEEP = ShapesSweep(
    name="sweep_shapes", seeds=3, until="seed",
    data=s.DataConfig(train_split="train", map_split="train", companion_split="train", score_split="train", map_limit=48),
    classifier=s.ClassifierConfig(
        backbone="small", weights="none", optimizer="adam", lr=3e-3, batch=12, epochs=7, schedule="cosine", warm_up=0.05,
        batch_scales=(0.75, 1.0, 1.3333), validate="end", transform=s.TrainTransform(resize_low=0, resize_high=0, crop=96, brightness=0.2),
    ),
    cam=s.CamConfig(scales=(1.0, 0.5, 1.5)),
    rib=s.RibConfig(lr=2e-4, margin=120.0, batch=4, loss_scales=(1.0, 1.5), snapshots=True),  # Fig. 5 shares the tables' runs
    scoring=s.SeedConfig(low=0.02, high=0.5, step=0.02),
)  # fmt: skip
SMOKE = {"seeds": 1, "shapes.train": 120, "shapes.val": 40, "classifier.epochs": 4, "data.map_limit": 12, "rib.steps": 4}

if __name__ == "__main__":
    main(SWEEP, RIB_TABLES, SMOKE)
