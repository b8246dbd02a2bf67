"""Boundary loss: 1 - F1 of soft class boundaries, found by max pooling (Bokhovkin and Burnaev, 2019)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from seg_ext.losses.arguments import check_odd
from seg_ext.losses.soft_counts import one_hot, probabilities


def boundary(logits: Tensor, target: Tensor, *, ignore: int, width: int = 3, tolerance: int = 5) -> Tensor:
    """Mean of ``1 - 2 P R / (P + R)`` over the images' classes that have a boundary.

    A class's boundary is where it is and, ``width // 2`` pixels off, is not: ``maxpool(1 - p) - (1 - p)`` (eq. 1 and
    2). P and R are the shares of the predicted and of the true boundary that lie within ``tolerance // 2`` pixels of
    the other (eq. 5 and 6). The image's edge and ignored pixels make no boundary. Meant as one of several losses:
    where a class fills its image or is absent it says nothing.

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
    outside = (1 - p).mul_(valid)
    found = _dilate(outside, width).sub_(outside).mul_(valid)
    true = _dilate(~hit & valid, width) & hit
    del outside, hit
    near, size = _dilate(true, tolerance), true.sum((2, 3)).to(p)
    tiny = torch.finfo(p.dtype).eps
    precision = (found * near).sum((2, 3)) / found.sum((2, 3)).clamp(min=tiny)
    recall = (_dilate(found, tolerance) * true).sum((2, 3)) / size.clamp(min=1)
    f1 = 2 * precision * recall / (precision + recall).clamp(min=tiny)
    there = size > 0
    return ((1 - f1) * there).sum() / there.sum().clamp(min=1)


def _dilate(x: Tensor, size: int) -> Tensor:
    """Maximum over windows of size x size pixels, of those inside the image."""
    for dim in (3, 2):
        x = _Maximum.apply(x, dim, size // 2)
    return x


class _Maximum(torch.autograd.Function):
    """Maximum over 2 reach + 1 neighbours along a dimension; keeps a byte a pixel, where max pooling keeps eight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, reach: int) -> Tensor:
        best, place = x.clone(), torch.zeros_like(x, dtype=torch.int8) if ctx.needs_input_grad[0] else None
        for step, here, there in _neighbours(x.shape[dim], reach):
            if place is not None:
                place.narrow(dim, *here).masked_fill_(x.narrow(dim, *there) > best.narrow(dim, *here), step)
            torch.maximum(best.narrow(dim, *here), x.narrow(dim, *there), out=best.narrow(dim, *here))
        ctx.save_for_backward(place)
        ctx.dim, ctx.reach = dim, reach
        return best

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        [grad], [place], dim = grads, ctx.saved_tensors, ctx.dim
        total = grad * (place == 0)
        for step, here, there in _neighbours(grad.shape[dim], ctx.reach):
            total.narrow(dim, *there).add_(grad.narrow(dim, *here) * (place.narrow(dim, *here) == step))
        return total, None, None


def _neighbours(size: int, reach: int) -> Iterator[tuple[int, tuple[int, int], tuple[int, int]]]:
    """Each step to a neighbour, and start and length of the pixels that have it and of the neighbours."""
    for step in range(1, min(reach, size - 1) + 1):
        yield step, (0, size - step), (step, size - step)
        yield -step, (step, size - step), (0, size - step)
