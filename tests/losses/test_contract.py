"""What every loss of the table keeps: gradients, ignored pixels, number formats, degenerate batches, arguments."""

import itertools
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from seg_ext.losses import LOSSES

IGNORE = 255
ROWS: list[tuple[str, dict[str, Any]]] = [
    ("cross_entropy", {}),
    ("cross_entropy", {"label_smoothing": 0.1, "reduction": "pixel_mean"}),
    ("cross_entropy", {"reduction": "sum"}),
    ("border_weighted_cross_entropy", {}),
    ("focal", {}),
    ("focal", {"gamma": 0.5}),
    ("dice", {}),
    ("dice", {"smooth": 0.0, "squared": True, "classes": "present", "per_image": True}),
    ("generalised_dice", {}),
    ("jaccard", {}),
    ("jaccard", {"smooth": 0, "per_image": True}),
    ("tversky", {}),
    ("tversky", {"gamma": 4 / 3, "smooth": 0.0}),
    ("lovasz_softmax", {}),
    ("lovasz_softmax", {"classes": "all", "per_image": True}),
    ("lovasz_hinge", {}),
    ("lovasz_hinge", {"per_image": False}),
    ("ohem", {"min_kept": 20}),
    ("top_k", {"fraction": 0.5}),
    ("boundary", {}),
    ("ms_ssim", {}),
    ("multilabel_cross_entropy", {}),
    ("multilabel_dice", {}),
]
CASES = [(n, a, k) for n, a in ROWS for k in (1, 4) if not (n == "lovasz_hinge" and k > 1)]
IDS = [f"{n}-{'-'.join(f'{x}={y}' for x, y in a.items()) or 'defaults'}-{k}" for n, a, k in CASES]
every_loss = pytest.mark.parametrize(("name", "args", "classes"), CASES, ids=IDS)


def loss_of(name: str, args: dict[str, Any], target: Tensor) -> Any:
    weight = {"weight": torch.rand(target.shape) + 0.5} if name == "border_weighted_cross_entropy" else {}
    return partial(LOSSES[name], target=target, ignore=IGNORE, **args, **weight)


def problem(classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, classes, 5, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, max(classes, 2), (2, 5, 7), generator=generator)
    target[0, 0] = target[1, 2, 3] = IGNORE
    return logits, target


def gradient(loss: Any, logits: Tensor) -> tuple[float, Tensor]:
    logits = logits.detach().requires_grad_()
    value = loss(logits)
    value.backward()
    return value.item(), logits.grad


def test_every_loss_has_a_row() -> None:
    assert {name for name, _ in ROWS} == set(LOSSES)


@every_loss
def test_gradient_is_that_of_the_value(name: str, args: dict[str, Any], classes: int) -> None:
    logits, target = problem(classes)
    torch.manual_seed(0)  # fast mode compares along random directions
    assert torch.autograd.gradcheck(loss_of(name, args, target), logits, fast_mode=True)


@every_loss
def test_ignored_pixels_count_for_nothing(name: str, args: dict[str, Any], classes: int) -> None:
    logits, target = problem(classes)
    loss = loss_of(name, args, target)
    value, grad = gradient(loss, logits)
    grad = grad.permute(0, 2, 3, 1)
    assert grad[target == IGNORE].eq(0).all() and grad[target != IGNORE].ne(0).any()
    other = torch.where((target == IGNORE)[:, None], logits.detach() * 3 - 1, logits.detach())
    assert loss(other).item() == pytest.approx(value, rel=1e-12)


@every_loss
def test_all_ignored_is_zero_with_zero_gradient(name: str, args: dict[str, Any], classes: int) -> None:
    loss = loss_of(name, args, torch.full((2, 4, 4), IGNORE))
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        value, grad = gradient(loss, torch.randn(2, classes, 4, 4).to(dtype) * 9)
        assert value == 0 and grad.eq(0).all()


@every_loss
def test_half_precision_is_computed_in_float32(name: str, args: dict[str, Any], classes: int) -> None:
    logits, target = problem(classes)
    loss = loss_of(name, args, target)
    for dtype in (torch.float16, torch.bfloat16):
        half = logits.detach().to(dtype)
        value, grad = gradient(loss, half)
        want, want_grad = gradient(loss, half.float())
        assert loss(half).dtype == torch.float32 and value == pytest.approx(want, rel=1e-6)
        assert grad.dtype == dtype and torch.allclose(grad.float(), want_grad, rtol=0.01, atol=1e-6)


@every_loss
def test_autocast_changes_nothing(name: str, args: dict[str, Any], classes: int) -> None:
    logits, target = problem(classes)
    loss, logits = loss_of(name, args, target), logits.detach().float()
    with torch.autocast("cpu", torch.bfloat16):
        inside = gradient(loss, logits)
    outside = gradient(loss, logits)
    assert inside[0] == outside[0] and torch.equal(inside[1], outside[1])


@every_loss
def test_certain_scores_have_finite_gradients_and_right_ones_cost_nothing(
    name: str, args: dict[str, Any], classes: int
) -> None:
    _, target = problem(classes)
    loss, ids = loss_of(name, args, target), torch.arange(classes) if classes > 1 else torch.ones(1, dtype=torch.long)
    hit = target[:, None] == ids.view(-1, 1, 1)
    same_boundary = name == "boundary" and classes == 1  # foreground and background exchanged
    for dtype, size in itertools.product((torch.float32, torch.float16, torch.bfloat16), (1e4, 30.0)):
        right, right_grad = gradient(loss, torch.where(hit, size, -size).to(dtype))
        wrong, wrong_grad = gradient(loss, torch.where(hit, -size, size).to(dtype))
        assert right_grad.isfinite().all() and wrong_grad.isfinite().all()
        assert 0 <= right < 1e-5 or args.get("label_smoothing")
        assert 0.3 < wrong < float("inf") or same_boundary


@every_loss
def test_few_classes_are_no_trouble(name: str, args: dict[str, Any], classes: int) -> None:
    logits, target = problem(classes)
    one_class = torch.where(target == IGNORE, IGNORE, 1)
    a_class_less = torch.where(target == max(classes, 2) - 1, 0, target)
    for few in (one_class, a_class_less, torch.zeros_like(target)):
        value, grad = gradient(loss_of(name, args, few), logits)
        assert 0 <= value < float("inf") and grad.isfinite().all()


@every_loss
def test_any_size_will_do(name: str, args: dict[str, Any], classes: int) -> None:
    for size in ((1, 1), (1, 9), (33, 2)):
        loss = loss_of(name, args, torch.randint(0, 2, (1, *size)))
        value, grad = gradient(loss, torch.randn(1, classes, *size))
        assert 0 <= value < float("inf") and grad.isfinite().all()


NAN = float("nan")
REFUSED = [
    ("cross_entropy", {"class_weights": [1.0, 2.0]}, 3, "class_weights [1.0, 2.0]: takes 3 numbers, none negative"),
    ("cross_entropy", {"class_weights": [1.0]}, 1, "class_weights [1.0]: takes 2 numbers"),
    ("cross_entropy", {"class_weights": [1.0, NAN]}, 2, "takes 2 numbers, none negative"),
    ("cross_entropy", {"class_weights": [1.0, -1.0]}, 2, "takes 2 numbers, none negative"),
    ("cross_entropy", {"class_weights": [0, 0]}, 2, "not all 0"),
    ("cross_entropy", {"class_weights": "median_frequency"}, 2, "class_weights 'median_frequency': takes 2 numbers"),
    ("cross_entropy", {"class_weights": 3}, 2, "class_weights 3: takes 2 numbers"),
    ("cross_entropy", {"pos_weight": 2.0}, 2, "pos_weight 2.0: takes one class"),
    ("cross_entropy", {"pos_weight": -2.0}, 1, "pos_weight -2.0: takes a number > 0"),
    ("cross_entropy", {"label_smoothing": 1.5}, 2, "label_smoothing 1.5: takes a number >= 0 and <= 1"),
    ("cross_entropy", {"reduction": "none"}, 2, "reduction 'none': takes mean or pixel_mean or sum"),
    ("cross_entropy", {"weight": torch.ones(1, 3, 3)}, 2, "weight (1, 3, 3): takes the target's shape (1, 2, 2)"),
    ("border_weighted_cross_entropy", {}, 2, "INPUT.TARGETS"),
    ("focal", {"gamma": -1}, 2, "gamma -1: takes a number >= 0"),
    ("focal", {"gamma": "2"}, 2, "gamma '2': takes a number >= 0"),
    ("focal", {"alpha": 0.25}, 2, "alpha 0.25: takes 2 numbers"),
    ("focal", {"alpha": 1.5}, 1, "alpha 1.5: takes a number >= 0 and <= 1"),
    ("dice", {"smooth": -1}, 2, "smooth -1: takes a number >= 0"),
    ("dice", {"smooth": NAN}, 2, "smooth nan: takes a number >= 0"),
    ("dice", {"classes": "some"}, 2, "classes 'some': takes all or present"),
    ("dice", {"squared": "yes"}, 2, "squared 'yes': takes False or True"),
    ("jaccard", {"smooth": -0.1}, 2, "smooth -0.1"),
    ("tversky", {"alpha": -0.1}, 2, "alpha -0.1"),
    ("tversky", {"gamma": 0}, 2, "gamma 0: takes a number > 0"),
    ("lovasz_softmax", {"classes": [1]}, 2, "classes [1]: takes all or present"),
    ("lovasz_hinge", {}, 2, "lovasz_hinge on 2 classes: takes one"),
    ("ohem", {"threshold": 0}, 2, "threshold 0: takes a number > 0 and <= 1"),
    ("ohem", {"min_kept": 2.5}, 2, "min_kept 2.5: takes a whole number >= 0"),
    ("top_k", {"fraction": 0}, 2, "fraction 0: takes a number > 0 and <= 1"),
    ("top_k", {"fraction": 1.1}, 2, "fraction 1.1: takes a number > 0 and <= 1"),
    ("boundary", {"width": 4}, 2, "width 4: takes an odd number >= 3"),
    ("multilabel_cross_entropy", {"pos_weight": [1.0]}, 2, "pos_weight [1.0]: takes 2 numbers"),
    ("multilabel_dice", {"smooth": True}, 2, "smooth True: takes a number >= 0"),
    ("multilabel_dice", {"target": torch.zeros(1, 3, 2, 2)}, 2, "target (1, 3, 2, 2): takes (1, 2, 2) or (1, 2, 2, 2)"),
]


@pytest.mark.parametrize(("name", "args", "classes", "message"), REFUSED, ids=[f"{n}-{m}" for n, *_, m in REFUSED])
def test_what_does_not_fit_is_refused_in_a_line(name: str, args: dict[str, Any], classes: int, message: str) -> None:
    inputs = {"target": torch.zeros(1, 2, 2, dtype=torch.long), **args}
    with pytest.raises(ValueError) as caught:
        LOSSES[name](torch.zeros(1, classes, 2, 2), ignore=IGNORE, **inputs)
    assert message in str(caught.value) and "\n" not in str(caught.value)
