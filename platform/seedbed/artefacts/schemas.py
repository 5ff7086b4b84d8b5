"""One Arrow schema per stage; the values that its records stand for are in records.py."""

from __future__ import annotations

import pyarrow as pa

from seedbed.artefacts.fragments import column, stage_schema

MAPS = stage_schema(
    column("height", pa.int32()),
    column("width", pa.int32()),
    column("classes", pa.list_(pa.int32())),
    column("scales", pa.list_(pa.float64())),
    column("shapes", pa.list_(pa.list_(pa.int32()))),  # (h_s, w_s) of each scale
    column("sums", pa.binary()),  # float32 little-endian, (n, h_s, w_s) one scale after the other
    column("steps", pa.int32()),
    column("ended", pa.string()),
    column("log", pa.binary()),  # packed arrays: per step; and records.INPUTS, where the maps have SEAM's form
    column("snapshots", pa.binary()),  # like sums, one step after the other; null unless asked for
    column("seconds", pa.float64(), volatile=True),
)
THRESHOLDS = stage_schema(
    column("counts", pa.binary()),  # packed arrays: what one picture adds to the threshold sweep
    column("snapshots", pa.binary()),  # the same for the cumulative map of every RIB step, where snapshots are kept
    column("seconds", pa.float64(), volatile=True),
)
SEEDS = stage_schema(
    column("height", pa.int32()),
    column("width", pa.int32()),
    column("pixels", pa.string()),  # SHA-256 of the label map's bytes: the PNG's depend on the zlib that wrote it
    column("confusion", pa.binary()),  # packed arrays; null where the picture has no mask, or one that can't be scored against
    column("contour", pa.binary()),
    column("uncounted", pa.string(), volatile=True),  # why not, where there is a mask
    column("label_map", pa.binary(), volatile=True),  # PNG
    column("seconds", pa.float64(), volatile=True),
)
LABELS = stage_schema(
    column("height", pa.int32()),
    column("width", pa.int32()),
    column("pixels", pa.string()),  # SHA-256 of the label map's bytes
    column("label_map", pa.binary(), volatile=True),  # PNG
    column("seconds", pa.float64(), volatile=True),
)
SCORED_LABELS = stage_schema(
    column("height", pa.int32()),
    column("width", pa.int32()),
    column("pixels", pa.string()),
    column("score_pixels", pa.string()),
    column("label_map", pa.binary(), volatile=True),  # PNG: what the scores say of each pixel by itself
    column("scores", pa.binary(), volatile=True),  # PNG of 16 bits: the planes of the random field's two scores below one another
    column("seconds", pa.float64(), volatile=True),
)
MASKS = stage_schema(
    column("height", pa.int32()),
    column("width", pa.int32()),
    column("pixels", pa.string()),
    column("label_pixels", pa.string()),
    column("shares", pa.list_(pa.float64())),  # of the labels: object, background, ignored; of the mask: pixels that the seed has otherwise
    column("label_map", pa.binary(), volatile=True),  # PNG: what is scored, nothing ignored
    column("labels", pa.binary(), volatile=True),  # PNG: what the segmenter is trained on, IGNORE where the refinement is not sure
    column("seconds", pa.float64(), volatile=True),
)
# What a prediction adds to the scores stays out of its hash: equal predictions have equal digests, whatever the truth.
PREDICTIONS = stage_schema(
    column("height", pa.int32()),
    column("width", pa.int32()),
    column("pixels", pa.string()),
    column("label_map", pa.binary(), volatile=True),
    column("confusion", pa.binary(), volatile=True),
    column("contour", pa.binary(), volatile=True),
    column("uncounted", pa.string(), volatile=True),
    column("seconds", pa.float64(), volatile=True),
)
SCORED = stage_schema(
    column("confusion", pa.binary()),
    column("contour", pa.binary()),
    column("seconds", pa.float64(), volatile=True),
)
WEIGHTS = stage_schema(
    column("dtype", pa.string()),
    column("shape", pa.list_(pa.int64())),
    column("data", pa.large_binary()),
)
