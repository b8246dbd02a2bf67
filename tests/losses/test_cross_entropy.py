"""Cross-entropy against a NumPy transcription of its definition, and its behaviour at the edges."""

import math

import numpy as np
import pytest
import torch

from seg_ext.losses import border_weighted_cross_entropy, cross_entropy

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


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("reduction", ["mean", "pixel_mean", "sum"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_all_weights_and_smoothing_against_the_definition(classes: int, reduction: str, smoothing: float) -> None:
    logits, target = problem(classes)
    rng = np.random.default_rng(0)
    class_weights = rng.random(max(classes, 2)).tolist()
    pixel_weights = rng.random(target.shape)
    extra = {"pos_weight": 3.0} if classes == 1 else {}
    z = logits.detach().numpy()
    z = np.concatenate([np.zeros_like(z), z], 1) if classes == 1 else z
    log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
    w = np.array(class_weights) * ([1.0, 3.0] if classes == 1 else 1.0)
    total = mass = pixels = 0.0
    for n, y, x in np.ndindex(*target.shape):
        label = int(target[n, y, x])
        if label != IGNORE:
            wanted = (1 - smoothing) * np.eye(len(w))[label] + smoothing / len(w)
            total -= pixel_weights[n, y, x] * (wanted * w * log_p[n, :, y, x]).sum()
            mass += pixel_weights[n, y, x] * w[label]
            pixels += 1
    value = cross_entropy(
        logits,
        target,
        ignore=IGNORE,
        weight=torch.from_numpy(pixel_weights),
        class_weights=class_weights,
        label_smoothing=smoothing,
        reduction=reduction,
        **extra,
    )
    assert value.item() == pytest.approx(total / {"mean": mass, "pixel_mean": pixels, "sum": 1}[reduction])


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_equals_torch_with_class_weights(smoothing: float) -> None:
    logits, target = problem(3)
    weights = [0.5, 2.0, 1.0]
    want = torch.nn.CrossEntropyLoss(logits.new_tensor(weights), ignore_index=IGNORE, label_smoothing=smoothing)
    value = cross_entropy(logits, target, ignore=IGNORE, class_weights=weights, label_smoothing=smoothing)
    assert torch.isclose(value, want(logits, target))


def test_pos_weight_over_the_pixels_equals_torch() -> None:
    logits, target = problem(1)
    valid = target != IGNORE
    want = torch.nn.BCEWithLogitsLoss(pos_weight=torch.tensor(4.0))(logits[:, 0][valid], target[valid].double())
    value = cross_entropy(logits, target, ignore=IGNORE, pos_weight=4.0, reduction="pixel_mean")
    assert torch.isclose(value, want)


def test_weights_on_ignored_pixels_may_be_anything() -> None:
    logits, target = problem(3)
    weight = torch.ones(target.shape).masked_fill(target == IGNORE, math.nan)
    value = cross_entropy(logits, target, ignore=IGNORE, weight=weight)
    assert torch.isclose(value, cross_entropy(logits, target, ignore=IGNORE))


def test_border_weights_multiply_each_pixels_cost() -> None:
    logits, target = problem(2)
    each = torch.nn.functional.cross_entropy(logits, target, ignore_index=IGNORE, reduction="none")
    weight = torch.rand(target.shape) * 11
    value = border_weighted_cross_entropy(logits, target, ignore=IGNORE, weight=weight)
    assert torch.isclose(value, (each * weight).sum() / (target != IGNORE).sum())
