"""Lovasz losses against algorithm 1, smp, and 1 - IoU of hard predictions."""

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch

from seg_ext.losses import lovasz_hinge, lovasz_softmax

IGNORE = 255


def problem(classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    target = torch.randint(0, max(classes, 2), (2, 6, 7), generator=generator)
    target[0, :2] = IGNORE
    target[target == 3] = 2  # absent from the batch
    target[1][target[1] == 1] = 0  # and from the second image
    return torch.randn(2, classes, 6, 7, generator=generator, dtype=torch.float64), target


def jaccard_loss(wrong: np.ndarray, truth: np.ndarray) -> float:
    """1 - IoU of a class whose pixels are predicted but for those that are ``wrong``."""
    predicted = truth ^ wrong
    union = (truth | predicted).sum()
    return 1 - (truth & predicted).sum() / union if union else 0.0


def extension(errors: np.ndarray, truth: np.ndarray) -> float:
    """Sum of the errors, falling, times what each adds to the set function ``1 - IoU``."""
    order = np.argsort(-errors, kind="stable")
    wrong, total, before = np.zeros(len(errors), bool), 0.0, 0.0
    for i in order:
        wrong[i] = True
        total += errors[i] * ((after := jaccard_loss(wrong, truth)) - before)
        before = after
    return total


@pytest.mark.parametrize("classes", ["present", "all"])
@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("k", [1, 4])
def test_softmax_is_the_extension_of_the_set_function(k: int, classes: str, per_image: bool) -> None:
    logits, target = problem(k)
    p = (logits.sigmoid() if k == 1 else logits.softmax(1)).numpy()
    groups = [[0], [1]] if per_image else [[0, 1]]
    each = []
    for group in groups:
        label = target.numpy()[group]
        of_class = []
        for c in range(k):
            truth = (label == (c if k > 1 else 1))[label != IGNORE]
            if classes == "all" or truth.any():
                of_class.append(extension(np.abs(truth - p[group][:, c][label != IGNORE]), truth))
        each.append(np.mean(of_class or [0.0]))
    value = lovasz_softmax(logits, target, ignore=IGNORE, classes=classes, per_image=per_image)
    assert value.item() == pytest.approx(np.mean(each))


@pytest.mark.parametrize("per_image", [False, True])
def test_hinge_is_the_extension_of_the_set_function(per_image: bool) -> None:
    logits, target = problem(1)
    each = []
    for group in [[0], [1]] if per_image else [[0, 1]]:
        label = target.numpy()[group]
        truth, z = (label == 1)[label != IGNORE], logits.numpy()[group][:, 0][label != IGNORE]
        each.append(extension(np.maximum(0, 1 - z * np.where(truth, 1, -1)), truth))
    value = lovasz_hinge(logits, target, ignore=IGNORE, per_image=per_image)
    assert value.item() == pytest.approx(np.mean(each))


@pytest.mark.parametrize("per_image", [False, True])
def test_equals_smp(per_image: bool) -> None:
    logits, target = problem(4)
    logits = logits.float()  # smp takes no other
    want = smp.losses.LovaszLoss("multiclass", per_image=per_image, ignore_index=IGNORE)(logits, target)
    assert torch.isclose(lovasz_softmax(logits, target, ignore=IGNORE, per_image=per_image), want)
    logits, target = problem(1)
    logits = logits.float()
    want = smp.losses.LovaszLoss("binary", per_image=per_image, ignore_index=IGNORE)(logits, target)
    assert torch.isclose(lovasz_hinge(logits, target, ignore=IGNORE, per_image=per_image), want)


def test_hard_predictions_cost_one_minus_iou() -> None:
    _, target = problem(3)
    predicted = torch.randint(0, 3, target.shape, generator=torch.Generator().manual_seed(0))
    valid = target != IGNORE
    logits = 200.0 * (predicted[:, None] == torch.arange(3).view(-1, 1, 1))
    iou = [
        ((predicted == c) & (target == c)).sum() / (((predicted == c) | (target == c)) & valid).sum() for c in range(3)
    ]
    assert lovasz_softmax(logits, target, ignore=IGNORE).item() == pytest.approx(1 - np.mean(iou))


def test_slopes_of_a_class_sum_to_one_and_are_exact_in_float32_too() -> None:
    order = torch.randperm(300_000, generator=torch.Generator().manual_seed(0))
    logits = torch.linspace(-1, 1, 300_000)[order].view(1, 1, 500, 600)
    target = (torch.rand(1, 500, 600, generator=torch.Generator().manual_seed(1)) < 0.01).long()
    slopes = []
    for dtype in (torch.float32, torch.float64):
        scores = logits.detach().to(dtype).requires_grad_()
        lovasz_softmax(scores, target, ignore=IGNORE).backward()
        p = scores.detach().sigmoid()
        slopes.append((scores.grad / (p * (1 - p))).abs().double())
    assert slopes[1].sum().item() == pytest.approx(1)
    close = torch.isclose(*slopes, rtol=1e-3, atol=0)
    assert close.double().mean() > 0.995  # pixels whose errors round to the same change places
