"""Expected calibration error: how far confidence is from accuracy (Naeini et al., 2015; Guo et al., 2017)."""

from __future__ import annotations

import numpy as np

BINS = 15


def calibration_counts(
    confidence: np.ndarray, pred: np.ndarray, target: np.ndarray, *, ignore: int, bins: int = BINS
) -> np.ndarray:
    """Pixels, correct pixels and confidence in bins of confidence of equal width, each with its upper end.

    Args:
        confidence: probability of the predicted class, in [0, 1], of any shape.
        pred: predicted ids, integers of the same shape.
        target: ground truth likewise.
        ignore: pixels of this ground-truth id count for nothing.
        bins: B.

    Returns:
        (3, B) float64: number, correct, sum of confidence; they add up over images.

    Raises:
        ValueError: arrays of different shapes, or a confidence outside [0, 1] or nan.
    """
    if not confidence.shape == pred.shape == target.shape:
        raise ValueError(f"shapes {confidence.shape}, {pred.shape} and {target.shape}: takes equal ones")
    counted = target != ignore
    sure, right = confidence[counted], (pred == target)[counted]
    if sure.size and not 0 <= sure.min() <= sure.max() <= 1 + 1e-6:
        raise ValueError(f"confidences {sure.min()}..{sure.max()}: takes 0..1")
    index = (np.ceil(sure * sure.dtype.type(bins)).astype(np.intp) - 1).clip(0, bins - 1)
    return np.stack([np.bincount(index, weights, bins) for weights in (None, right, sure)]).astype(np.float64)


def expected_calibration_error(counts: np.ndarray) -> float:
    """Mean over pixels of |accuracy - confidence| of their bin, as a fraction; nan without a pixel.

    Args:
        counts: (3, B), the sum of :func:`calibration_counts` over the images.
    """
    number, correct, confidence = counts
    return float(np.abs(correct - confidence).sum() / number.sum()) if number.sum() else float("nan")
