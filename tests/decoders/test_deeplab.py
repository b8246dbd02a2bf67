"""DeepLab v1 and v2: which features they join and how their branches add."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from seg_ext.decoders import DeepLabV1, DeepLabV2
from seg_ext.encoders.vgg import VGG, VGG_VARIANTS
from seg_ext.layers import FeatureSpec

LARGE_FOV = {"fc7": FeatureSpec(1024, 8)}
POOLS = {"pool1": FeatureSpec(64, 2), "pool2": FeatureSpec(128, 4), "pool3": FeatureSpec(256, 8)}
MSC = {"image": FeatureSpec(3, 1), **POOLS, "pool4": FeatureSpec(512, 8), **LARGE_FOV}


def test_msc_adds_128_channels_for_the_image_and_each_of_four_pools():
    with torch.device("meta"):
        decoder = DeepLabV1(MSC, 21, norm=None)
    heads = sum(9 * c * 128 + 128 + 128 * 128 + 128 for c in (3, 64, 128, 256, 512))
    assert decoder.score.in_channels == 1024 + 640
    assert sum(p.numel() for p in decoder.parameters()) == heads + 21 * 1664 + 21


@pytest.mark.parametrize("size", [(321, 321), (97, 66)], ids=str)
def test_msc_meets_fc7_on_its_own_grid(size, make_features):
    specs = {name: FeatureSpec(4, spec.stride) for name, spec in MSC.items()}
    decoder = DeepLabV1(specs, 2, norm=None, channels=3).eval()
    features = make_features(specs, *size, batch=1)
    for name, head in decoder.heads.items():
        assert head(features[name]).shape[-2:] == features["fc7"].shape[-2:]
    assert decoder(features)["logits"].shape[-2:] == tuple(-(-side // 8) for side in size)


def test_the_joined_score_is_a_sum_of_scores(make_features):
    specs = {"image": FeatureSpec(3, 1), "fc7": FeatureSpec(5, 8)}
    decoder = DeepLabV1(specs, 2, norm=None, channels=4).eval()
    features = make_features(specs, 32, 40)
    weight, bias = decoder.score.weight, decoder.score.bias
    deep = F.conv2d(features["fc7"], weight[:, :5], bias)
    head = F.conv2d(decoder.heads["image"](features["image"]), weight[:, 5:])
    torch.testing.assert_close(decoder(features)["logits"], deep + head)


@pytest.mark.parametrize("hidden", [None, 6])
def test_v2_sums_one_branch_a_rate_on_the_deepest_feature(hidden, make_features):
    specs = {"res4": FeatureSpec(3, 8), "res5": FeatureSpec(4, 8)}
    decoder = DeepLabV2(specs, 3, norm=None, rates=(1, 2, 5), hidden=hidden).eval()
    features = make_features(specs, 64, 96)
    total = torch.stack([branch(features["res5"]) for branch in decoder.branches]).sum(0)
    torch.testing.assert_close(decoder(features)["logits"], total)
    first = [branch if hidden is None else branch[0].conv for branch in decoder.branches]
    assert [conv.dilation for conv in first] == [(1, 1), (2, 2), (5, 5)]


def test_v2_branches_on_vgg_are_fc6_fc7_fc8_with_dropout():
    with torch.device("meta"):
        branch = DeepLabV2({"pool5": FeatureSpec(512, 8)}, 21, norm=None, hidden=1024).branches[0]
    convs = [m for m in branch.modules() if isinstance(m, nn.Conv2d)]
    assert [(c.kernel_size[0], c.out_channels) for c in convs] == [(3, 1024), (1, 1024), (1, 21)]
    assert [m.p for m in branch if isinstance(m, nn.Dropout)] == [0.5, 0.5]


@pytest.mark.parametrize(
    "layer",
    [
        lambda: DeepLabV1(LARGE_FOV, 21, norm=None).score,
        lambda: DeepLabV2({"res5": FeatureSpec(256, 8)}, 21, norm=None).branches[3],
        lambda: DeepLabV2({"pool5": FeatureSpec(8, 8)}, 21, norm=None, hidden=1024).branches[0][-1],
    ],
    ids=["v1", "v2", "v2 branch"],
)
def test_score_layers_start_normal_with_std_a_hundredth(layer):
    conv = layer()
    assert conv.weight.std().item() == pytest.approx(0.01, rel=0.05) and not conv.bias.any()


@pytest.mark.parametrize(
    "variant, feature, decoder, args, total",
    [
        ("deeplab_largefov", "fc7", DeepLabV1, {}, 20_505_429),
        ("deeplab_7x7", "fc7", DeepLabV1, {}, 134_346_581),
        ("deeplab_4x4", "fc7", DeepLabV1, {}, 65_140_565),
        ("deeplab", "pool5", DeepLabV2, {"hidden": 1024}, 37_877_652),
    ],
)
def test_with_vgg_it_has_the_papers_parameters_and_321_pixels_give_41_scores(variant, feature, decoder, args, total):
    with torch.device("meta"):
        encoder = VGG(norm=None, **VGG_VARIANTS[variant])
        head = decoder({feature: encoder.specs[feature]}, 21, norm=None, **args)
        logits = head(encoder(torch.randn(1, 3, 321, 321)))["logits"]
    assert sum(p.numel() for m in (encoder, head) for p in m.parameters()) == total
    assert logits.shape == (1, 21, 41, 41)
