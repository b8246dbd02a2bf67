"""Losses in SegHead: checked when it is built, fed with what they declare, trained through every decoder output."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from seg_ext.errors import UserError
from seg_ext.losses import LOSSES, cross_entropy
from seg_ext.modeling.seg_head import SegHead, build_losses

UNET3P = [
    {"NAME": "focal", "gamma": 2},
    {"NAME": "ms_ssim"},
    {"NAME": "jaccard", "smooth": 0.0, "per_image": True},
]
UNETPP = [{"NAME": "cross_entropy", "WEIGHT": 0.5}, {"NAME": "dice", "smooth": 1}]


class Scores(nn.Module):
    """A decoder whose only feature is its logits, with an auxiliary copy."""

    out_stride = 1

    def __init__(self, offset: int | None = None) -> None:
        super().__init__()
        if offset is not None:
            self.out_offset = offset

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"logits": features["x"], "aux_x": features["x"]}


def head(entries: list[dict[str, Any]], classes: int, offset: int | None = None) -> SegHead:
    return SegHead(Scores(offset), ["x"], losses=build_losses(entries, classes), aux_weight=0.5)


def test_the_papers_sums_train() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 1, 40, 36, requires_grad=True)
    target = torch.randint(0, 2, (2, 40, 36))
    for entries in (UNET3P, UNETPP):
        losses = head(entries, 1)({"x": x}, target)[1]
        assert set(losses) == {f"loss_sem_seg_{e['NAME']}{of}" for e in entries for of in ("", "_aux_x")}
        assert losses["loss_sem_seg_" + entries[0]["NAME"]] == 2 * losses[f"loss_sem_seg_{entries[0]['NAME']}_aux_x"]
        x.grad = None
        sum(losses.values()).backward()
        assert x.grad.isfinite().all() and x.grad.ne(0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_built_for_the_classes_it_takes(name: str) -> None:
    for classes in (1, 5):
        if (name, classes) != ("lovasz_hinge", 5):
            assert [n for n, _, _ in build_losses([{"NAME": name}], classes)] == [name]


def test_losses_are_built_on_the_meta_device() -> None:
    with torch.device("meta"):
        for name in LOSSES:
            build_losses([{"NAME": name}], 1)
        build_losses([{"NAME": "cross_entropy", "class_weights": [1, 2]}, {"NAME": "presence"}], 2)


def test_weights_reach_the_losses_that_declare_them() -> None:
    torch.manual_seed(0)
    x, target, weight = torch.randn(1, 2, 6, 6), torch.randint(0, 2, (1, 6, 6)), torch.rand(1, 6, 6)
    entries = [{"NAME": "border_weighted_cross_entropy"}, {"NAME": "dice"}]
    losses = head(entries, 2)({"x": x}, {"sem_seg": target, "weight": weight})[1]
    want = cross_entropy(x, target, ignore=255, weight=weight, reduction="pixel_mean")
    assert torch.equal(losses["loss_sem_seg_border_weighted_cross_entropy"], want)
    assert torch.equal(losses["loss_sem_seg_dice"], LOSSES["dice"](x, target, ignore=255))
    with pytest.raises(UserError, match=r"LOSSES border_weighted_cross_entropy: .*INPUT\.TARGETS"):
        head(entries, 2)({"x": x}, target)


def test_weights_are_cut_with_the_target() -> None:
    torch.manual_seed(0)
    x, target, weight = torch.randn(1, 2, 4, 5), torch.randint(0, 2, (1, 10, 10)), torch.rand(1, 10, 10)
    losses = head([{"NAME": "cross_entropy"}], 2, offset=-3)({"x": x}, {"sem_seg": target, "weight": weight})[1]
    part = (slice(None), slice(3, 7), slice(3, 8))
    assert torch.equal(losses["loss_sem_seg"], cross_entropy(x, target[part], ignore=255, weight=weight[part]))


REFUSED = [
    ({"NAME": "focl"}, 3, "NAME takes one of cross_entropy, .*; did you mean focal\\?"),
    ({"NAME": "cross_entropy", "class_weights": [1, 2]}, 3, "class_weights \\[1, 2\\]: takes 3 numbers"),
    ({"NAME": "cross_entropy", "class_weights": [1]}, 1, "class_weights \\[1\\]: takes 2 numbers"),
    ({"NAME": "cross_entropy", "class_weights": [1, -2]}, 2, "takes 2 numbers, none negative"),
    ({"NAME": "cross_entropy", "class_weights": [1, float("nan")]}, 2, "takes 2 numbers, none negative"),
    ({"NAME": "cross_entropy", "class_weights": "median_frequency"}, 2, "takes 2 numbers"),
    ({"NAME": "cross_entropy", "pos_weight": 2.0}, 3, "pos_weight 2.0: takes one class"),
    ({"NAME": "cross_entropy", "reduction": "none"}, 3, "takes mean or pixel_mean or sum"),
    ({"NAME": "cross_entropy", "weight": [1, 2]}, 2, "unknown argument weight; takes class_weights, pos_weight"),
    ({"NAME": "lovasz_hinge"}, 3, "lovasz_hinge on 3 classes: takes one"),
    ({"NAME": "focal", "gamma": -1}, 3, "gamma -1: takes a number >= 0"),
    ({"NAME": "dice", "smooth": -1}, 3, "smooth -1: takes a number >= 0"),
    ({"NAME": "top_k", "fraction": 2}, 3, "fraction 2: takes a number > 0 and <= 1"),
    ({"NAME": "dice", "WEIGHT": float("nan")}, 3, "WEIGHT nan takes a number >= 0"),
    ({"NAME": "dice", "WEIGHT": True}, 3, "WEIGHT True takes a number >= 0"),
    ({"NAME": "dice", 2: True}, 3, "unknown argument 2; takes smooth"),
]


@pytest.mark.parametrize(("entry", "classes", "message"), REFUSED)
def test_what_does_not_fit_is_refused_when_built(entry: dict[str, Any], classes: int, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build_losses([entry], classes)
    assert str(caught.value).startswith("MODEL.SEM_SEG_HEAD.LOSSES") and "\n" not in str(caught.value)


def test_a_loss_is_listed_once() -> None:
    with pytest.raises(UserError, match="LOSSES has dice twice"):
        build_losses([{"NAME": "dice"}, {"NAME": "dice", "squared": True}], 2)
