"""Cross-entropy of the hardest pixels: OHEM (Shrivastava et al., 2016) and top-k (Yang et al., DeeperLab, 2019)."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from seg_ext.losses.arguments import check_number, check_pixel_weight
from seg_ext.losses.soft_counts import two_classes


def ohem(logits: Tensor, target: Tensor, *, ignore: int, threshold: float = 0.7, min_kept: int = 100_000) -> Tensor:
    """Mean cross-entropy of the pixels with ``p_y < threshold``, and of the ``min_kept`` hardest at least.

    Args:
        logits: (N, K, H, W); K = 1 is a binary problem with one sigmoid channel.
        target: (N, H, W), integer ids below max(K, 2), or ``ignore``.
        ignore: the id whose pixels count for nothing.
        threshold: probability of the right class from which on a pixel is easy.
        min_kept: pixels of the batch.

    Returns:
        A scalar; 0, with gradient 0, where every pixel is ignored.

    Raises:
        ValueError: an argument out of its range.
    """
    check_number("threshold", threshold, 0, 1, above=True)
    if not isinstance(min_kept, int) or isinstance(min_kept, bool) or min_kept < 0:
        raise ValueError(f"min_kept {min_kept!r}: takes a whole number >= 0")
    cost = F.cross_entropy(two_classes(logits), target, ignore_index=ignore, reduction="none").flatten()
    valid = (target != ignore).flatten()
    kept = cost > -math.log(threshold)
    floor = min(min_kept, cost.numel())
    if floor:
        hardest = cost.detach().topk(floor, sorted=False).values  # ignored ones cost 0
        kept = kept | (cost >= hardest.min())
    kept = kept & valid
    return (cost * kept).sum() / kept.sum().clamp(min=1)


def top_k(
    logits: Tensor, target: Tensor, *, ignore: int, weight: Tensor | None = None, fraction: float = 0.2
) -> Tensor:
    """Mean cross-entropy of the hardest pixels of the batch, ignored ones being in the pool with a cost of 0.

    Args:
        logits: (N, K, H, W); K = 1 is a binary problem with one sigmoid channel.
        target: (N, H, W), integer ids below max(K, 2), or ``ignore``.
        ignore: the id whose pixels cost nothing.
        weight: (N, H, W), of the pixels.
        fraction: of all pixels that are kept, one at least.

    Returns:
        A scalar; 0, with gradient 0, where every pixel is ignored.

    Raises:
        ValueError: an argument out of its range.
    """
    check_number("fraction", fraction, 0, 1, above=True)
    check_pixel_weight(weight, target)
    cost = F.cross_entropy(two_classes(logits), target, ignore_index=ignore, reduction="none")
    if weight is not None:
        cost = cost * weight.masked_fill(target == ignore, 0)
    return cost.flatten().topk(max(1, int(fraction * cost.numel())), sorted=False).values.mean()
