"""Metrics: pure functions on label arrays; counts add up over images, so a data set needs a few small arrays."""

from seg_ext.metrics.boundary import boundary_counts, contour_f1, overlap, trimap_counts
from seg_ext.metrics.calibration import calibration_counts, expected_calibration_error
from seg_ext.metrics.confusion import SemanticScores, class_counts, confusion_matrix, semantic_scores
from seg_ext.metrics.labels import compact_labels
from seg_ext.metrics.panoptic import PanopticScores, PanopticStat, Quality, panoptic_quality, pq_scores

__all__ = [
    "PanopticScores",
    "PanopticStat",
    "Quality",
    "SemanticScores",
    "boundary_counts",
    "calibration_counts",
    "class_counts",
    "compact_labels",
    "confusion_matrix",
    "contour_f1",
    "expected_calibration_error",
    "overlap",
    "panoptic_quality",
    "pq_scores",
    "semantic_scores",
    "trimap_counts",
]
