"""Label maps brought into one small integer type, with one id for what is ignored and one for what is no class."""

from __future__ import annotations

import numpy as np


def compact_labels(
    pred: np.ndarray, target: np.ndarray, num_classes: int, *, ignore: int
) -> tuple[np.ndarray, np.ndarray]:
    """Both maps with the classes 0..K-1, K for a prediction of no class, and K+1 in both where the truth is ignored.

    Maps that are compact already, with ``ignore`` K+1, come back equal.

    Args:
        pred: predicted ids, integers of any shape.
        target: ground truth of the same shape, ids in 0..K-1, or ``ignore``.
        num_classes: K.
        ignore: pixels of this ground-truth id count for nothing.

    Returns:
        Prediction and ground truth, uint8 where K+2 fits, else uint16.

    Raises:
        TypeError: a map that is not of integers.
        ValueError: maps of different shapes, a ground-truth id that is neither in 0..K-1 nor ``ignore``, or more than
            65533 classes.
    """
    if pred.dtype.kind not in "biu" or target.dtype.kind not in "biu":
        raise TypeError(f"label maps of type {pred.dtype} and {target.dtype}: takes integers")
    if pred.shape != target.shape:
        raise ValueError(f"prediction of shape {pred.shape} for ground truth of shape {target.shape}: takes equal ones")
    if not 0 < num_classes <= 65533:
        raise ValueError(f"{num_classes} classes: takes 1 to 65533")
    dtype = np.uint8 if num_classes <= 253 else np.uint16
    void = target == ignore
    truth = np.where(void, np.array(num_classes + 1, dtype), target.astype(dtype))
    odd = _outside(target, num_classes) & ~void
    if odd.any():
        found = target[~void]
        raise ValueError(
            f"ground-truth ids {found.min()}..{found.max()}: takes 0..{num_classes - 1}, or ignored {ignore}"
        )
    guess = pred.astype(dtype)
    guess[_outside(pred, num_classes)] = num_classes
    guess[void] = num_classes + 1
    return guess, truth


def _outside(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Where ids are no class."""
    if labels.dtype.kind == "i":
        return (labels < 0) | (labels >= num_classes)
    return labels.astype(np.uint8) >= num_classes if labels.dtype.kind == "b" else labels >= num_classes


def joint_counts(pred: np.ndarray, target: np.ndarray, num_classes: int) -> np.ndarray:
    """(K+2, K+2) int64 pixels of each pair (ground truth, prediction) of compact label maps."""
    size = num_classes + 2
    codes: np.ndarray = target.astype(np.uint16 if size**2 <= 1 << 16 else np.int64) * size
    np.add(codes, pred, out=codes)
    return np.bincount(codes.ravel(), minlength=size**2).reshape(size, size)
