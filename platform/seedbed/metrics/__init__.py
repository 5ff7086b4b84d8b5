"""Scores as accumulators that workers fill apart and anybody adds up: integers only, so the order never matters.

`region.py`: J (mean intersection over union), precision, recall, F1. `contour.py`: F of the object contours. `classification.py`: average
precision of image labels. `paired.py`: how sure the difference of two methods is.
"""
