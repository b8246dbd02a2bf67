"""Focal loss: cross-entropy in which pixels that are right already count less (Lin et al., RetinaNet, 2017)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from seg_ext.losses.arguments import check_number, check_weights
from seg_ext.losses.soft_counts import two_classes


def focal(
    logits: Tensor,
    target: Tensor,
    *,
    ignore: int,
    gamma: float = 2.0,
    alpha: float | Sequence[float] | None = None,
) -> Tensor:
    """Mean of ``-alpha_y (1 - p_y)^gamma log p_y`` over the pixels that are not ignored.

    Args:
        logits: (N, K, H, W), softmax; K = 1 is a binary problem with one sigmoid channel.
        target: (N, H, W), integer ids below max(K, 2), or ``ignore``.
        ignore: the id whose pixels count for nothing.
        gamma: 0 is cross-entropy.
        alpha: K weights (two where K = 1); where K = 1 also one number, the foreground's weight, in which case the
            background has the rest to 1 (the paper's is 0.25).

    Returns:
        A scalar; 0, with gradient 0, where every pixel is ignored.

    Raises:
        ValueError: an argument out of its range.
    """
    check_number("gamma", gamma, 0)
    scores = two_classes(logits)
    if isinstance(alpha, (int, float)) and logits.shape[1] == 1:
        check_number("alpha", alpha, 0, 1)
        alpha = [1 - alpha, alpha]
    elif alpha is not None:
        check_weights("alpha", alpha, scores.shape[1])
    cost = F.cross_entropy(scores, target, ignore_index=ignore, reduction="none")  # (N, H, W), 0 where ignored
    wrong = -torch.expm1(-cost)
    each = wrong.clamp(min=torch.finfo(cost.dtype).tiny) ** gamma * cost  # below gamma 1 the slope at 0 is infinite
    valid = target != ignore
    if alpha is not None:
        each = each * scores.new_tensor(alpha)[target.masked_fill(~valid, 0)]
    return each.sum() / valid.sum().clamp(min=1)
