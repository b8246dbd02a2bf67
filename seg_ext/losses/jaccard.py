"""Soft intersection over union (Rahman and Wang, 2016)."""

from __future__ import annotations

from torch import Tensor

from seg_ext.losses.arguments import check_choice, check_number
from seg_ext.losses.soft_counts import class_mean, count, miss_ratio, one_hot, probabilities


def jaccard(
    logits: Tensor,
    target: Tensor,
    *,
    ignore: int,
    smooth: float = 1.0,
    classes: str = "all",
    per_image: bool = False,
) -> Tensor:
    """Mean over the classes of ``1 - (sum p g + smooth) / (sum p + sum g - sum p g + smooth)``.

    UNet 3+'s (Huang et al., 2020, 2.2) has ``smooth`` 0 and is ``per_image``.

    Args:
        logits: (N, K, H, W); K = 1 is a sigmoid channel, whose foreground alone counts.
        target: (N, H, W), integer ids below max(K, 2), or ``ignore``.
        ignore: the id whose pixels count for nothing.
        smooth: added to both sides of the fraction.
        classes: "all", or those "present" in the target.
        per_image: mean over the images, instead of sums over the batch.

    Returns:
        A scalar; 0, with gradient 0, where every pixel is ignored.

    Raises:
        ValueError: an argument out of its range.
    """
    check_number("smooth", smooth, 0)
    check_choice("per_image", per_image, (False, True))
    p = probabilities(logits)
    counts = count(p, one_hot(target, p.shape[1], ignore), (target != ignore)[:, None], per_image=per_image)
    return class_mean(miss_ratio(counts, 1, 1, smooth), counts.size, counts.labelled, classes)
