"""How mu and sigma of the feature similarity loss were found: Gaussian maps of single objects, moved by the loss alone, without a network.

Paper: Jonnarth et al., "High-fidelity Pseudo-labels for Boosting Weakly-Supervised Segmentation", WACV 2024, section S.1, Fig. 7.

Command: python datasets/voc2012/prepare.py --devkit VOCdevkit --out voc2012
         python experiments/fsl_parameters.py --data.store voc2012

Run time: some 5 min on one core for five classes and ten draws; --smoke about 20 s.

Expected: docs/results.md. Loss over the gate b, because r never lets a mask grow; the stop is ours, and decides much.
"""

from seedbed.analysis.fsl_study import FslStudy, command, run
from seedbed.study import reported_errors

STUDY = FslStudy()

SMOKE = {"draws": 2, "mus": (0.5, 2.5, 4.5), "sigmas": (2.0, 5.0, 10.0), "steps": 30}

if __name__ == "__main__":
    with reported_errors():
        run(command(STUDY, SMOKE))
