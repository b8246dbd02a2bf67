"""Aligned Xception: counts, output strides, the order of its activations."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from seg_ext.encoders import Xception
from seg_ext.encoders.xception import Block

COUNTS = {41: 24_920_560, 65: 37_867_312, 71: 40_289_736}


def build(depth=41, output_stride=16, norm=nn.BatchNorm2d):
    with torch.device("meta"):
        return Xception(depth=depth, output_stride=output_stride, norm=norm)


@pytest.mark.parametrize("depth", COUNTS)
def test_counts(depth):
    assert sum(p.numel() for p in build(depth).parameters()) == COUNTS[depth]


@pytest.mark.parametrize("size", [(64, 96), (65, 33)])
@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("depth", [41, 71])
def test_declared_shapes_are_true(depth, output_stride, size):
    encoder = build(depth, output_stride)
    maps = encoder(torch.empty(2, 3, *size, device="meta"))
    assert list(maps) == list(encoder.specs) == ["entry2", "entry3", "exit1", "exit"]
    assert [spec.channels for spec in encoder.specs.values()] == [256, 728, 1024, 2048]
    assert [spec.stride for spec in encoder.specs.values()] == [min(s, output_stride) for s in (4, 8, 16, 32)]
    for name, x in maps.items():
        spec = encoder.specs[name]
        assert x.shape == (2, spec.channels, *(math.ceil(side / spec.stride) for side in size)), name


@pytest.mark.parametrize("depth", COUNTS)
def test_the_output_stride_leaves_the_state_dict_alone(depth):
    shapes = [{k: v.shape for k, v in build(depth, s).state_dict().items()} for s in (8, 16, 32)]
    assert shapes[0] == shapes[1] == shapes[2]


def test_dilation_follows_the_strides_it_replaces():
    def rates(output_stride):
        blocks = build(65, output_stride).blocks
        names = ("entry2", "entry3", "middle1", "middle16", "exit1", "exit2")
        return [blocks[name].convs[2].depthwise.conv.dilation[0] for name in names]

    assert rates(32) == [1, 1, 1, 1, 1, 1]
    assert rates(16) == [1, 1, 1, 1, 1, 2]
    assert rates(8) == [1, 1, 2, 2, 2, 4]


@pytest.mark.parametrize(("side", "stride", "cells"), [(513, 16, 33), (513, 8, 65)])
def test_the_papers_crop(side, stride, cells):
    assert build(41, stride)(torch.empty(1, 3, side, 17, device="meta"))["exit"].shape[2] == cells


def test_eps_reaches_every_norm():
    eps = {module.eps for module in build().modules() if isinstance(module, nn.BatchNorm2d)}
    assert eps == {1e-3}


def separable(conv, x, act):
    for part in (conv.depthwise, conv.pointwise):
        x = act(F.conv2d(x, part.conv.weight, None, part.conv.stride, part.conv.padding, groups=part.conv.groups))
    return x


@pytest.mark.parametrize("shortcut", ["conv", "sum", "none"])
def test_a_block_written_out(shortcut):
    stride = 2 if shortcut == "conv" else 1
    block = Block(4, (4, 4, 4), stride=stride, norm=nn.Identity, shortcut=shortcut)
    x = torch.randn(2, 4, 9, 8)
    y, seconds = x, []
    for conv in block.convs:
        y = separable(conv, y, F.relu) if shortcut == "none" else separable(conv, F.relu(y), lambda z: z)
        seconds.append(y)
    if shortcut == "conv":
        y = y + F.conv2d(x, block.shortcut.conv.weight, stride=2)
    out, second = block(x)
    torch.testing.assert_close(out, y + x if shortcut == "sum" else y)
    torch.testing.assert_close(second, seconds[1])


def test_cells_lie_on_multiples_of_the_stride(reach):
    centre, _, row = reach(Xception(norm=None, depth=41), "entry2", 96)
    assert abs(centre - 4 * row) <= 0.5


@pytest.mark.parametrize("args", [{"depth": 50}, {"output_stride": 4}])
def test_arguments_out_of_range_are_refused(args):
    with pytest.raises(ValueError, match="Xception takes depth"):
        Xception(norm=None, **args)
