"""Losses: functions ``(logits (N,K,H,W), target (N,H,W), *, ignore, ...) -> scalar``, by name in LOSSES.

Those of IMAGE_LOSSES take a decoder's image-level output, ``logits (N,C,1,1)``, instead.
"""

from seg_ext.losses.cross_entropy import cross_entropy
from seg_ext.losses.presence import presence

LOSSES = {
    "cross_entropy": cross_entropy,
}
IMAGE_LOSSES = {
    "presence": presence,
}
