"""Metrics: pure functions on label arrays; counts add up over images, so a data set needs a few small arrays."""

from seg_ext.metrics.boundary import boundary_counts, contour_f1, trimap_counts
from seg_ext.metrics.calibration import calibration_counts, expected_calibration_error
from seg_ext.metrics.confusion import SemanticScores, class_counts, class_scores, confusion_matrix, semantic_scores
from seg_ext.metrics.labels import compact_labels
from seg_ext.metrics.panoptic import PanopticScores, PanopticStat, Quality, class_quality, panoptic_quality, pq_scores
from seg_ext.metrics.risk_coverage import area_under_risk, kept_accuracy, risk_coverage_counts

__all__ = [
    "PanopticScores",
    "PanopticStat",
    "Quality",
    "SemanticScores",
    "area_under_risk",
    "boundary_counts",
    "calibration_counts",
    "class_counts",
    "class_quality",
    "class_scores",
    "compact_labels",
    "confusion_matrix",
    "contour_f1",
    "expected_calibration_error",
    "kept_accuracy",
    "panoptic_quality",
    "pq_scores",
    "risk_coverage_counts",
    "semantic_scores",
    "trimap_counts",
]
