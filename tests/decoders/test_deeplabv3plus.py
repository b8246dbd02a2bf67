"""DeepLabv3+ against detectron2's head, and its dependence on both features."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.projects.deeplab import DeepLabV3PlusHead

from seg_ext.decoders import DeepLabV3Plus
from seg_ext.layers import FeatureSpec, SeparableConv

SPECS = {"res2": FeatureSpec(12, 4), "res5": FeatureSpec(20, 16)}


@pytest.mark.parametrize("size", [(64, 96), (65, 97)])
def test_deeplabv3plus_equals_detectron2s_head_with_the_same_weights(size, make_features):
    ours = DeepLabV3Plus(SPECS, 5, norm=None, rates=(1, 2, 3), channels=16, low_level_channels=6).eval()
    peer = DeepLabV3PlusHead(
        {name: ShapeSpec(channels=s.channels, stride=s.stride) for name, s in SPECS.items()},
        project_channels=[6],
        aspp_dilations=[1, 2, 3],
        aspp_dropout=0.1,
        decoder_channels=[16, 16],
        common_stride=4,
        norm="",
        train_size=None,
        num_classes=5,
    ).eval()
    for value in ours.state_dict().values():
        value.normal_(std=0.2)
    aspp = peer.decoder["res5"]["project_conv"]
    pairs = [
        (ours.aspp.point, aspp.convs[0]),
        *zip(ours.aspp.atrous, aspp.convs[1:4], strict=True),
        (ours.aspp.image, aspp.convs[4][1]),
        (ours.aspp.project, aspp.project),
        (ours.low_level, peer.decoder["res2"]["project_conv"]),
        *zip(ours.refine, peer.decoder["res2"]["fuse_conv"], strict=True),
    ]
    for mine, theirs in pairs:
        theirs.load_state_dict(mine.conv.state_dict())
    joined = ours.refine[0].conv.weight.data
    peer.decoder["res2"]["fuse_conv"][0].weight.data = torch.cat((joined[:, 16:], joined[:, :16]), dim=1)
    peer.predictor.load_state_dict(ours.score.state_dict())
    features = make_features(SPECS, *size)
    torch.testing.assert_close(ours(features)["logits"], peer.layers(features), atol=1e-5, rtol=1e-5)


def test_separable_makes_every_3x3_convolution_separable():
    decoder = DeepLabV3Plus(SPECS, 5, norm=None, separable=True)
    assert all(isinstance(conv, SeparableConv) for conv in (*decoder.aspp.atrous, *decoder.refine))


def test_the_rates_are_the_dilations():
    decoder = DeepLabV3Plus(SPECS, 5, norm=None, rates=(12, 24, 36))
    assert [branch.conv.dilation for branch in decoder.aspp.atrous] == [(12, 12), (24, 24), (36, 36)]


def test_without_image_pooling_there_is_one_branch_less_and_batch_norm_trains_at_batch_one(make_features):
    decoder = DeepLabV3Plus(SPECS, 5, norm=torch.nn.BatchNorm2d, channels=8, image_pooling=False).train()
    assert decoder.aspp.project.conv.in_channels == 4 * 8
    assert decoder(make_features(SPECS, 64, 64, batch=1))["logits"].shape == (1, 5, 16, 16)
