"""Pixel-wise cross-entropy: softmax over K classes, or sigmoid when there is one channel (Long et al., FCN, 2015)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from seg_ext.losses.arguments import check_choice, check_number, check_pixel_weight, check_weights
from seg_ext.losses.soft_counts import two_classes


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    ignore: int,
    weight: Tensor | None = None,
    class_weights: Sequence[float] | None = None,
    pos_weight: float | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Cross-entropy ``-w log p_y`` of the pixels that are not ignored; ``w`` is the product of the weights given.

    Args:
        logits: (N, K, H, W); K = 1 is a binary problem with one sigmoid channel.
        target: (N, H, W), integer ids below max(K, 2), or ``ignore``.
        ignore: the id whose pixels count for nothing.
        weight: (N, H, W), of the pixels.
        class_weights: K weights (two where K = 1), none negative.
        pos_weight: weight of the foreground; K = 1 alone.
        label_smoothing: share e of the target spread evenly: ``(1 - e) onehot + e / K``.
        reduction: "mean" divides the sum by the sum of ``w``, "pixel_mean" by the number of pixels that are not
            ignored, "sum" by nothing (FCN's recipe of momentum 0.99 and learning rate 1e-10).

    Returns:
        A scalar; 0, with gradient 0, where every pixel is ignored.

    Raises:
        ValueError: an argument out of its range.
    """
    check_number("label_smoothing", label_smoothing, 0, 1)
    check_choice("reduction", reduction, ("mean", "pixel_mean", "sum"))
    check_pixel_weight(weight, target)
    weights = _class_weights(logits, class_weights, pos_weight)
    scores = two_classes(logits)
    each = F.cross_entropy(
        scores, target, weight=weights, ignore_index=ignore, label_smoothing=label_smoothing, reduction="none"
    )
    valid = target != ignore
    total = (each if weight is None else each * weight.masked_fill(~valid, 0)).sum()
    if reduction == "sum":
        return total
    if reduction == "pixel_mean":
        return total / valid.sum().clamp(min=1)
    mass = valid.to(each) if weights is None else weights[target.masked_fill(~valid, 0)] * valid
    mass = (mass if weight is None else mass * weight.masked_fill(~valid, 0)).sum()
    return total / mass.clamp(min=torch.finfo(mass.dtype).tiny)


def border_weighted_cross_entropy(
    logits: Tensor, target: Tensor, *, ignore: int, weight: Tensor | None = None, reduction: str = "pixel_mean"
) -> Tensor:
    """U-Net's cross-entropy, in which the pixels between close instances count more (Ronneberger et al., 2015, eq. 2).

    Args:
        logits: (N, K, H, W).
        target: (N, H, W), integer ids, or ``ignore``.
        ignore: the id whose pixels count for nothing.
        weight: (N, H, W), required: balance of the classes plus emphasis on the borders.
        reduction: as for :func:`cross_entropy`.

    Returns:
        A scalar; 0, with gradient 0, where every pixel is ignored.

    Raises:
        ValueError: no weights.
    """
    if weight is None:
        raise ValueError(
            "border_weighted_cross_entropy takes weights of the pixels: have INPUT.TARGETS give border weights"
        )
    return cross_entropy(logits, target, ignore=ignore, weight=weight, reduction=reduction)


def _class_weights(logits: Tensor, class_weights: Sequence[float] | None, pos_weight: float | None) -> Tensor | None:
    classes = max(logits.shape[1], 2)
    if pos_weight is not None:
        if logits.shape[1] != 1:
            raise ValueError(f"pos_weight {pos_weight!r}: takes one class; use class_weights for {classes}")
        check_number("pos_weight", pos_weight, 0, above=True)
    if class_weights is not None:
        check_weights("class_weights", class_weights, classes)
    elif pos_weight is None:
        return None
    weights = logits.new_tensor(class_weights or [1.0, 1.0], dtype=torch.promote_types(logits.dtype, torch.float32))
    return weights if pos_weight is None else weights * weights.new_tensor([1.0, pos_weight])
