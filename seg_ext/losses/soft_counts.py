"""What losses on probabilities share: float32 probabilities, one-hot targets, soft true and false positives."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from seg_ext.losses.arguments import check_choice


class SoftCounts(NamedTuple):
    """Sums of probabilities, each (N, K), or (1, K) over the batch.

    Attributes:
        true_positive: where the class is.
        false_positive: elsewhere.
        false_negative: missing where the class is.
        size: pixels of the class.
        labelled: (N, 1) or (1, 1), whether any pixel is not ignored.
    """

    true_positive: Tensor
    false_positive: Tensor
    false_negative: Tensor
    size: Tensor
    labelled: Tensor


def full_precision(logits: Tensor) -> Tensor:
    """Logits in float32 at least."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def two_classes(logits: Tensor) -> Tensor:
    """Scores of all classes in float32 at least: one channel z becomes [0, z], whose softmax is its sigmoid."""
    scores = full_precision(logits)
    return torch.cat([torch.zeros_like(scores), scores], dim=1) if logits.shape[1] == 1 else scores


def probabilities(logits: Tensor) -> Tensor:
    """(N, K, H, W): the softmax, or where K = 1 the sigmoid, which is the foreground's probability."""
    scores = full_precision(logits)
    return scores.sigmoid() if logits.shape[1] == 1 else scores.softmax(dim=1)


def one_hot(target: Tensor, classes: int, ignore: int) -> Tensor:
    """(N, K, H, W) bool: where each class is; of one class, where the id is 1."""
    ids = torch.arange(classes, device=target.device) if classes > 1 else target.new_ones(1)
    return (target[:, None] == ids.view(-1, 1, 1)) & (target != ignore)[:, None]


def count(p: Tensor, hit: Tensor, valid: Tensor, *, per_image: bool, squared: bool = False) -> SoftCounts:
    """Soft counts of every class.

    Args:
        p: (N, K, H, W) probabilities.
        hit: (N, K, H, W) bool, where each class is.
        valid: (N, 1 or K, H, W) bool, the pixels that count.
        per_image: for each image, not over the batch.
        squared: let p count with its square in what is predicted, as V-Net does.
    """
    over = (2, 3) if per_image else (0, 2, 3)
    true_positive = (p * hit).sum(over, keepdim=True).flatten(1)
    predicted = ((p * p if squared else p) * valid).sum(over, keepdim=True).flatten(1)
    size = hit.sum(over, keepdim=True).flatten(1).to(p)
    labelled = valid.any(1).flatten(1).any(1, keepdim=True)
    labelled = labelled if per_image else labelled.any(0, keepdim=True)
    return SoftCounts(true_positive, predicted - true_positive, size - true_positive, size, labelled)


def class_mean(losses: Tensor, size: Tensor, labelled: Tensor, classes: str) -> Tensor:
    """Mean over the classes, "all" or those "present", then over the images that are not ignored throughout.

    Args:
        losses: (N, K).
        size: (N, K), pixels of each class.
        labelled: (N, 1), whether any pixel of the image is not ignored.
        classes: which.

    Raises:
        ValueError: another choice of classes.
    """
    check_choice("classes", classes, ("all", "present"))
    counted = labelled.expand_as(losses) & (size > 0) if classes == "present" else labelled.expand_as(losses)
    each = (losses * counted).sum(1) / counted.sum(1).clamp(min=1)
    return each.sum() / labelled.sum().clamp(min=1)


def miss_ratio(counts: SoftCounts, alpha: float, beta: float, smooth: float) -> Tensor:
    """(N, K): 1 - Tversky index, ``(a fp + b fn) / (tp + a fp + b fn + smooth)``; 0 where there is nothing at all."""
    missed = alpha * counts.false_positive + beta * counts.false_negative
    whole = counts.true_positive + missed + smooth
    return missed / whole.clamp(min=torch.finfo(whole.dtype).eps)
