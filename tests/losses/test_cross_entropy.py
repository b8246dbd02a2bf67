"""Cross-entropy against a NumPy transcription of its definition, and its behaviour at the edges."""

import math

import numpy as np
import pytest
import torch

from seg_ext.losses import LOSSES, cross_entropy

IGNORE = 255


def problem(classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, classes, 5, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, max(classes, 2), (2, 5, 7), generator=generator)
    target[0, 0] = IGNORE
    return logits, target


@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 1.0]])
def test_is_the_weighted_mean_of_minus_log_p(weights: list[float] | None) -> None:
    logits, target = problem(3)
    p = np.exp(logits.detach().numpy())
    p /= p.sum(1, keepdims=True)
    total = mass = 0.0
    for n, y, x in np.ndindex(*target.shape):
        label = int(target[n, y, x])
        if label != IGNORE:
            w = weights[label] if weights else 1.0
            total -= w * math.log(p[n, label, y, x])
            mass += w
    assert cross_entropy(logits, target, ignore=IGNORE, class_weights=weights).item() == pytest.approx(total / mass)


def test_one_channel_is_sigmoid_cross_entropy() -> None:
    logits, target = problem(1)
    valid = target != IGNORE
    want = torch.nn.functional.binary_cross_entropy_with_logits(logits[:, 0][valid], target[valid].double())
    assert torch.isclose(cross_entropy(logits, target, ignore=IGNORE), want)


@pytest.mark.parametrize("classes", [2, 21, 150])
def test_uniform_scores_cost_ln_k(classes: int) -> None:
    _, target = problem(classes)
    assert cross_entropy(torch.zeros(2, classes, 5, 7), target, ignore=IGNORE).item() == pytest.approx(
        math.log(classes), abs=1e-5
    )


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("classes", [1, 4])
def test_gradient_is_right_and_zero_on_ignored_pixels(name: str, classes: int) -> None:
    logits, target = problem(classes)
    assert torch.autograd.gradcheck(lambda x: LOSSES[name](x, target, ignore=IGNORE), logits)
    LOSSES[name](logits, target, ignore=IGNORE).backward()
    grad = logits.grad.permute(0, 2, 3, 1)
    assert grad[target == IGNORE].eq(0).all() and grad[target != IGNORE].ne(0).any()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_all_ignored_is_finite_with_zero_gradient(name: str, dtype: torch.dtype) -> None:
    logits = torch.randn(1, 3, 4, 4).to(dtype).requires_grad_()
    loss = LOSSES[name](logits, torch.full((1, 4, 4), IGNORE), ignore=IGNORE)
    loss.backward()
    assert loss.item() == 0 and logits.grad.eq(0).all()


@pytest.mark.parametrize("weights", [[1.0, 2.0], [1.0, -1.0, 1.0]])
def test_wrong_weights_are_refused(weights: list[float]) -> None:
    logits, target = problem(3)
    with pytest.raises(ValueError, match="takes 3 numbers, none negative"):
        cross_entropy(logits, target, ignore=IGNORE, class_weights=weights)
