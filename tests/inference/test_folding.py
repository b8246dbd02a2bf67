"""Folded networks give what they gave."""

from __future__ import annotations

import copy

import pytest
import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import nn

from seg_ext.inference.folding import fold_batch_norm
from seg_ext.layers.conv import ConvNormAct, SeparableConv

NORMS = (nn.BatchNorm2d, FrozenBatchNorm2d)


def shaken(model: nn.Module) -> nn.Module:
    """In eval mode, every norm with statistics and affine values of its own."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, NORMS) and module.running_mean is not None:
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.1, 3, generator=generator)
            if module.weight is not None:
                module.weight.data.normal_(generator=generator)
                module.bias.data.normal_(generator=generator)
    return model.eval()


NETWORKS = {
    "ConvNormAct": (lambda: ConvNormAct(3, 8, norm=nn.BatchNorm2d), 1),
    "with a bias before the norm": (lambda: ConvNormAct(3, 8, bias=True, norm=nn.BatchNorm2d), 1),
    "separable, groups": (lambda: SeparableConv(3, 8, dilation=2, norm=nn.BatchNorm2d), 2),
    "detectron2's convolution": (lambda: Conv2d(3, 8, 3, norm=FrozenBatchNorm2d(8), activation=torch.relu), 1),
    "in a Sequential": (lambda: nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()), 1),
    "without affine values": (lambda: ConvNormAct(3, 8, norm=lambda c: nn.BatchNorm2d(c, affine=False)), 1),
    "GroupNorm": (lambda: ConvNormAct(3, 8, norm=lambda c: nn.GroupNorm(2, c)), 0),
    "without statistics": (lambda: ConvNormAct(3, 8, norm=lambda c: nn.BatchNorm2d(c, track_running_stats=False)), 0),
    "not next to each other": (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.BatchNorm2d(8)), 0),
}


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_what_follows_a_convolution_is_folded_exactly_and_nothing_else(name: str) -> None:
    make, count = NETWORKS[name]
    torch.manual_seed(0)
    model = shaken(make())
    folded = copy.deepcopy(model)
    assert fold_batch_norm(folded) == count
    left = sum(isinstance(module, NORMS) for module in folded.modules())
    assert left == sum(isinstance(module, NORMS) for module in model.modules()) - count
    image = torch.randn(2, 3, 11, 13)
    assert (folded(image) - model(image)).abs().max() < 1e-5


def test_a_norm_in_training_is_left_alone() -> None:
    assert fold_batch_norm(ConvNormAct(3, 8, norm=nn.BatchNorm2d).train()) == 0
