"""Focal loss against its definition, published values, smp and torchvision."""

import math
from typing import Any

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from torchvision.ops import sigmoid_focal_loss

from seg_ext.losses import cross_entropy, focal

IGNORE = 255


def problem(classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    target = torch.randint(0, max(classes, 2), (2, 5, 7), generator=generator)
    target[0, 0] = IGNORE
    return torch.randn(2, classes, 5, 7, generator=generator, dtype=torch.float64), target


@pytest.mark.parametrize(("label", "want"), [(1, 0.0433), (0, 0.1300)])
def test_even_odds_cost_what_the_paper_gives(label: int, want: float) -> None:
    value = focal(torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1), label), ignore=IGNORE, alpha=0.25)
    assert value.item() == pytest.approx(want, abs=5e-5)


@pytest.mark.parametrize("gamma", [0, 0.5, 2.0])
@pytest.mark.parametrize(
    ("classes", "alpha"), [(4, None), (4, [0.1, 0.2, 0.3, 0.4]), (1, None), (1, 0.25), (1, [0.75, 0.25])]
)
def test_is_the_mean_of_its_definition(classes: int, alpha: Any, gamma: float) -> None:
    logits, target = problem(classes)
    z = logits.numpy()
    z = np.concatenate([np.zeros_like(z), z], 1) if classes == 1 else z
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    weights = [0.75, 0.25] if alpha == 0.25 else alpha or [1.0] * 4
    each = [
        -weights[c] * (1 - p[n, c, y, x]) ** gamma * math.log(p[n, c, y, x])
        for n, y, x in np.ndindex(*target.shape)
        if (c := int(target[n, y, x])) != IGNORE
    ]
    assert focal(logits, target, ignore=IGNORE, gamma=gamma, alpha=alpha).item() == pytest.approx(np.mean(each))


def test_gamma_zero_is_cross_entropy() -> None:
    logits, target = problem(4)
    assert torch.isclose(
        focal(logits, target, ignore=IGNORE, gamma=0), cross_entropy(logits, target, ignore=IGNORE), rtol=1e-12
    )


def test_one_channel_equals_torchvision_and_smp() -> None:
    logits, target = problem(1)
    valid = target != IGNORE
    value = focal(logits, target, ignore=IGNORE, alpha=0.25)
    want = sigmoid_focal_loss(logits[:, 0][valid], target[valid].double(), alpha=0.25, gamma=2, reduction="mean")
    assert torch.isclose(value, want)
    assert torch.isclose(value, smp.losses.FocalLoss("binary", alpha=0.25, ignore_index=IGNORE)(logits, target))
