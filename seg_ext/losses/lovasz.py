"""Lovasz-Softmax and Lovasz hinge: convex surrogates of the intersection over union (Berman et al., CVPR 2018)."""

from __future__ import annotations

import torch
from torch import Tensor

from seg_ext.losses.arguments import check_choice
from seg_ext.losses.soft_counts import class_mean, full_precision, one_hot, probabilities


def lovasz_softmax(
    logits: Tensor, target: Tensor, *, ignore: int, classes: str = "present", per_image: bool = False
) -> Tensor:
    """Mean over the classes of the Lovasz extension of ``1 - IoU`` at the errors ``|g - p|``.

    Equals ``1 - IoU`` where the probabilities are 0 or 1. Beyond the logits it takes about nine times their memory,
    three times what cross-entropy takes, for the sorting.

    Args:
        logits: (N, K, H, W); K = 1 is a sigmoid channel, whose foreground alone counts.
        target: (N, H, W), integer ids below max(K, 2), or ``ignore``.
        ignore: the id whose pixels count for nothing.
        classes: those "present" in the target, or "all".
        per_image: mean over the images, instead of one union over the batch.

    Returns:
        A scalar; 0, with gradient 0, where every pixel is ignored.

    Raises:
        ValueError: an argument out of its range.
    """
    check_choice("per_image", per_image, (False, True))
    p = probabilities(logits)
    hit = one_hot(target, p.shape[1], ignore)
    valid = (target != ignore)[:, None].expand_as(hit)
    errors = torch.where(hit, 1 - p, p)
    return class_mean(*_extension(errors, hit, valid, per_image), classes)


def lovasz_hinge(logits: Tensor, target: Tensor, *, ignore: int, per_image: bool = True) -> Tensor:
    """Lovasz extension of the foreground's ``1 - IoU`` at the hinge errors ``max(0, 1 - z)``, z negated on background.

    Args:
        logits: (N, 1, H, W).
        target: (N, H, W), ids 0 and 1, or ``ignore``.
        ignore: the id whose pixels count for nothing.
        per_image: mean over the images, instead of one union over the batch.

    Returns:
        A scalar; 0, with gradient 0, where every pixel is ignored.

    Raises:
        ValueError: more channels than one.
    """
    check_choice("per_image", per_image, (False, True))
    if logits.shape[1] != 1:
        raise ValueError(f"lovasz_hinge on {logits.shape[1]} classes: takes one; use lovasz_softmax for more")
    scores = full_precision(logits)
    hit, valid = one_hot(target, 1, ignore), (target != ignore)[:, None]
    errors = (1 - torch.where(hit, scores, -scores)).relu()
    return class_mean(*_extension(errors, hit, valid, per_image), "all")


def _extension(errors: Tensor, hit: Tensor, valid: Tensor, per_image: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(N, K) extensions and sizes of the classes, and (N, 1) whether any pixel counts; N = 1 over the batch."""
    if not per_image:
        errors, hit, valid = (x.transpose(0, 1).flatten(1)[None] for x in (errors, hit, valid))
    errors, hit, valid = errors.flatten(2), hit.flatten(2), valid.flatten(2)  # (N or 1, K, pixels)
    size = hit.sum(2)
    slopes = _slopes(errors.detach().masked_fill(~valid, -1), hit, size) * valid
    return (errors * slopes).sum(2), size, valid[:, :1].any(2)


def _slopes(errors: Tensor, hit: Tensor, size: Tensor) -> Tensor:
    """Gradient of the extension: how much ``1 - IoU`` grows with each pixel, the worst first (algorithm 1).

    Adding a pixel of the class shrinks the intersection I by 1, another one enlarges the union U by 1, so the
    differences are 1 / U and I / (U (U - 1)).
    """
    order = errors.argsort(dim=2, descending=True)
    hit = hit.gather(2, order)
    rest = hit.cumsum(2, dtype=torch.int32).neg_().add_(size[..., None]).to(errors.dtype)
    union = rest + torch.arange(1, hit.shape[2] + 1, device=hit.device)
    steps = rest.div_((union - 1).clamp_(min=1)).masked_fill_(hit, 1).div_(union)
    steps[..., 0].masked_fill_(size == 0, 1)  # of an absent class the worst pixel makes the whole loss
    return union.scatter_(2, order, steps)
