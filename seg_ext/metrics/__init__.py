"""Metrics: pure functions on label arrays; counts add up over images, so a data set needs a few small arrays."""

from seg_ext.metrics.confusion import SemanticScores, confusion_matrix, semantic_scores
from seg_ext.metrics.panoptic import PanopticScores, PanopticStat, Quality, panoptic_quality, pq_scores

__all__ = [
    "PanopticScores",
    "PanopticStat",
    "Quality",
    "SemanticScores",
    "confusion_matrix",
    "panoptic_quality",
    "pq_scores",
    "semantic_scores",
]
