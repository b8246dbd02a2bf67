"""Dice loss, plain, with V-Net's squares (Milletari et al., 2016), and generalised (Sudre et al., 2017)."""

from __future__ import annotations

import torch
from torch import Tensor

from seg_ext.losses.arguments import check_choice, check_number
from seg_ext.losses.soft_counts import class_mean, count, miss_ratio, one_hot, probabilities, two_classes


def dice(
    logits: Tensor,
    target: Tensor,
    *,
    ignore: int,
    smooth: float = 1.0,
    squared: bool = False,
    classes: str = "all",
    per_image: bool = False,
) -> Tensor:
    """Dice: mean over the classes of ``1 - (2 sum p g + smooth) / (sum p + sum g + smooth)``, g being 0 or 1.

    U-Net++'s ``0.5 BCE - Dice`` (Zhou et al., 2018, eq. 2) is cross_entropy of weight 0.5 and this one, less 1.

    Args:
        logits: (N, K, H, W); K = 1 is a sigmoid channel, whose foreground alone counts.
        target: (N, H, W), integer ids below max(K, 2), or ``ignore``.
        ignore: the id whose pixels count for nothing.
        smooth: added to both sides of the fraction.
        squared: V-Net's denominator, ``sum p^2 + sum g^2``.
        classes: "all", or those "present" in the target.
        per_image: mean over the images, instead of sums over the batch.

    Returns:
        A scalar; 0, with gradient 0, where every pixel is ignored.

    Raises:
        ValueError: an argument out of its range.
    """
    check_number("smooth", smooth, 0)
    check_choice("squared", squared, (False, True))
    check_choice("per_image", per_image, (False, True))
    p = probabilities(logits)
    hit, valid = one_hot(target, p.shape[1], ignore), (target != ignore)[:, None]
    counts = count(p, hit, valid, per_image=per_image, squared=squared)
    return class_mean(miss_ratio(counts, 0.5, 0.5, smooth / 2), counts.size, counts.labelled, classes)


def generalised_dice(logits: Tensor, target: Tensor, *, ignore: int, per_image: bool = True) -> Tensor:
    """Generalised Dice: ``1 - 2 sum_c w_c sum p g / sum_c w_c (sum p + sum g)`` with ``w_c = 1 / (sum g)^2``.

    The background counts, of one channel too. A class that is absent, whose weight would be infinite, weighs nothing.

    Args:
        logits: (N, K, H, W); K = 1 is a binary problem with one sigmoid channel.
        target: (N, H, W), integer ids below max(K, 2), or ``ignore``.
        ignore: the id whose pixels count for nothing.
        per_image: mean over the images, instead of sums over the batch.

    Returns:
        A scalar; 0, with gradient 0, where every pixel is ignored.
    """
    check_choice("per_image", per_image, (False, True))
    p = probabilities(two_classes(logits))
    hit, valid = one_hot(target, p.shape[1], ignore), (target != ignore)[:, None]
    counts = count(p, hit, valid, per_image=per_image)
    present = counts.size > 0
    smallest = counts.size.masked_fill(~present, torch.inf).amin(1, keepdim=True)
    weights = torch.where(present, (smallest / counts.size.clamp(min=1)) ** 2, 0)  # a common factor cancels out
    missed = (weights * (counts.false_positive + counts.false_negative)).sum(1)
    whole = missed + 2 * (weights * counts.true_positive).sum(1)
    return (missed / whole.clamp(min=torch.finfo(p.dtype).eps)).sum() / counts.labelled.sum().clamp(min=1)
