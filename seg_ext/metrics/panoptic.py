"""Panoptic quality: matched segments, their IoU, and what is left over (Kirillov et al., 2019, section 4)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

_AT_ONCE = 1 << 16  # pixels


@dataclass(frozen=True, eq=False)
class PanopticStat:
    """Counts per class, (K,) each; the stat of a set is the sum over its images."""

    tp: np.ndarray  # int64
    fp: np.ndarray  # int64
    fn: np.ndarray  # int64
    iou_sum: np.ndarray  # float64, over the true positives

    @classmethod
    def zeros(cls, num_classes: int) -> PanopticStat:
        """The stat of no image."""
        counts = np.zeros((3, num_classes), np.int64)
        return cls(counts[0], counts[1], counts[2], np.zeros(num_classes))

    def __add__(self, other: PanopticStat) -> PanopticStat:
        return PanopticStat(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.iou_sum + other.iou_sum)


class Quality(NamedTuple):
    """Means over a group of classes, as fractions; nan where no class of the group has a segment."""

    pq: float
    sq: float
    rq: float


@dataclass(frozen=True, eq=False)
class PanopticScores:
    """PQ, SQ and RQ of all classes, of things and of stuff, and per class (K,), nan for a class without a segment."""

    all: Quality
    things: Quality
    stuff: Quality
    pq: np.ndarray
    sq: np.ndarray
    rq: np.ndarray


def panoptic_quality(
    pred: np.ndarray,
    target: np.ndarray,
    *,
    pred_classes: Mapping[int, int],
    target_classes: Mapping[int, int],
    num_classes: int,
    crowd: Collection[int] = (),
) -> PanopticStat:
    """Match the segments of one image and count them per class.

    A predicted and a ground-truth segment match where they share a class, the latter is no crowd, and their IoU,
    leaving out the prediction's pixels on void, exceeds 1/2; so each matches at most once. A crowd region is never
    missed, and an unmatched prediction is forgiven if more than half of it lies on void and on crowd regions of its
    class. Areas are counted in the maps: a segment that is listed but covers no pixel does not exist.

    Args:
        pred: (H, W) segment ids, 0 = void.
        target: (H, W) segment ids, 0 = void.
        pred_classes: class 0..K-1 of each id in ``pred``.
        target_classes: class 0..K-1 of each id in ``target``.
        num_classes: K.
        crowd: ids in ``target`` that are crowd regions.

    Raises:
        ValueError: maps of different shapes, an id outside 0..2^31-1 or without a class, a class outside 0..K-1.
    """
    target_ids, pred_ids, area = _overlaps(target, pred)
    truth, t = np.unique(target_ids, return_inverse=True)
    guess, p = np.unique(pred_ids, return_inverse=True)
    truth_class = _classes_of(truth, target_classes, num_classes, "ground truth")
    guess_class = _classes_of(guess, pred_classes, num_classes, "prediction")
    is_crowd = np.array([segment in crowd for segment in truth.tolist()], bool)
    truth_area, guess_area = np.bincount(t, weights=area), np.bincount(p, weights=area)
    on_void = truth_class[t] < 0
    void_area = np.bincount(p, weights=area * on_void)
    alike = ~on_void & (truth_class[t] == guess_class[p])

    pair = np.flatnonzero(alike & ~is_crowd[t])
    iou = area[pair] / (truth_area[t[pair]] + guess_area[p[pair]] - area[pair] - void_area[p[pair]])
    pair, iou = pair[iou > 0.5], iou[iou > 0.5]
    matched = truth_class[t[pair]]

    missed = (truth_class >= 0) & ~is_crowd
    missed[t[pair]] = False
    forgiven = np.bincount(p, weights=area * (on_void | (alike & is_crowd[t]))) > 0.5 * guess_area
    wrong = (guess_class >= 0) & ~forgiven
    wrong[p[pair]] = False
    return PanopticStat(
        tp=np.bincount(matched, minlength=num_classes),
        fp=np.bincount(guess_class[wrong], minlength=num_classes),
        fn=np.bincount(truth_class[missed], minlength=num_classes),
        iou_sum=np.bincount(matched, weights=iou, minlength=num_classes),
    )


def pq_scores(stat: PanopticStat, is_thing: np.ndarray) -> PanopticScores:
    """PQ = sum of IoU / (TP + FP/2 + FN/2) = SQ x RQ (equation 2), averaged over the classes that have a segment.

    Args:
        stat: counts of K classes.
        is_thing: (K,) bool.
    """
    pq, sq, rq = class_quality(stat.iou_sum, stat.tp, stat.fp, stat.fn)
    seen = ~np.isnan(pq)

    def mean(group: np.ndarray) -> Quality:
        return Quality(*(float(x[group].mean()) if group.any() else np.nan for x in (pq, sq, rq)))

    return PanopticScores(mean(seen), mean(seen & is_thing), mean(seen & ~is_thing), pq, sq, rq)


def class_quality(
    iou_sum: np.ndarray, tp: np.ndarray, fp: np.ndarray, fn: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """PQ, SQ and RQ of counts of any shape, nan where there is no segment."""
    weight = tp + 0.5 * fp + 0.5 * fn
    rq = np.divide(tp, weight, out=np.full_like(weight, np.nan), where=weight > 0)
    sq = np.where(weight > 0, iou_sum / np.maximum(tp, 1), np.nan)
    return sq * rq, sq, rq


def _overlaps(target: np.ndarray, pred: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids of the target, ids of the prediction and area of each pair that meets; sorts runs of pixels, not pixels."""
    if pred.shape != target.shape:
        raise ValueError(f"prediction of shape {pred.shape} for ground truth of shape {target.shape}: takes equal ones")
    t, p = target.ravel(), pred.ravel()
    starts, size = _runs(t, p), len(t)
    t, p = t[starts].astype(np.int64), p[starts].astype(np.int64)
    if min(t.min(initial=0), p.min(initial=0)) < 0 or max(t.max(initial=0), p.max(initial=0)) >= 2**31:
        raise ValueError("segment ids: takes 0..2147483647")
    key = t << 32 | p
    order = np.argsort(key)
    key = key[order]
    groups = np.flatnonzero(np.append(True, key[1:] != key[:-1])[: len(key)])
    area = np.add.reduceat(np.diff(starts, append=size)[order], groups) if len(key) else key
    return key[groups] >> 32, key[groups] & 0xFFFFFFFF, area


def _runs(t: np.ndarray, p: np.ndarray) -> np.ndarray:
    """First pixels of the runs in which both maps (n,) stay the same; looks at as many at once as a cache holds."""
    found = [np.zeros(min(len(t), 1), np.intp)]
    for start in range(1, len(t), _AT_ONCE):
        here, before = slice(start, start + _AT_ONCE), slice(start - 1, min(start + _AT_ONCE, len(t)) - 1)
        changes = t[here] != t[before]
        changes |= p[here] != p[before]
        found.append(np.flatnonzero(changes) + start)
    return np.concatenate(found)


def _classes_of(ids: np.ndarray, classes: Mapping[int, int], num_classes: int, name: str) -> np.ndarray:
    """Class of each id, -1 for void."""
    known = {0: -1, **{segment: category for segment, category in classes.items() if segment}}
    unknown = [segment for segment in ids.tolist() if segment not in known]
    if unknown:
        raise ValueError(f"the {name} has segments without a class: {unknown[:5]}; takes one for each id but 0")
    found = np.array([known[segment] for segment in ids.tolist()], dtype=np.int64)
    outside = found[(found >= num_classes) | (found < 0) & (ids != 0)]
    if outside.size:
        raise ValueError(f"the {name} has classes {outside[:5].tolist()}: takes 0..{num_classes - 1}")
    return found
