"""Search for the dense CRF's parameters on images with ground truth, coarse to fine (DeepLab, Chen et al., 2015)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seg_ext.errors import UserError
from seg_ext.inference.refine import build_dense_crf
from seg_ext.metrics import confusion_matrix, semantic_scores

Point = dict[str, Any]
Sample = tuple[Tensor, Tensor, np.ndarray]  # scores (K, H, W), image (B, H, W), ground truth (H, W)

GRID: dict[str, tuple[float, ...]] = {"bi_w": (3, 5, 10), "bi_xy_std": (30, 50, 80), "bi_rgb_std": (3, 5, 10)}
SEARCHED = ("bi_w", "bi_xy_std", "bi_rgb_std", "pos_w", "pos_xy_std", "iterations")
_ALIKE = ("bi_w", "pos_w", "iterations", "compatibility")  # what filters do not depend on


def grid_points(grid: Mapping[str, Sequence[float]], fixed: Mapping[str, Any]) -> list[Point]:
    """Every combination of the grid's values, over the other arguments of the CRF."""
    return [{**fixed, **dict(zip(grid, values, strict=True))} for values in product(*grid.values())]


def refine_grid(grid: Mapping[str, Sequence[float]], best: Mapping[str, Any]) -> dict[str, tuple[float, ...]]:
    """The grid of the next round: around the best value of each argument, half way to the values beside it.

    At the end of a grid the step to the one neighbour serves for both sides; values stay positive.
    """
    finer = {}
    for key, values in grid.items():
        known, value = sorted(set(values)), best[key]
        place = known.index(value)
        steps = [b - a for a, b in zip(known[:-1], known[1:], strict=True)]
        around = {value}
        if steps:
            below, above = steps[max(place - 1, 0)], steps[min(place, len(steps) - 1)]
            around |= {value - below / 2, value + above / 2}
        if key == "iterations":
            around = {round(x) for x in around}
        finer[key] = tuple(sorted(x for x in around if x > 0))
    return finer


def score_points(
    points: Sequence[Point], samples: Iterable[Sample], *, num_classes: int, ignore: int
) -> tuple[list[float], float]:
    """mIoU of each point over the samples, and of the scores as they are; fractions.

    An image's filters are built once for all points that differ in their weights alone; the memory does not grow with
    the samples.

    Args:
        points: arguments of :func:`seg_ext.inference.refine.build_dense_crf`, weights above 0.
        samples: ground truth in ids below ``num_classes`` and ``ignore``.
        num_classes: K.
        ignore: id that does not count.

    Raises:
        UserError: arguments that the CRF refuses.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for i, point in enumerate(points):
        groups[repr(sorted((k, v) for k, v in point.items() if k not in _ALIKE))].append(i)
    try:
        crfs = [build_dense_crf(num_classes, **point) for point in points]
    except (ValueError, TypeError) as error:
        raise UserError(f"dense_crf: {error}") from error
    counts = np.zeros((len(points) + 1, num_classes, num_classes + 1), np.int64)
    for scores, image, target in samples:
        given, picture = scores[None].float(), image[None].float()
        counts[-1] += _confusion(given, target, num_classes, ignore)
        for group in groups.values():
            crfs[group[0]].check(given, picture)
            filters = crfs[group[0]].filters(picture)
            for i in group:
                with torch.no_grad():
                    counts[i] += _confusion(crfs[i].infer(given, filters), target, num_classes, ignore)
    *found, unrefined = [float(semantic_scores(x).miou) for x in counts]
    return found, unrefined


def _confusion(scores: Tensor, target: np.ndarray, num_classes: int, ignore: int) -> np.ndarray:
    return confusion_matrix(scores[0].argmax(0).numpy(), target, num_classes, ignore=ignore)
