"""COCO's average precision (Lin et al., 2014) of one class, of many samples of the images at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_RECALLS = np.linspace(0.0, 1.0, 101)  # pycocotools' own numbers: 0.07 is a bit more than 7/100
_BLOCK = 2**18  # numbers at once


@dataclass(frozen=True, eq=False)
class ClassMatches:
    """D detections of one class in N images, by falling score, those of equal score in the order of the images."""

    scores: np.ndarray  # (D,)
    images: np.ndarray  # (D,) of 0..N-1
    matched: np.ndarray  # (T, D) bool: found an object, by IoU threshold
    ignored: np.ndarray  # (T, D) bool: neither right nor wrong, as in a crowd region
    truths: np.ndarray  # (N,) objects to be found


def weighted_ap(found: ClassMatches, weights: np.ndarray) -> np.ndarray:
    """Mean precision at 101 recalls, each the best at that recall or beyond, as pycocotools' accumulate has it.

    An image of weight 2 counts as two images, one right after the other.

    Args:
        found: of the N images, matched by COCO's protocol.
        weights: (R, N) whole numbers, how often each image is in each of the R samples.

    Returns:
        (R, T) in 0..1; nan where a sample has no object to be found.
    """
    totals = weights @ found.truths
    ap = np.zeros((len(weights), len(found.matched)))
    if len(found.scores) and totals.any():
        detections, copies = _columns(found, int(weights.max()))
        images, ignored = found.images[detections], found.ignored[:, detections]
        right = found.matched[:, detections] & ~ignored
        step = max(1, _BLOCK // len(detections))
        for start in range(0, len(weights), step):
            part = slice(start, start + step)
            drawn = weights[part][:, images].astype(np.float64)
            drawn[:, copies >= 0] = drawn[:, copies >= 0] > copies[copies >= 0]
            ap[part] = _average_precision(drawn, right, ignored, np.maximum(totals[part], 1))
    ap[totals == 0] = np.nan
    return ap


def _columns(found: ClassMatches, most: int) -> tuple[np.ndarray, np.ndarray]:
    """(C,) a detection, and (C,) which copy of its image it is of, -1 where it stands for all of them.

    Only equal scores within an image need a column for each of at most ``most`` copies: they take turns, a b a b, where
    two columns of weight 2 would be a a b b.
    """
    tied = (found.scores[1:] == found.scores[:-1]) & (found.images[1:] == found.images[:-1])
    run = np.concatenate([[0], np.cumsum(~tied)])
    alone = np.bincount(run)[run] == 1
    number = np.where(alone, 1, most)
    detections = np.repeat(np.arange(len(run)), number)
    copies = np.arange(len(detections)) - np.repeat(np.cumsum(number) - number, number)
    order = np.lexsort((detections, copies, run[detections]))
    return detections[order], np.where(alone[detections], -1, copies)[order]


def _average_precision(drawn: np.ndarray, right: np.ndarray, ignored: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """(R, T), of (R, C) how often each column counts, (T, C) which are right or ignored, and (R,) objects.

    Precision is best where recall rises, so right detections alone are looked at.
    """
    shown = drawn.cumsum(axis=1)
    ap = np.zeros((len(drawn), len(right)))
    for t, (hits, unseen) in enumerate(zip(map(np.flatnonzero, right), map(np.flatnonzero, ignored), strict=True)):
        if not hits.size:
            continue
        correct, counted = drawn[:, hits].cumsum(axis=1), shown[:, hits]
        if unseen.size:
            skipped = np.pad(drawn[:, unseen].cumsum(axis=1), ((0, 0), (1, 0)))
            counted = counted - skipped[:, np.searchsorted(unseen, hits)]
        precision = correct / (counted + np.spacing(1))
        best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        levels = np.searchsorted(_RECALLS, correct / totals[:, None], side="right")  # reached so far
        ap[:, t] = np.einsum("rc,rc->r", np.diff(levels, axis=1, prepend=0), best) / len(_RECALLS)
    return ap
