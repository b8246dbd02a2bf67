"""OHEM and top-k against a sort of the pixels, and detectron2's DeepLabCE."""

import math
from fractions import Fraction

import pytest
import torch
from detectron2.projects.deeplab.loss import DeepLabCE

from seg_ext.losses import cross_entropy, ohem, top_k

IGNORE = 255


def problem(classes: int) -> tuple[torch.Tensor, torch.Tensor, list[float]]:
    """Logits, target, and the costs of the pixels that are not ignored, the hardest first."""
    generator = torch.Generator().manual_seed(4)
    logits = 3 * torch.randn(2, classes, 6, 7, generator=generator, dtype=torch.float64)
    target = torch.randint(0, max(classes, 2), (2, 6, 7), generator=generator)
    target[0, :2] = IGNORE
    z = torch.cat([torch.zeros_like(logits), logits], 1) if classes == 1 else logits
    p = z.softmax(1).gather(1, torch.where(target == IGNORE, 0, target)[:, None])[:, 0]
    return logits, target, sorted((-p.log())[target != IGNORE].tolist(), reverse=True)


@pytest.mark.parametrize("classes", [1, 4])
@pytest.mark.parametrize("threshold", [0.05, 0.7])
@pytest.mark.parametrize("min_kept", [0, 1, 20, 10**6])
def test_ohem_keeps_the_uncertain_and_a_least_number(classes: int, threshold: float, min_kept: int) -> None:
    logits, target, costs = problem(classes)
    kept = costs[: max(sum(c > -math.log(threshold) for c in costs), min_kept)]
    value = ohem(logits, target, ignore=IGNORE, threshold=threshold, min_kept=min_kept)
    assert value.item() == pytest.approx(sum(kept) / len(kept))


def test_ohem_that_keeps_all_is_cross_entropy() -> None:
    logits, target, _ = problem(4)
    assert torch.isclose(ohem(logits, target, ignore=IGNORE), cross_entropy(logits, target, ignore=IGNORE))


def test_ohem_of_easy_pixels_without_a_least_number_is_zero() -> None:
    target = torch.zeros(1, 3, 3, dtype=torch.long)
    logits = torch.stack([torch.full((1, 3, 3), 5.0), torch.zeros(1, 3, 3)], 1).requires_grad_()
    loss = ohem(logits, target, ignore=IGNORE, min_kept=0)
    loss.backward()
    assert loss.item() == 0 and logits.grad.eq(0).all()


@pytest.mark.parametrize("classes", [1, 4])
@pytest.mark.parametrize("fraction", [0.001, 0.2, 0.9, 1])
def test_top_k_is_the_mean_of_the_hardest(classes: int, fraction: float) -> None:
    logits, target, costs = problem(classes)
    pool = [*costs, *[0.0] * (target.numel() - len(costs))]
    number = max(1, math.floor(Fraction(str(fraction)) * target.numel()))
    assert top_k(logits, target, ignore=IGNORE, fraction=fraction).item() == pytest.approx(sum(pool[:number]) / number)


@pytest.mark.parametrize("fraction", [0.2, 1.0])
def test_top_k_equals_detectron2s(fraction: float) -> None:
    logits, target, _ = problem(4)
    weight = torch.rand(target.shape, generator=torch.Generator().manual_seed(0)) * 3
    peer = DeepLabCE(ignore_label=IGNORE, top_k_percent_pixels=fraction)
    assert torch.isclose(top_k(logits, target, ignore=IGNORE, fraction=fraction), peer(logits, target))
    value = top_k(logits, target, ignore=IGNORE, fraction=fraction, weight=weight)
    assert torch.isclose(value, peer(logits, target, weight))
