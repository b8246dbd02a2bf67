"""Losses: functions ``(logits (N,K,H,W), target (N,H,W), *, ignore, ...) -> scalar``, by name in LOSSES."""

from seg_ext.losses.cross_entropy import cross_entropy

LOSSES = {
    "cross_entropy": cross_entropy,
}
