"""How mu and sigma of the feature similarity loss were found: Gaussian maps of single objects, moved by the loss alone, without a network.

Paper: Jonnarth et al., "High-fidelity Pseudo-labels for Boosting Weakly-Supervised Segmentation", WACV 2024, section S.1, Fig. 7.

Command: python datasets/voc2012/prepare.py --devkit VOCdevkit --out voc2012
         python experiments/fsl_parameters.py --data.store voc2012

Run time: 2 to 4 min on one core for six draws of five classes; --smoke about 1 min on a busy machine.

Expected: mu best from 2.5 to 3, sigma flat from 5 to 15, docs/results.md. The gate is b: with r a mask can only shrink. The stop is ours.
"""

from seedbed.analysis.fsl_run import command, explain, run
from seedbed.analysis.fsl_study import FslStudy
from seedbed.study import reported_errors, tracker_of

STUDY = FslStudy()

SMOKE = {"draws": 2, "mus": (0.5, 2.5, 4.5), "sigmas": (2.0, 5.0, 10.0), "steps": 30}

if __name__ == "__main__":
    with reported_errors():
        study = command(STUDY, SMOKE)
        if study.explain:
            print(explain(study))
        else:
            with tracker_of(study.out, study.tracking_uri) as record:
                run(study, record)
