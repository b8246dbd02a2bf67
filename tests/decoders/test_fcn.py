"""FCN: its grids, its upsampling and the released nets' crop offsets."""

from math import log

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from seg_ext.decoders import FCN
from seg_ext.layers import FeatureSpec, bilinear_kernel

VGG = {"pool3": FeatureSpec(2, 8, -99), "pool4": FeatureSpec(3, 16, -99), "fc7": FeatureSpec(4, 32, -3)}
PLAIN = {"s8": FeatureSpec(2, 8), "s16": FeatureSpec(3, 16), "s32": FeatureSpec(4, 32)}


def deepest(specs, count):
    return dict(list(specs.items())[-count:])


def caffe_sizes(size):
    """Cells of pool3, pool4 and fc7 for an image side: 100 pixels of padding, ceiling pools, unpadded 7x7."""
    side, sizes = size + 198, []
    for _ in range(5):
        side = -(-side // 2)
        sizes.append(side)
    return sizes[2], sizes[3], sizes[4] - 6


def score_one(decoder, name):
    """Let `decoder` score the mean of the feature `name` alone, as class 0."""
    for key, score in decoder.scores.items():
        nn.init.zeros_(score.weight)
        if key == name:
            nn.init.constant_(score.weight[0], 1 / score.in_channels)


@pytest.mark.parametrize("count, crops, out_offset", [(1, [], 19), (2, [5], 27), (3, [5, 9], 31)])
def test_vggs_grids_give_the_crop_offsets_of_the_released_nets(count, crops, out_offset):
    decoder = FCN(deepest(VGG, count), 2)
    assert list(decoder.crops.values()) == [(0, crop) for crop in crops]
    assert decoder.out_offset == out_offset and decoder.out_stride == 1


def test_fcn8s_equals_the_released_net_written_out():
    decoder = FCN(VGG, 3)
    for score in decoder.scores.values():
        nn.init.normal_(score.weight)
    pool3, pool4, fc7 = (torch.randn(1, s.channels, n, n) for s, n in zip(VGG.values(), caffe_sizes(70), strict=True))

    def up(x, factor):
        weight = torch.zeros(3, 3, 2 * factor, 2 * factor)
        weight[range(3), range(3)] = bilinear_kernel(2 * factor)
        return F.conv_transpose2d(x, weight, stride=factor)

    def crop(x, offset, like):
        return x[..., offset : offset + like.shape[-2], offset : offset + like.shape[-1]]

    x = up(decoder.scores["fc7"](fc7), 2)
    x = up(x + crop(decoder.scores["pool4"](pool4), 5, x), 2)
    x = up(x + crop(decoder.scores["pool3"](pool3), 9, x), 8)
    logits = decoder({"pool3": pool3, "pool4": pool4, "fc7": fc7})["logits"]
    torch.testing.assert_close(logits, x)
    assert logits.shape[-1] >= 31 + 70


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_logits_cover_an_image_of_any_size(count):
    with torch.device("meta"):
        padded, plain = FCN(deepest(VGG, count), 2), FCN(deepest(PLAIN, count), 2)
        for size in (1, 7, 31, 32, 33, 63, 64, 100, 227, 333, 500):
            for decoder, sides in ((padded, caffe_sizes(size)), (plain, [-(-size // s) for s in (8, 16, 32)])):
                specs = VGG if decoder is padded else PLAIN
                maps = {k: torch.empty(1, s.channels, n, n) for (k, s), n in zip(specs.items(), sides, strict=True)}
                assert decoder(maps)["logits"].shape[-1] >= decoder.out_offset + size


@pytest.mark.parametrize("specs", [PLAIN, VGG], ids=["plain", "padded by 100"])
@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_spike_comes_out_centred_on_its_cell(specs, level):
    name, spec = list(specs.items())[level]
    decoder = FCN(specs, 1)
    score_one(decoder, name)
    sides = caffe_sizes(320) if specs is VGG else (40, 20, 10)
    maps = {k: torch.zeros(1, s.channels, n, n) for (k, s), n in zip(specs.items(), sides, strict=True)}
    row, column = sides[level] // 2, sides[level] // 2 + 1
    maps[name][..., row, column] = 1
    logits = decoder(maps)["logits"][0, 0]
    pixels = torch.arange(logits.shape[-1]) - decoder.out_offset
    mass = logits.sum()
    assert mass > 0
    for cell, marginal in ((row, logits.sum(1)), (column, logits.sum(0))):
        centre = (marginal * pixels).sum() / mass
        assert centre.item() == pytest.approx(spec.offset + cell * spec.stride + (spec.stride - 1) / 2, abs=1e-3)


@pytest.mark.parametrize("pad", [0, 99], ids=["plain", "padded by 100"])
@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_ramp_seen_through_the_backbones_own_geometry_comes_out_as_the_ramp(pad, level):
    size = 512
    specs = VGG if pad else PLAIN
    decoder = FCN(specs, 1)
    name = list(specs)[level]
    score_one(decoder, name)
    x = torch.arange(-pad, size + pad, dtype=torch.float64).expand(1, 1, size + 2 * pad, -1)
    maps = [x]
    for _ in range(5):
        maps.append(F.avg_pool2d(maps[-1], 2, ceil_mode=True, count_include_pad=False))
    maps = [maps[3], maps[4], F.avg_pool2d(maps[5], 7, stride=1) if pad else maps[5]]
    channels = [spec.channels for spec in specs.values()]
    features = {k: m.float().expand(-1, c, -1, -1) for k, m, c in zip(specs, maps, channels, strict=True)}
    o = decoder.out_offset
    logits = decoder(features)["logits"][0, 0, o : o + size, o : o + size]
    inside = slice(64, -64)
    expected = torch.arange(size, dtype=torch.float32).expand(size, -1)
    torch.testing.assert_close(logits[inside, inside], expected[inside, inside], atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("replicate", [False, True])
def test_a_constant_score_stays_constant_inside_and_with_replicated_borders_everywhere(replicate, make_features):
    decoder = FCN(PLAIN, 2, replicate_border=replicate)
    nn.init.ones_(decoder.scores["s32"].bias)
    o = decoder.out_offset
    logits = decoder(make_features(PLAIN, 200, 200))["logits"][..., o : o + 200, o : o + 200]
    torch.testing.assert_close(logits[..., 32:-32, 32:-32], torch.ones(2, 2, 136, 136))
    assert (logits.std() < 1e-6) == replicate


def test_replicated_borders_give_exactly_bilinear_interpolation(make_features):
    decoder = FCN(PLAIN, 3, replicate_border=True)
    for score in decoder.scores.values():
        nn.init.normal_(score.weight)
    features = make_features(PLAIN, 96, 128)
    x = decoder.scores["s32"](features["s32"])
    for name, factor in (("s16", 2), ("s8", 2), (None, 8)):
        x = F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
        x = x if name is None else x + decoder.scores[name](features[name])
    o = decoder.out_offset
    torch.testing.assert_close(decoder(features)["logits"][..., o : o + 96, o : o + 128], x)


def test_scores_start_at_zero_so_that_the_first_loss_is_the_log_of_the_classes(make_features):
    logits = FCN(PLAIN, 21)(make_features(PLAIN, 64, 64))["logits"]
    loss = F.cross_entropy(logits, torch.randint(21, logits[:, 0].shape))
    assert loss.item() == pytest.approx(log(21), abs=1e-6)


def test_only_the_kernels_between_the_skips_learn_and_only_on_request():
    for learn in (False, True):
        ups = FCN(PLAIN, 2, learn_upsample=learn).ups
        trained = {name for name, up in ups.items() if up.weight.requires_grad}
        assert trained == ({"s8", "s16"} if learn else set()) and set(ups) == {"s8", "s16", "final"}


def test_skip_scales_follow_the_features_from_shallow_to_deep(make_features):
    plain, scaled = FCN(PLAIN, 2), FCN(PLAIN, 2, skip_scale=(0.0001, 0.01))
    for score in plain.scores.values():
        nn.init.normal_(score.weight)
        nn.init.normal_(score.bias)
    scaled.load_state_dict(plain.state_dict())
    features = make_features(PLAIN, 64, 64)
    by_hand = {"s8": 0.0001 * features["s8"], "s16": 0.01 * features["s16"], "s32": features["s32"]}
    torch.testing.assert_close(scaled(features)["logits"], plain(by_hand)["logits"])
