"""U-Net with valid convolutions: the original's sizes, crops and grid."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from seg_ext.decoders import UNet
from seg_ext.layers import FeatureSpec

OFFSETS = (2, 6, 14, 30, 62)


def specs(width=2, offsets=OFFSETS, shift=0):
    return {f"e{i}": FeatureSpec(width * 2**i, 2**i, offset - shift) for i, offset in enumerate(offsets)}


def sides(size, levels=5):
    """Cells a side of every level of an encoder of two valid 3x3 convolutions a level and floor pooling."""
    out = []
    for _ in range(levels):
        out.append(size - 4)
        size = out[-1] // 2
    return out


def maps(features, size):
    cells = sides(size, len(features))
    return {name: torch.randn(1, s.channels, n, n) for (name, s), n in zip(features.items(), cells, strict=True)}


def test_572_pixels_give_388_with_the_originals_crops():
    with torch.device("meta"):
        decoder = UNet(specs(64), 2, norm=None, padding="valid")
        features = maps(specs(64), 572)
        assert [x.shape[-1] for x in features.values()] == [568, 280, 136, 64, 28]
        assert decoder(features)["logits"].shape == (1, 2, 388, 388)
    assert [block.crop for block in decoder.blocks] == [4, 16, 40, 88]
    assert decoder.out_offset == -92 and decoder.out_stride == 1


def test_the_network_written_out():
    decoder = UNet(specs(), 3, norm=None, padding="valid")
    features = maps(specs(), 204)
    x = features["e4"]
    for block, name in zip(decoder.blocks, ("e3", "e2", "e1", "e0"), strict=True):
        x, skip = block.up(x), features[name]
        margin = (skip.shape[-1] - x.shape[-1]) // 2
        assert margin == block.crop and skip.shape[-1] == x.shape[-1] + 2 * margin
        x = torch.cat([skip[..., margin:-margin, margin:-margin], x], dim=1)
        for conv in block.convs:
            x = F.conv2d(x, conv.conv.weight, conv.conv.bias).relu()
    logits = decoder(features)["logits"]
    assert logits.shape[-1] == 204 - 184
    torch.testing.assert_close(logits, decoder.score(x))


@pytest.mark.parametrize("up", ["transpose", "bilinear", "nearest"])
@pytest.mark.parametrize("size", [188, 191, 197, 204])
def test_every_image_from_188_pixels_gives_logits_inside_it(size, up):
    side = UNet(specs(), 2, norm=None, padding="valid", up=up)(maps(specs(), size))["logits"].shape[-1]
    assert side == size - 184 - (size - 188) % 16


def test_logits_are_those_of_the_pixels_that_the_offset_names():
    features = dict(list(specs(1).items())[:3])
    decoder = UNet(features, 1, norm=None, padding="valid", up="nearest", convs=1)
    for block, (_, shallow) in zip(decoder.blocks, pairwise(reversed(features.values())), strict=True):
        conv = block.convs[0].conv
        nn.init.zeros_(conv.weight)
        nn.init.zeros_(conv.bias)
        with torch.no_grad():  # pass the skip on: the shallowest one decides the logits
            conv.weight[range(shallow.channels), range(shallow.channels), 1, 1] = 1
    nn.init.ones_(decoder.score.weight)
    size = 60
    image = torch.arange(size, dtype=torch.float32).expand(1, 1, size, size)
    inputs = maps(features, size)
    inputs["e0"] = image[..., 2:-2, 2:-2]
    logits = decoder(inputs)["logits"]
    begin, side = -decoder.out_offset, logits.shape[-1]
    assert begin > 0 and torch.equal(logits, image[..., begin : begin + side, begin : begin + side])


@pytest.mark.parametrize("shift", [92, 100])
def test_an_encoder_that_pads_its_image_moves_the_logits_outwards(shift):
    assert UNet(specs(shift=shift), 2, norm=None, padding="valid").out_offset == shift - 92


def test_levels_without_a_skip_are_placed_too():
    features = dict(list(specs().items())[1:3])
    decoder = UNet(features, 2, norm=None, padding="valid", extra_ups=(4,))
    assert decoder.out_offset == -(14 + 2 * 2 + 2 * 1)
    cells = {"e1": 30, "e2": 11}
    logits = decoder({name: torch.randn(1, s.channels, cells[name], cells[name]) for name, s in features.items()})
    assert logits["logits"].shape[-1] == 2 * (2 * 11 - 4) - 4


@pytest.mark.parametrize("size", [172, 187])
def test_a_smaller_image_is_refused_in_one_line(size):
    with pytest.raises(ValueError, match=r"UNet with valid padding takes a larger image: a map of \(4, 4\)") as error:
        UNet(specs(), 2, norm=None, padding="valid")(maps(specs(), size))
    assert "\n" not in str(error.value)


def test_wrong_grids_are_refused_at_construction():
    valid = {"norm": None, "padding": "valid"}
    with pytest.raises(ValueError, match=r"a whole number of cells inside .* not at \[2, 6, 14, 30, 61\]"):
        UNet(specs(offsets=(2, 6, 14, 30, 61)), 2, **valid)
    with pytest.raises(ValueError, match="a whole number of cells inside"):
        UNet(specs(offsets=(200, 6, 14, 30, 62)), 2, **valid)
    with pytest.raises(ValueError, match="valid only for logits of stride 1, not 'valid' at stride 2"):
        UNet(dict(list(specs().items())[1:]), 2, **valid)
    with pytest.raises(ValueError, match=r"padding of \['same', 'valid'\].*not 'full'"):
        UNet(specs(offsets=[0] * 5), 2, norm=None, padding="full")
    with pytest.raises(ValueError, match="features of offset 0"):
        UNet(specs(), 2, norm=None)
