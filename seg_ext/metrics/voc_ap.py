"""Average precision by the rules of PASCAL VOC (Everingham et al., 2010), for boxes and for masks (AP^r, SDS, 2014)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

# of an image: classes (G,) of its objects, which of them are difficult (G,), and its detections, in parts of
# scores (D,), classes (D,) and IoU with each object (D, G)
VocImage = tuple[np.ndarray, np.ndarray, Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]]


@dataclass(frozen=True, eq=False)
class VocMatches:
    """D detections and the ground truth each overlaps most, of G objects."""

    scores: np.ndarray  # (D,)
    classes: np.ndarray  # (D,)
    overlap: np.ndarray  # (D,) IoU with the object of its image and class it overlaps most, 0 where there is none
    best: np.ndarray  # (D,) that object, 0..G-1; -1 where there is none
    target_classes: np.ndarray  # (G,)
    difficult: np.ndarray  # (G,) bool: neither to be found nor wrong to find


def box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(A, B) IoU of boxes (A, 4) and (B, 4), x0, y0, x1, y1 in continuous coordinates; 0 where both are empty."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    common = (high - low).clip(0).prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).clip(0).prod(axis=1) for boxes in (a, b)]
    union = areas[0][:, None] + areas[1] - common
    return np.divide(common, union, out=np.zeros_like(union, np.float64), where=union > 0)


def voc_matches(images: Iterable[VocImage]) -> VocMatches:
    """The object of its image and class that each detection overlaps most, the first of several."""
    rows = [(np.zeros(0), np.zeros(0, int), np.zeros(0), np.zeros(0, int))]
    objects = [(np.zeros(0, int), np.zeros(0, bool))]
    first = 0
    for targets, difficult, parts in images:
        for scores, classes, iou in parts:
            overlap, best = _best_overlaps(iou, classes, targets)
            rows.append((scores, classes, overlap, np.where(best < 0, -1, best + first)))
        objects.append((targets, difficult))
        first += len(targets)
    return VocMatches(*(np.concatenate(column) for part in (rows, objects) for column in zip(*part, strict=True)))


def _best_overlaps(iou: np.ndarray, classes: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(D,) greatest IoU with an object of the same class, 0 without one, and (D,) that object's index, there -1."""
    if not iou.size:
        return np.zeros(len(classes)), np.full(len(classes), -1)
    alike = np.where(classes[:, None] == targets, iou, -1.0)
    best = alike.argmax(axis=1)
    overlap = np.take_along_axis(alike, best[:, None], axis=1)[:, 0]
    return overlap.clip(0), np.where(overlap < 0, -1, best)


def voc_ap(matches: VocMatches, num_classes: int, *, threshold: float, points: int | None = None) -> np.ndarray:
    """Average precision of each class.

    By falling score, a detection finds the object it overlaps most if their IoU reaches the threshold and no earlier
    one found it; a second one is wrong. One whose object is difficult does not count. Equal scores keep their order.

    Args:
        matches: detections of all images.
        num_classes: K.
        threshold: least IoU.
        points: 11 for the mean precision at recalls 0, 0.1, ..., 1 (VOC 2007); None for the area under the curve of
            falling precision (VOC 2010 on).

    Returns:
        (K,) in 0..1; nan for a class without an object that is not difficult.
    """
    order = np.argsort(-matches.scores, kind="stable")
    classes, best = matches.classes[order], matches.best[order]
    near = (best >= 0) & (matches.overlap[order] >= threshold)
    skipped = np.zeros(len(order), bool)
    skipped[near] = matches.difficult[best[near]]
    right = np.zeros(len(order), bool)
    claims = np.flatnonzero(near & ~skipped)
    right[claims[np.unique(best[claims], return_index=True)[1]]] = True
    totals = np.bincount(matches.target_classes[~matches.difficult], minlength=num_classes)
    ap = np.full(num_classes, np.nan)
    for index in np.flatnonzero(totals):
        hits = right[(classes == index) & ~skipped]
        found = np.cumsum(hits)
        ap[index] = average_precision(found / totals[index], found / np.arange(1, len(hits) + 1), points=points)
    return ap


def average_precision(recall: np.ndarray, precision: np.ndarray, *, points: int | None = None) -> float:
    """Average of the greatest precision at or beyond each recall.

    Args:
        recall: (D,) rising.
        precision: (D,).
        points: as for :func:`voc_ap`; the levels are multiples of the binary 0.1, as in the released programs, so that
            a recall of 3/10 does not reach the fourth.
    """
    ceiling = np.maximum.accumulate(precision[::-1])[::-1]
    if points is None:
        return float(np.diff(recall, prepend=0.0) @ ceiling)
    levels = np.arange(points) * (1 / (points - 1))
    return float(np.append(ceiling, 0.0)[np.searchsorted(recall, levels)].mean())
