"""Losses of classes that may overlap: a sigmoid for every channel, each against the rest (binary relevance)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from seg_ext.losses.arguments import check_choice, check_number, check_weights
from seg_ext.losses.soft_counts import class_mean, count, full_precision, miss_ratio, one_hot


def multilabel_cross_entropy(
    logits: Tensor, target: Tensor, *, ignore: int, pos_weight: Sequence[float] | None = None
) -> Tensor:
    """Mean over pixels and classes of the binary cross-entropy of every class against the rest.

    Args:
        logits: (N, K, H, W), each channel a sigmoid's.
        target: (N, H, W) ids below max(K, 2), of which each stands for its class alone; or (N, K, H, W) of 0, 1 and
            ``ignore``.
        ignore: the value whose pixels count for nothing.
        pos_weight: K weights of the pixels where the class is.

    Returns:
        A scalar; 0, with gradient 0, where every pixel is ignored.

    Raises:
        ValueError: an argument out of its range, a target of another shape.
    """
    scores = full_precision(logits)
    hit, valid = _targets(scores, target, ignore)
    weights = None
    if pos_weight is not None:
        check_weights("pos_weight", pos_weight, logits.shape[1])
        weights = scores.new_tensor(pos_weight).view(-1, 1, 1)
    each = F.binary_cross_entropy_with_logits(scores, hit.to(scores), reduction="none", pos_weight=weights)
    return (each * valid).sum() / valid.expand_as(each).sum().clamp(min=1)


def multilabel_dice(
    logits: Tensor,
    target: Tensor,
    *,
    ignore: int,
    smooth: float = 1.0,
    classes: str = "all",
    per_image: bool = False,
) -> Tensor:
    """Mean over the classes of ``1 - (2 sum p g + smooth) / (sum p + sum g + smooth)``, p being sigmoids.

    Args:
        logits: (N, K, H, W), each channel a sigmoid's.
        target: (N, H, W) ids below max(K, 2), of which each stands for its class alone; or (N, K, H, W) of 0, 1 and
            ``ignore``.
        ignore: the value whose pixels count for nothing.
        smooth: added to both sides of the fraction.
        classes: "all", or those "present" in the target.
        per_image: mean over the images, instead of sums over the batch.

    Returns:
        A scalar; 0, with gradient 0, where every pixel is ignored.

    Raises:
        ValueError: an argument out of its range, a target of another shape.
    """
    check_number("smooth", smooth, 0)
    check_choice("per_image", per_image, (False, True))
    p = full_precision(logits).sigmoid()
    counts = count(p, *_targets(p, target, ignore), per_image=per_image)
    return class_mean(miss_ratio(counts, 0.5, 0.5, smooth / 2), counts.size, counts.labelled, classes)


def _targets(scores: Tensor, target: Tensor, ignore: int) -> tuple[Tensor, Tensor]:
    """Where each class is, (N, K, H, W), and where pixels count, (N, K or 1, H, W); both bool."""
    if target.dim() == 3:
        return one_hot(target, scores.shape[1], ignore), (target != ignore)[:, None]
    if target.shape != scores.shape:
        shape = tuple(scores.shape)
        raise ValueError(f"target {tuple(target.shape)}: takes {(shape[0], *shape[2:])} or {shape}")
    valid = target != ignore
    return torch.logical_and(target == 1, valid), valid
