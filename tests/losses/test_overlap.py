"""Dice, Jaccard and Tversky against their definitions, hand-made cases and smp."""

from typing import Any

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch

from seg_ext.losses import cross_entropy, dice, generalised_dice, jaccard, tversky

IGNORE = 255


def problem(classes: int, seed: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, max(classes, 2), (2, 5, 7), generator=generator)
    target[0, 0] = IGNORE
    target[1][target[1] == 3] = 2  # a class that the second image lacks
    return torch.randn(2, classes, 5, 7, generator=generator, dtype=torch.float64), target


def flat(logits: torch.Tensor, target: torch.Tensor) -> list[tuple[np.ndarray, np.ndarray]]:
    """(pixels, K) probabilities and one-hot targets of the labelled pixels of each image."""
    z, label = logits.numpy(), target.numpy()
    p = 1 / (1 + np.exp(-z)) if z.shape[1] == 1 else np.exp(z) / np.exp(z).sum(1, keepdims=True)
    ids = np.arange(z.shape[1]) if z.shape[1] > 1 else np.array([1])
    pairs = []
    for n in range(len(z)):
        keep = label[n] != IGNORE
        pairs.append((p[n].transpose(1, 2, 0)[keep], (label[n][keep][:, None] == ids).astype(float)))
    return pairs


def mean_loss(pairs: list, formula: Any, classes: str, per_image: bool) -> float:
    if not per_image:
        pairs = [tuple(np.concatenate(x) for x in zip(*pairs, strict=True))]
    each = [
        np.mean([formula(p[:, k], g[:, k]) for k in range(p.shape[1]) if classes == "all" or g[:, k].any()])
        for p, g in pairs
    ]
    return float(np.mean(each))


FORMULAS = [
    (dice, {}, lambda p, g: 1 - (2 * (p * g).sum() + 1) / (p.sum() + g.sum() + 1)),
    (dice, {"smooth": 0}, lambda p, g: 1 - 2 * (p * g).sum() / (p.sum() + g.sum())),
    (dice, {"squared": True}, lambda p, g: 1 - (2 * (p * g).sum() + 1) / ((p**2).sum() + (g**2).sum() + 1)),
    (jaccard, {"smooth": 0.5}, lambda p, g: 1 - ((p * g).sum() + 0.5) / ((p + g - p * g).sum() + 0.5)),
    (
        tversky,
        {},
        lambda p, g: (
            1 - ((p * g).sum() + 1) / ((p * g).sum() + 0.3 * (p * (1 - g)).sum() + 0.7 * ((1 - p) * g).sum() + 1)
        ),
    ),
    (
        tversky,
        {"alpha": 0.6, "beta": 0.4, "gamma": 4 / 3, "smooth": 0.0},
        lambda p, g: (
            (1 - (p * g).sum() / ((p * g).sum() + 0.6 * (p * (1 - g)).sum() + 0.4 * ((1 - p) * g).sum())) ** 0.75
        ),
    ),
]


@pytest.mark.parametrize(("loss", "args", "formula"), FORMULAS, ids=[f"{f.__name__}-{a}" for f, a, _ in FORMULAS])
@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("classes", ["all", "present"])
@pytest.mark.parametrize("per_image", [False, True])
def test_is_the_mean_of_its_definition(
    loss: Any, args: dict[str, Any], formula: Any, k: int, classes: str, per_image: bool
) -> None:
    logits, target = problem(k)
    value = loss(logits, target, ignore=IGNORE, classes=classes, per_image=per_image, **args)
    assert value.item() == pytest.approx(mean_loss(flat(logits, target), formula, classes, per_image))


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("per_image", [False, True])
def test_generalised_dice_weighs_by_inverse_squared_size(k: int, per_image: bool) -> None:
    logits, target = problem(k)
    scores = torch.cat([torch.zeros_like(logits), logits], 1) if k == 1 else logits
    pairs = flat(scores, target)
    if not per_image:
        pairs = [tuple(np.concatenate(x) for x in zip(*pairs, strict=True))]
    each = []
    for p, g in pairs:
        there = g.any(0)
        w = 1 / g.sum(0)[there] ** 2
        overlap, total = (p * g).sum(0)[there], (p + g).sum(0)[there]
        each.append(1 - 2 * (w * overlap).sum() / (w * total).sum())
    value = generalised_dice(logits, target, ignore=IGNORE, per_image=per_image)
    assert value.item() == pytest.approx(np.mean(each))


def test_an_image_that_is_ignored_throughout_does_not_count() -> None:
    logits, target = problem(4)
    target[0] = IGNORE
    for loss in (dice, jaccard, tversky, generalised_dice):
        value = loss(logits, target, ignore=IGNORE, per_image=True)
        assert torch.isclose(value, loss(logits[1:], target[1:], ignore=IGNORE, per_image=True))


def test_an_exact_hard_match_is_exactly_zero() -> None:
    _, target = problem(4)
    logits = 200.0 * (target[:, None] == torch.arange(4).view(-1, 1, 1))
    for loss in (dice, jaccard, tversky, generalised_dice):
        assert loss(logits, target, ignore=IGNORE).item() == 0


PEERS = [
    (dice, {}, smp.losses.DiceLoss, {}),
    (jaccard, {}, smp.losses.JaccardLoss, {}),
    (tversky, {"alpha": 0.2, "beta": 0.8}, smp.losses.TverskyLoss, {"alpha": 0.2, "beta": 0.8}),
]


@pytest.mark.parametrize(("loss", "args", "peer", "peer_args"), PEERS, ids=[row[0].__name__ for row in PEERS])
@pytest.mark.parametrize("k", [1, 4])
def test_equals_smp(loss: Any, args: dict[str, Any], peer: Any, peer_args: dict[str, Any], k: int) -> None:
    logits, target = problem(k)
    target = torch.where(target == IGNORE, 0, target)  # smp counts what ignored pixels lack
    want = peer("binary" if k == 1 else "multiclass", smooth=0.0, **peer_args)(logits, target)
    assert torch.isclose(loss(logits, target, ignore=IGNORE, smooth=0, **args), want)


def test_half_bce_and_dice_are_unetpps_loss_plus_one() -> None:
    logits, target = problem(1)
    target = torch.where(target == IGNORE, 0, target)
    p, g = logits.sigmoid().flatten().numpy(), target.flatten().numpy()
    bce = -np.mean(g * np.log(p) + (1 - g) * np.log(1 - p))
    unetpp = 0.5 * bce - (2 * (p * g).sum() + 1) / (p.sum() + g.sum() + 1)
    value = 0.5 * cross_entropy(logits, target, ignore=IGNORE) + dice(logits, target, ignore=IGNORE, smooth=1)
    assert value.item() - 1 == pytest.approx(unetpp)
