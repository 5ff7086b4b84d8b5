"""ISL and FSL on CAM and on SEAM, on the embedded shapes set: seeds without and with either and both, three random seeds.

Paper: Jonnarth et al., "High-fidelity Pseudo-labels for Boosting Weakly-Supervised Segmentation", WACV 2024, the shape of Table 6; the
set and the classifier's settings: docs/shapes.md.

Command: python experiments/shapes_hfpl.py --table cam                        (or seam; --seeds 1 for a look)

Run time: cam about 12 min on two cores, seam 20 (docs/results.md); --smoke --table cam about 2 min.
"""

from typing import Any

from seedbed import pipeline as s
from seedbed.sweeps.addon_tables import ADDON_TABLES
from seedbed.sweeps.drive import main
from seedbed.sweeps.settings import ShapesSweep
from seedbed.sweeps.tables import plain_name

SWEEP = ShapesSweep(
    name="shapes_hfpl", method="cam", seeds=3, until="seed",
    data=s.DataConfig(train_split="train", map_split="train", companion_split="train", score_split="train", map_limit=48),
    classifier=s.ClassifierConfig(
        backbone="small", weights="none", optimizer="adam", lr=3e-3, batch=12, epochs=7, schedule="cosine", warm_up=0.05,
        batch_scales=(0.75, 1.0, 1.3333), validate="end", transform=s.TrainTransform(resize_low=0, resize_high=0, crop=96, brightness=0.2),
    ),
    cam=s.CamConfig(scales=(1.0, 0.5, 1.5)),
    scoring=s.SeedConfig(low=0.02, high=0.5, step=0.02),
)  # fmt: skip


def recipe(chosen: ShapesSweep) -> dict[str, Any]:
    """SEAM with fewer passes, at the size of the picture and below: what its affinity costs grows with the fourth power of the length."""
    return {"classifier.epochs": 5, "classifier.batch_scales": (0.75, 1.0)} if plain_name(chosen.table) == "seam" else {}


SMOKE = {"seeds": 1, "shapes.train": 120, "shapes.val": 40, "classifier.epochs": 2, "data.map_limit": 12}

if __name__ == "__main__":
    main(SWEEP, ADDON_TABLES, SMOKE, recipe=recipe)
