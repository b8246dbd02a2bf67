"""Risk and coverage: how right the pixels are that a model is least uncertain of (El-Yaniv and Wiener, 2010)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

BINS = 1 << 15  # one for each value that a non-negative float32's first 16 bits have: they order as the floats do


def risk_coverage_counts(uncertainty: np.ndarray, pred: np.ndarray, target: np.ndarray, *, ignore: int) -> np.ndarray:
    """Pixels and correct pixels in bins of uncertainty, each less than a hundredth of its value wide.

    Args:
        uncertainty: of each pixel, 0 or greater, in any unit and of any shape.
        pred: predicted ids, integers of the same shape.
        target: ground truth likewise.
        ignore: pixels of this ground-truth id count for nothing.

    Returns:
        (2, BINS) int64: number, correct, from certain to uncertain; they add up over images.

    Raises:
        ValueError: arrays of different shapes, or an uncertainty below 0 or nan.
    """
    if not uncertainty.shape == pred.shape == target.shape:
        raise ValueError(f"shapes {uncertainty.shape}, {pred.shape} and {target.shape}: takes equal ones")
    counted = target != ignore
    values, right = uncertainty[counted].astype(np.float32), (pred == target)[counted]
    if values.size and not values.min() >= 0:
        raise ValueError(f"uncertainties from {values.min()}: takes those of 0 or greater")
    index = (values + np.float32(0)).view(np.int32) >> 16  # -0 becomes 0
    number = np.bincount(index, minlength=BINS)
    return np.stack([number, np.bincount(index[right], minlength=BINS)])


def kept_accuracy(counts: np.ndarray, shares: Sequence[float] | np.ndarray) -> np.ndarray:
    """Accuracy of the least uncertain pixels, as fractions; nan without a pixel.

    Args:
        counts: (2, B), the sum of :func:`risk_coverage_counts` over the images. Within a bin pixels are taken as mixed.
        shares: of all pixels that are kept, above 0 and up to 1.

    Returns:
        The accuracy at each share.

    Raises:
        ValueError: a share outside its range.
    """
    kept = np.asarray(shares, float)
    if kept.size and not 0 < kept.min() <= kept.max() <= 1:
        raise ValueError(f"shares {kept.min()}..{kept.max()}: takes those above 0 and up to 1")
    number, correct = np.concatenate([np.zeros((2, 1)), counts.cumsum(1)], axis=1)
    if not number[-1]:
        return np.full(kept.shape, np.nan)
    wanted = kept * number[-1]
    return np.interp(wanted, number, correct) / wanted


def area_under_risk(counts: np.ndarray, *, steps: int = 100) -> float:
    """Mean of 1 - accuracy over shares of 1/steps, 2/steps, ... 1 of the pixels kept (AURC); nan without a pixel."""
    return float(1 - kept_accuracy(counts, np.arange(1, steps + 1) / steps).mean())
