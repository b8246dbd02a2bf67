"""Pixel-wise cross-entropy: softmax over K classes, or sigmoid when there is one channel (Long et al., FCN, 2015)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(
    logits: Tensor, target: Tensor, *, ignore: int, class_weights: Sequence[float] | None = None
) -> Tensor:
    """Mean of ``-w_y log p_y`` over the pixels that are not ignored, divided by the sum of their ``w_y``.

    Args:
        logits: (N, K, H, W); K = 1 is a binary problem with one sigmoid channel.
        target: (N, H, W), integer ids below max(K, 2), or ``ignore``.
        ignore: the id whose pixels count for nothing.
        class_weights: K weights (two where K = 1), none negative.

    Returns:
        A scalar; 0, with gradient 0, where every pixel is ignored.

    Raises:
        ValueError: weights of another number, or a negative one.
    """
    if logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], dim=1)  # softmax of [0, z] is sigmoid(z)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    weights = logits.new_ones(logits.shape[1]) if class_weights is None else logits.new_tensor(class_weights)
    if len(weights) != logits.shape[1] or bool((weights < 0).any()):
        raise ValueError(f"class_weights {class_weights}: takes {logits.shape[1]} numbers, none negative")
    total = F.cross_entropy(logits, target, weight=weights, ignore_index=ignore, reduction="sum")
    valid = target != ignore
    mass = (weights[target.masked_fill(~valid, 0)] * valid).sum()
    return total / mass.clamp(min=torch.finfo(mass.dtype).tiny)
