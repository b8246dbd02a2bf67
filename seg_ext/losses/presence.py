"""Presence: whether an image holds any foreground, for UNet 3+'s classification guidance (Huang et al., 2020, 2.3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def presence(logits: Tensor, target: Tensor, *, ignore: int) -> Tensor:
    """Binary cross-entropy of "only background" and "some foreground" against the label map, mean over the images.

    Args:
        logits: (N, 2, 1, 1) scores before the sigmoid: absent, present.
        target: (N, H, W) ids; 0 is background.
        ignore: the id whose pixels count for nothing; an image of nothing else counts for nothing.

    Returns:
        A scalar; 0, with gradient 0, where every pixel of every image is ignored.
    """
    labelled = target != ignore
    present = (labelled & (target != 0)).flatten(1).any(1).long()
    scores = logits.flatten(1).to(torch.promote_types(logits.dtype, torch.float32))
    each = F.binary_cross_entropy_with_logits(scores, F.one_hot(present, 2).to(scores), reduction="none").mean(1)
    counted = labelled.flatten(1).any(1)
    return (each * counted).sum() / counted.sum().clamp(min=1)
