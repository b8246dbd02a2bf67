"""U-Net's decoder against segmentation_models_pytorch's, and its choices."""

import pytest
import segmentation_models_pytorch as smp
import torch
from torch import nn

from seg_ext.decoders import UNet
from seg_ext.layers import FeatureSpec

STEPS = {f"e{i}": FeatureSpec(4 * 2**i, 2**i) for i in range(3)}


@pytest.mark.parametrize("backbone", ["resnet18", "resnet34"])
def test_unet_equals_segmentation_models_pytorch_with_the_same_weights(backbone):
    peer = smp.Unet(backbone, encoder_weights=None).eval()
    for value in peer.decoder.state_dict().values():
        if value.is_floating_point():
            value.uniform_(-0.1, 0.2)
    for name, value in peer.decoder.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2)
    with torch.no_grad():
        maps = peer.encoder(torch.randn(1, 3, 64, 96))
    features = dict(zip(("stem", "res2", "res3", "res4", "res5"), maps[1:], strict=True))
    specs = {name: FeatureSpec(x.shape[1], 64 // x.shape[2]) for name, x in features.items()}
    decoder = UNet(
        specs,
        1,
        norm=nn.BatchNorm2d,
        up="nearest",
        channels=(256, 128, 64, 32),
        extra_ups=(16,),
        skip_first=False,
    ).eval()
    decoder.score = nn.Identity()
    # blocks.0.conv1.0.weight -> blocks.0.convs.0.conv.weight, blocks.0.conv1.1.bias -> blocks.0.convs.0.norm.bias
    parts = {"conv1.0": "convs.0.conv", "conv1.1": "convs.0.norm", "conv2.0": "convs.1.conv", "conv2.1": "convs.1.norm"}
    renamed = {}
    for name, value in peer.decoder.state_dict().items():
        blocks, block, conv, layer, rest = name.split(".")
        renamed[f"{blocks}.{block}.{parts[f'{conv}.{layer}']}.{rest}"] = value
    decoder.load_state_dict(renamed)
    with torch.no_grad():
        torch.testing.assert_close(decoder(features)["logits"], peer.decoder(maps), atol=1e-5, rtol=1e-5)


def test_extra_levels_double_the_size_without_a_skip(make_features):
    specs = {name: STEPS[name] for name in ("e1", "e2")}
    decoder = UNet(specs, 3, norm=None, extra_ups=(5,))
    assert decoder.out_stride == 1 and decoder.blocks[-1].convs[0].conv.in_channels == 5
    assert decoder(make_features(specs, 32, 48))["logits"].shape == (2, 3, 32, 48)


def test_one_feature_is_enough_with_extra_levels(make_features):
    specs = {"e2": STEPS["e2"]}
    decoder = UNet(specs, 3, norm=None, up="bilinear", extra_ups=(8, 6))
    assert decoder(make_features(specs, 32, 48))["logits"].shape == (2, 3, 32, 48)


@pytest.mark.parametrize("skip_first", [True, False])
def test_the_encoders_feature_takes_its_place_in_the_concatenation(skip_first, make_features):
    specs = {name: STEPS[name] for name in ("e0", "e1")}
    decoder = UNet(specs, 2, norm=None, skip_first=skip_first, convs=1)
    weight = decoder.blocks[0].convs[0].conv.weight
    assert weight.shape[:2] == (4, 8)
    with torch.no_grad():
        weight[:, 4:] = 0
        features = make_features(specs, 8, 8)
        changed = {**features, "e0": features["e0"] + 1}
        same = torch.equal(decoder(features)["logits"], decoder(changed)["logits"])
    assert same is not skip_first


@pytest.mark.parametrize("up", ["transpose", "bilinear", "nearest"])
def test_a_shallower_and_a_deeper_map_of_any_sizes_meet(up):
    decoder = UNet({name: STEPS[name] for name in ("e0", "e1")}, 2, norm=None, up=up)
    for shallow, deep in ((9, 5), (9, 4), (8, 4), (1, 1)):
        out = decoder({"e0": torch.randn(1, 4, shallow, 9), "e1": torch.randn(1, 8, deep, 5)})
        assert out["logits"].shape == (1, 2, shallow, 9)


def test_the_transposed_convolution_has_a_bias_and_goes_to_the_width_of_the_level():
    up = UNet(STEPS, 2, norm=nn.BatchNorm2d).blocks[0].up
    assert up.weight.shape == (16, 8, 2, 2) and up.bias.shape == (8,)
