"""Semantic segmentation scores from one confusion matrix over a whole set (Long et al., FCN, 2015, section 5)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from seg_ext.metrics.labels import compact_labels, joint_counts


@dataclass(frozen=True, eq=False)
class SemanticScores:
    """Scores as fractions; nan where no pixel of the ground truth counts."""

    miou: float
    fwiou: float
    macc: float
    pacc: float
    mdice: float
    iou: np.ndarray  # (K,), nan for a class without ground truth
    acc: np.ndarray  # (K,), likewise
    dice: np.ndarray  # (K,), likewise; also the F1 of the class's pixels


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
    counts = joint_counts(*compact_labels(pred, target, num_classes, ignore=ignore), num_classes)
    return counts[:num_classes, : num_classes + 1]


def class_scores(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """IoU, accuracy and Dice (..., K) of counts (..., K, 3) as :func:`class_counts` gives; nan without ground truth."""
    correct, truth, predicted = np.moveaxis(counts.astype(np.float64), -1, 0)
    shares = (correct, truth + predicted - correct), (correct, truth), (2 * correct, truth + predicted)
    iou, acc, dice = (
        np.divide(share, whole, out=np.full_like(truth, np.nan), where=truth > 0) for share, whole in shares
    )
    return iou, acc, dice


def class_counts(confusion: np.ndarray) -> np.ndarray:
    """(K, 3) of a confusion matrix (K, K) or (K, K+1): correct, ground-truth and predicted pixels of each class."""
    classes = len(confusion)
    return np.stack([confusion.diagonal(), confusion.sum(1), confusion[:, :classes].sum(0)], axis=1)


def semantic_scores(confusion: np.ndarray) -> SemanticScores:
    """Mean IoU, frequency-weighted IoU, mean and pixel accuracy, and mean Dice of a set.

    With t the correct pixels, g the ground truth's and p the predicted ones of a class, IoU is ``t / (g + p - t)``,
    accuracy ``t / g`` and Dice ``2 t / (g + p)``. A class without ground truth is nan and left out of the means, as in
    detectron2; pixels wrongly given to it count against the class they belong to.

    Args:
        confusion: (K, K) or (K, K+1) counts, rows ground truth; the sum of :func:`confusion_matrix` over the images.

    Raises:
        ValueError: an array of another shape.
    """
    if confusion.ndim != 2 or confusion.shape[1] - len(confusion) not in (0, 1):
        raise ValueError(f"confusion matrix of shape {confusion.shape}: takes (K, K) or (K, K+1)")
    counts = class_counts(confusion)
    correct, truth, _ = counts.T.astype(np.float64)
    iou, acc, dice = class_scores(counts)
    present = truth > 0
    if not present.any():
        return SemanticScores(np.nan, np.nan, np.nan, np.nan, np.nan, iou, acc, dice)
    return SemanticScores(
        miou=float(iou[present].mean()),
        fwiou=float((truth * iou)[present].sum() / truth.sum()),
        macc=float(acc[present].mean()),
        pacc=float(correct.sum() / truth.sum()),
        mdice=float(dice[present].mean()),
        iou=iou,
        acc=acc,
        dice=dice,
    )
