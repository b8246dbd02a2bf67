"""Tversky loss, which weighs false positives and negatives apart (Salehi et al., 2017), and focal Tversky (2019)."""

from __future__ import annotations

import torch
from torch import Tensor

from seg_ext.losses.arguments import check_choice, check_number
from seg_ext.losses.soft_counts import class_mean, count, miss_ratio, one_hot, probabilities


def tversky(
    logits: Tensor,
    target: Tensor,
    *,
    ignore: int,
    alpha: float = 0.3,
    beta: float = 0.7,
    gamma: float = 1.0,
    smooth: float = 1.0,
    classes: str = "all",
    per_image: bool = False,
) -> Tensor:
    """Mean over the classes of ``(1 - (tp + smooth) / (tp + alpha fp + beta fn + smooth)) ^ (1 / gamma)``.

    Args:
        logits: (N, K, H, W); K = 1 is a sigmoid channel, whose foreground alone counts.
        target: (N, H, W), integer ids below max(K, 2), or ``ignore``.
        ignore: the id whose pixels count for nothing.
        alpha: weight of false positives.
        beta: weight of false negatives.
        gamma: above 1 stresses classes that are nearly right; 4/3 is focal Tversky's (Abraham and Khan, 2019, eq. 4).
        smooth: added to both sides of the fraction.
        classes: "all", or those "present" in the target.
        per_image: mean over the images, instead of sums over the batch.

    Returns:
        A scalar; 0, with gradient 0, where every pixel is ignored.

    Raises:
        ValueError: an argument out of its range.
    """
    check_number("alpha", alpha, 0)
    check_number("beta", beta, 0)
    check_number("gamma", gamma, 0, above=True)
    check_number("smooth", smooth, 0)
    check_choice("per_image", per_image, (False, True))
    p = probabilities(logits)
    counts = count(p, one_hot(target, p.shape[1], ignore), (target != ignore)[:, None], per_image=per_image)
    missed = miss_ratio(counts, alpha, beta, smooth)
    steepness = missed.clamp(min=torch.finfo(missed.dtype).eps) ** (1 / gamma - 1)  # a root's slope at 0 is infinite
    return class_mean(missed * steepness, counts.size, counts.labelled, classes)
