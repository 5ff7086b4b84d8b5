"""Sweeps: a base experiment and a list of trials, each of which changes some of its settings. `runtime/sweep.py` runs them on Ray Tune."""
