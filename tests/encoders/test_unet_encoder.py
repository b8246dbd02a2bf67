"""U-Net's contracting path: sizes and grid of the paper, count beside its expanding path, mirrored borders."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from seg_ext.decoders import UNet
from seg_ext.encoders import UNetEncoder

CROPS = (4, 16, 40, 88)  # pixels of their level, deep to shallow, that the paper crops off its skips


@pytest.mark.parametrize(
    ("in_channels", "classes", "norm", "count"),
    [
        (1, 2, None, 31_030_658),
        (1, 1, None, 31_030_593),
        (3, 21, None, 31_033_045),
        (3, 2, nn.BatchNorm2d, 31_037_698),
    ],
)
def test_counts_with_the_expanding_path(in_channels, classes, norm, count):
    with torch.device("meta"):
        encoder = UNetEncoder(in_channels, norm=norm)
        decoder = UNet(encoder.specs, classes, norm=norm)
    assert sum(p.numel() for part in (encoder, decoder) for p in part.parameters()) == count


def test_the_papers_sizes():
    with torch.device("meta"):
        encoder = UNetEncoder(1, norm=None, valid=True)
        maps = encoder(torch.empty(1, 1, 572, 572))
    assert [x.shape[2] for x in maps.values()] == [568, 280, 136, 64, 28]
    assert [x.shape[1] for x in maps.values()] == [64, 128, 256, 512, 1024]
    assert encoder.smallest == 140


@pytest.mark.parametrize("size", [(64, 96), (71, 45)])
@pytest.mark.parametrize("norm", [None, nn.BatchNorm2d])
def test_declared_shapes_are_true_with_padding(size, norm):
    encoder = UNetEncoder(3, norm=norm, width=4).eval()
    for name, x in encoder(torch.randn(2, 3, *size)).items():
        spec = encoder.specs[name]
        assert x.shape == (2, spec.channels, *(side // spec.stride for side in size)) and spec.offset == 0


@pytest.mark.parametrize("valid", [True, False])
@pytest.mark.parametrize("level", ["level1", "level3", "level4"])
def test_a_cell_looks_at_the_pixels_its_spec_says(level, valid, reach, mean_pools):
    encoder = UNetEncoder(1, norm=None, width=2, valid=valid)
    spec = encoder.specs[level]
    centre, _, row = reach(encoder, level, 188)
    assert abs(centre - (spec.offset + row * spec.stride + (spec.stride - 1) / 2)) <= 0.5


def test_the_receptive_field_of_the_bottleneck(reach, mean_pools):
    assert reach(UNetEncoder(1, norm=None, width=1, valid=True), "level5", 188)[1] == 140


@pytest.mark.parametrize("size", [(1, 1), (30, 100), (101, 64)])
def test_mirrored_borders_let_the_valid_path_cover_the_image(size):
    encoder = UNetEncoder(1, norm=None, width=1, valid=True, mirror=True)
    maps = list(encoder(torch.randn(1, 1, *size)).values())
    specs = list(encoder.specs.values())
    sides, offset = maps[-1].shape[2:], specs[-1].offset
    for crop, skip, spec in zip(CROPS, maps[-2::-1], specs[-2::-1], strict=True):
        sides = [2 * side for side in sides]
        assert [a - b for a, b in zip(skip.shape[2:], sides, strict=True)] == [2 * crop] * 2
        assert offset - spec.offset == crop * spec.stride
        sides, offset = [side - 4 for side in sides], offset + 2 * spec.stride
    assert offset == 0
    assert all(side <= got < side + 16 for side, got in zip(size, sides, strict=True))


def test_mirroring_equals_an_image_mirrored_by_hand():
    mirrored, plain = (UNetEncoder(1, norm=None, width=2, valid=True, mirror=flag).eval() for flag in (True, False))
    plain.load_state_dict(mirrored.state_dict())
    image = torch.randn(1, 1, 100, 116)
    by_hand = F.pad(image, (92,) * 4, mode="reflect")
    torch.testing.assert_close(mirrored(image)["level5"], plain(by_hand)["level5"])


@pytest.mark.parametrize(
    ("args", "drops"),
    [({}, [0, 0, 0, 1, 1]), ({"depth": 3}, [0, 1, 1]), ({"dropout_after": "convs", "depth": 3}, [2, 2, 2])],
)
def test_dropout_ends_the_last_two_levels_or_follows_every_convolution(args, drops):
    encoder = UNetEncoder(1, norm=None, width=8, **args).train()
    calls = []
    encoder.dropout.register_forward_hook(lambda *_: calls.append(None))
    seen = []
    for _ in encoder.walk(torch.ones(1, 1, 32, 32)):
        seen.append(len(calls) - sum(seen))
    assert seen == drops


def test_a_bias_before_a_norm_is_there_on_request():
    def count(bias):
        return sum(p.numel() for p in UNetEncoder(1, norm=nn.BatchNorm2d, width=4, bias=bias).parameters())

    assert count(True) - count(False) == 2 * sum((4, 8, 16, 32, 64))


@pytest.mark.parametrize("args", [{"depth": 0}, {"mirror": True}, {"dropout": 1.0}])
def test_arguments_out_of_range_are_refused(args):
    with pytest.raises(ValueError, match="UNetEncoder takes depth and width"):
        UNetEncoder(1, norm=None, **args)


def test_an_unknown_place_for_dropout_is_refused():
    with pytest.raises(ValueError, match=r"takes dropout_after of \['deep levels', 'convs'\], not 'all'"):
        UNetEncoder(1, norm=None, dropout_after="all")


def test_an_image_too_small_for_valid_convolutions_is_refused_in_one_line():
    with pytest.raises(ValueError, match="takes images of 140 or more pixels a side, not 139x200"):
        UNetEncoder(1, norm=None, width=1, valid=True)(torch.zeros(1, 1, 139, 200))
