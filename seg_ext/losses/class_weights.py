"""Class weights from pixel counts: median and inverse frequency (Eigen and Fergus, 2015), effective number (2019)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def median_frequency(counts: ArrayLike, image_pixels: ArrayLike) -> NDArray[np.float64]:
    """``median(f) / f_c``, where ``f_c`` is the share of class c in the images that contain it.

    Args:
        counts: (K,), pixels of each class.
        image_pixels: (K,), pixels, ignored ones too, of the images that contain each class.

    Returns:
        (K,) weights; the median is over the classes that occur, and one that does not weighs 0.

    Raises:
        ValueError: counts that are no counts, or more pixels of a class than its images have.
    """
    counts, pixels = _counts("counts", counts), _counts("image_pixels", image_pixels)
    if counts.shape != pixels.shape or (counts > pixels).any():
        raise ValueError(f"image_pixels {pixels.tolist()}: takes for each of counts {counts.tolist()} as many at least")
    there = counts > 0
    frequency = counts[there] / pixels[there]
    return _spread(there, np.median(frequency) / frequency)


def inverse_frequency(counts: ArrayLike) -> NDArray[np.float64]:
    """``n / (K n_c)``: the weights whose mean over all pixels is 1.

    Args:
        counts: (K,), pixels of each class; K is the number of those that occur.

    Returns:
        (K,) weights; a class that does not occur weighs 0.

    Raises:
        ValueError: counts that are no counts.
    """
    counts = _counts("counts", counts)
    there = counts > 0
    return _spread(there, counts.sum() / (there.sum() * counts[there]))


def effective_number(counts: ArrayLike, *, beta: float = 0.9999) -> NDArray[np.float64]:
    """``(1 - beta) / (1 - beta^n_c)``, scaled to a mean of 1 over the classes that occur (Cui et al., 2019, section 4).

    Args:
        counts: (K,), samples of each class; of pixels, which are far from independent, counts of images serve better.
        beta: from 0, no weighting, to below 1, towards inverse frequency.

    Returns:
        (K,) weights; a class that does not occur weighs 0.

    Raises:
        ValueError: counts that are no counts, or beta outside [0, 1).
    """
    counts = _counts("counts", counts)
    if not 0 <= beta < 1:
        raise ValueError(f"beta {beta!r}: takes a number >= 0 and < 1")
    there = counts > 0
    weights = (1 - beta) / (1 - beta ** counts[there])
    return _spread(there, weights / weights.mean())


def _counts(name: str, values: ArrayLike) -> NDArray[np.float64]:
    counts = np.asarray(values, dtype=np.float64)
    if counts.ndim != 1 or not np.isfinite(counts).all() or (counts < 0).any() or not counts.any():
        raise ValueError(f"{name} {counts.tolist()}: takes a number >= 0 a class, one of them above 0")
    return counts


def _spread(there: NDArray[np.bool_], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    spread = np.zeros(there.shape)
    spread[there] = weights
    return spread
