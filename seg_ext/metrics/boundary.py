"""How well class boundaries are met: Boundary IoU (Cheng et al., 2021), BF (Csurka et al., 2013), IoU in a trimap.

What is ignored in the ground truth is ignored in the prediction too; where a class ends at ignored pixels is a boundary
of it in both. All classes are done at once: a pixel lies in the band of width d inside its class exactly if another
label is in the (2d+1) x (2d+1) window around it.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from scipy.spatial import cKDTree

from seg_ext.metrics.boundary_masks import DILATION, boundary_width
from seg_ext.metrics.labels import compact_labels, joint_counts

WIDTHS = (1, 2, 5, 10, 20, 40)  # pixels, of trimaps
_TOLERANCE = 0.0075  # of the image's diagonal, BF's
_CROSS, _SQUARE = (cv2.getStructuringElement(shape, (3, 3)) for shape in (cv2.MORPH_CROSS, cv2.MORPH_RECT))


def boundary_counts(
    pred: np.ndarray, target: np.ndarray, num_classes: int, *, ignore: int, dilation: float = DILATION
) -> np.ndarray:
    """Pixels of each class in the inner bands of width d along its boundaries, of the image's frame too.

    d is ``dilation`` times the diagonal, rounded, 1 pixel at least; the band of a class is what d erosions of its mask
    with a 3x3 square take away.

    Args:
        pred: (H, W) predicted ids, integers.
        target: (H, W) ground truth, ids in 0..K-1, or ``ignore``.
        num_classes: K.
        ignore: pixels of this ground-truth id count for nothing.
        dilation: share of the diagonal.

    Returns:
        (K, 3) int64: pixels in both bands, in the ground truth's, in the prediction's; they add up over images.

    Raises:
        TypeError: a map that is not of integers.
        ValueError: as :func:`seg_ext.metrics.confusion.confusion_matrix`.
    """
    maps = compact_labels(pred, target, num_classes, ignore=ignore)
    width = boundary_width(*target.shape, ratio=dilation)
    guess, truth = (np.where(_band(labels, width), labels, num_classes + 1).astype(labels.dtype) for labels in maps)
    counts = joint_counts(guess, truth, num_classes)
    both, expected, found = counts.diagonal(), counts.sum(1), counts.sum(0)
    return np.stack([both, expected, found], axis=1)[:num_classes]


def trimap_counts(
    pred: np.ndarray, target: np.ndarray, num_classes: int, *, ignore: int, widths: Sequence[int] = WIDTHS
) -> np.ndarray:
    """Pixels of each class within w pixels of another ground-truth label, along either axis or diagonally.

    As in Kraehenbuehl and Koltun, 2011, and DeepLab, 2015; ignored pixels are another label and are not counted, the
    image's frame is none.

    Args:
        pred: (H, W) predicted ids, integers.
        target: (H, W) ground truth, ids in 0..K-1, or ``ignore``.
        num_classes: K.
        ignore: pixels of this ground-truth id count for nothing.
        widths: W ascending numbers of pixels.

    Returns:
        (W, K, 3) int64: correct, ground-truth and predicted pixels; they add up over images.

    Raises:
        TypeError: a map that is not of integers.
        ValueError: as :func:`seg_ext.metrics.confusion.confusion_matrix`.
    """
    guess, truth = compact_labels(pred, target, num_classes, ignore=ignore)
    edge = _differs(truth, _SQUARE, cv2.BORDER_REPLICATE)
    distance = cv2.distanceTransform((~edge).view(np.uint8), cv2.DIST_C, 3) + 1
    size, last = num_classes + 2, widths[-1]
    narrowest = np.searchsorted(widths, np.arange(last + 2)) * size  # by distance, the first trimap of a pixel
    start = narrowest.astype(np.int32)[np.minimum(distance, last + 1).astype(np.uint8 if last < 255 else np.intp)]
    expected, found = start + truth, start + guess
    bins = (len(widths) + 1) * size
    counts = [np.bincount(x.ravel(), minlength=bins) for x in (expected[truth == guess], expected, found)]
    return np.stack(counts, axis=-1).reshape(-1, size, 3)[: len(widths), :num_classes].cumsum(axis=0)


def contour_f1(
    pred: np.ndarray, target: np.ndarray, num_classes: int, *, ignore: int, tolerance: float = _TOLERANCE
) -> np.ndarray:
    """F1 of each class's contour in one image, matched where it is nearer than ``tolerance`` times the diagonal.

    The contour of a class are its pixels with one of another label above, below, left or right; the image's frame is
    no contour. A class that fills the whole image scores 1 where the prediction says the same, else 0.

    Args:
        pred: (H, W) predicted ids, integers.
        target: (H, W) ground truth, ids in 0..K-1, or ``ignore``.
        num_classes: K.
        ignore: pixels of this ground-truth id count for nothing.
        tolerance: share of the diagonal.

    Returns:
        (K,) float64, nan for a class that the ground truth does not have.

    Raises:
        TypeError: a map that is not of integers.
        ValueError: as :func:`seg_ext.metrics.confusion.confusion_matrix`.
    """
    maps = compact_labels(pred, target, num_classes, ignore=ignore)
    radius = tolerance * float(np.hypot(*target.shape))
    edges = [_differs(labels, _CROSS, cv2.BORDER_REPLICATE) for labels in maps]
    points = [_points(labels, edge, num_classes, radius) for labels, edge in zip(maps, edges, strict=True)]
    (found, hits), (expected, met) = (
        _matched(points[i], points[1 - i], labels, edges[1 - i] & (maps[0] == maps[1]), num_classes, radius)
        for i, labels in enumerate(maps)
    )
    precision, recall = (
        np.divide(a, b, out=np.zeros(num_classes), where=b > 0) for a, b in ((hits, found), (met, expected))
    )
    total = precision + recall
    score = np.divide(2 * precision * recall, total, out=np.zeros(num_classes), where=total > 0)
    guess, truth = (np.bincount(labels.ravel(), minlength=num_classes)[:num_classes] for labels in maps)
    score[(expected == 0) & (truth > 0) & (guess == truth)] = 1.0
    return np.where(truth > 0, score, np.nan)


def _band(labels: np.ndarray, width: int) -> np.ndarray:
    """(H, W) whether a pixel is within ``width`` of another label or of the frame."""
    window = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    return _differs(labels + 1, window, cv2.BORDER_CONSTANT)


def _differs(labels: np.ndarray, window: np.ndarray, border: int) -> np.ndarray:
    """(H, W) whether another label is in the window; a constant border is the label 0."""
    lowest, highest = (change(labels, window, borderType=border, borderValue=0) for change in (cv2.erode, cv2.dilate))
    return lowest != highest


def _points(labels: np.ndarray, edge: np.ndarray, num_classes: int, radius: float) -> np.ndarray:
    """(P, 3) contour pixels: row, column, and class, times what keeps classes further apart than the radius."""
    rows, columns = np.nonzero(edge & (labels < num_classes))
    return np.stack([rows, columns, labels[rows, columns] * (2 * radius + 2)], axis=1)


def _matched(
    points: np.ndarray, others: np.ndarray, labels: np.ndarray, same: np.ndarray, num_classes: int, radius: float
) -> tuple[np.ndarray, np.ndarray]:
    """(K,) number of contour pixels of each class, and of those that have one of ``others`` near.

    ``same`` (H, W) tells where the other map has a contour of the same class: those need no search.
    """
    rows, columns = points[:, :2].astype(np.intp).T
    near = same[rows, columns]
    if len(others) and not near.all():
        tree = cKDTree(others, compact_nodes=False, balanced_tree=False)
        distance, _ = tree.query(points[~near], distance_upper_bound=radius + 1e-6)
        near[~near] = distance < radius
    classes = labels[rows, columns]
    return np.bincount(classes, minlength=num_classes), np.bincount(classes[near], minlength=num_classes)
