"""Boundary loss: 1 - F1 of soft class boundaries, found by max pooling (Bokhovkin and Burnaev, 2019)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from seg_ext.losses.arguments import check_odd
from seg_ext.losses.soft_counts import one_hot, probabilities


def boundary(logits: Tensor, target: Tensor, *, ignore: int, width: int = 3, tolerance: int = 5) -> Tensor:
    """Mean of ``1 - 2 P R / (P + R)`` over the images' classes that have a boundary.

    A class's boundary is where it is and, ``width // 2`` pixels off, is not: ``maxpool(1 - p) - (1 - p)`` (eq. 1 and
    2). P and R are the shares of the predicted and of the true boundary that lie within ``tolerance // 2`` pixels of
    the other (eq. 5 and 6). The image's edge and ignored pixels make no boundary. Meant as one of several losses:
    where a class fills its image or is absent it says nothing. Beyond the logits it takes about eleven times their
    memory, four times what cross-entropy takes, for the places of the maxima.

    Args:
        logits: (N, K, H, W); K = 1 is a sigmoid channel, whose foreground alone counts.
        target: (N, H, W), integer ids below max(K, 2), or ``ignore``.
        ignore: the id whose pixels count for nothing.
        width: odd, of the window that finds a boundary, in pixels.
        tolerance: odd, of the window in which boundaries meet, in pixels.

    Returns:
        A scalar; 0, with gradient 0, where every pixel is ignored.

    Raises:
        ValueError: a window that is not odd.
    """
    check_odd("width", width, 3)
    check_odd("tolerance", tolerance, 1)
    p = probabilities(logits)
    hit, valid = one_hot(target, p.shape[1], ignore), (target != ignore)[:, None]
    found = _inner((1 - p) * valid, valid, width)
    true = _inner((~hit & valid).to(p), valid, width)
    size = true.sum((2, 3))
    tiny = torch.finfo(p.dtype).eps
    precision = (found * _dilate(true, tolerance)).sum((2, 3)) / found.sum((2, 3)).clamp(min=tiny)
    recall = (_dilate(found, tolerance) * true).sum((2, 3)) / size.clamp(min=1)
    f1 = 2 * precision * recall / (precision + recall).clamp(min=tiny)
    there = size > 0
    return ((1 - f1) * there).sum() / there.sum().clamp(min=1)


def _inner(outside: Tensor, valid: Tensor, width: int) -> Tensor:
    """(N, K, H, W): 1 on the pixels of a class next to others, by the probability that each is not of the class."""
    return (_dilate(outside, width) - outside) * valid


def _dilate(x: Tensor, size: int) -> Tensor:
    return F.max_pool2d(x, size, stride=1, padding=size // 2)
