"""RIB on the embedded shapes set: the whole study without a download, CAM and RIB side by side over three seeds.

Paper: Lee et al., "Reducing Information Bottleneck for Weakly Supervised Semantic Segmentation", NeurIPS 2021; the set: docs/shapes.md.
Command: python experiments/shapes_rib.py            (= make demo)
Run time: about 6 min on two cores; --smoke about 1 min.
Expected: see docs/shapes.md; RIB is not made to win here.
"""

from seedbed.pipeline import ShapesExperiment
from seedbed.study import main

STUDY = ShapesExperiment(name="shapes_rib", seeds=3)
SMOKE = {"seeds": 1, "data.limit": 24}

if __name__ == "__main__":
    main(STUDY, SMOKE)
