"""Semantic segmentation scores from one confusion matrix over a whole set (Long et al., FCN, 2015, section 5)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class SemanticScores:
    """Scores as fractions; nan where no pixel of the ground truth counts."""

    miou: float
    fwiou: float
    macc: float
    pacc: float
    iou: np.ndarray  # (K,), nan for a class without ground truth
    acc: np.ndarray  # (K,), nan for a class without ground truth


def confusion_matrix(pred: np.ndarray, target: np.ndarray, num_classes: int, *, ignore: int) -> np.ndarray:
    """Count the pixels of each pair (ground truth, prediction).

    Args:
        pred: predicted ids, integers of any shape.
        target: ground truth of the same shape, ids in 0..K-1, or ``ignore``.
        num_classes: K.
        ignore: pixels of this ground-truth id count for nothing.

    Returns:
        (K, K+1) int64, rows ground truth, columns predictions. The last column holds predictions outside 0..K-1:
        a miss for the class of the pixel, and a false positive for none.

    Raises:
        TypeError: a map that is not of integers.
        ValueError: maps of different shapes, or a ground-truth id that is neither in 0..K-1 nor ``ignore``.
    """
    if pred.dtype.kind not in "biu" or target.dtype.kind not in "biu":
        raise TypeError(f"label maps of type {pred.dtype} and {target.dtype}: takes integers")
    if pred.shape != target.shape:
        raise ValueError(f"prediction of shape {pred.shape} for ground truth of shape {target.shape}: takes equal ones")
    counted = target != ignore
    rows, columns = target[counted].astype(np.int64), pred[counted].astype(np.int64)
    if rows.size and not 0 <= rows.min() <= rows.max() < num_classes:
        raise ValueError(
            f"ground-truth ids {rows.min()}..{rows.max()}: takes 0..{num_classes - 1}, or ignored {ignore}"
        )
    columns[(columns < 0) | (columns >= num_classes)] = num_classes
    counts = np.bincount(rows * (num_classes + 1) + columns, minlength=num_classes * (num_classes + 1))
    return counts.reshape(num_classes, num_classes + 1)


def semantic_scores(confusion: np.ndarray) -> SemanticScores:
    """Mean IoU, frequency-weighted IoU, mean and pixel accuracy of a set.

    With t the correct pixels, g the ground truth's and p the predicted ones of a class, IoU is ``t / (g + p - t)``
    and accuracy ``t / g``. A class without ground truth is nan and left out of the means, as in detectron2; pixels
    wrongly given to it count against the class they belong to.

    Args:
        confusion: (K, K) or (K, K+1) counts, rows ground truth; the sum of :func:`confusion_matrix` over the images.

    Raises:
        ValueError: an array of another shape.
    """
    if confusion.ndim != 2 or confusion.shape[1] - len(confusion) not in (0, 1):
        raise ValueError(f"confusion matrix of shape {confusion.shape}: takes (K, K) or (K, K+1)")
    correct = confusion.diagonal().astype(np.float64)
    truth = confusion.sum(axis=1).astype(np.float64)
    predicted = confusion[:, : len(confusion)].sum(axis=0)
    present = truth > 0
    iou = np.divide(correct, truth + predicted - correct, out=np.full_like(truth, np.nan), where=present)
    acc = np.divide(correct, truth, out=np.full_like(truth, np.nan), where=present)
    if not present.any():
        return SemanticScores(np.nan, np.nan, np.nan, np.nan, iou, acc)
    return SemanticScores(
        miou=float(iou[present].mean()),
        fwiou=float((truth * iou)[present].sum() / truth.sum()),
        macc=float(acc[present].mean()),
        pacc=float(correct.sum() / truth.sum()),
        iou=iou,
        acc=acc,
    )
