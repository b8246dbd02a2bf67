"""DeepLabv3 against torchvision's head, its counts with an encoder, and its cascaded form."""

import pytest
import torch
from torch import nn
from torchvision.models.segmentation.deeplabv3 import DeepLabHead, deeplabv3_resnet50

from seg_ext.decoders import DeepLabV3
from seg_ext.layers import FeatureSpec

R50 = {"res4": FeatureSpec(1024, 8), "res5": FeatureSpec(2048, 8)}
TORCHVISION = {"rates": (12, 24, 36), "dropout": 0.5, "head_conv": True}


def test_the_variant_equals_torchvisions_head_with_the_same_weights():
    theirs = DeepLabHead(24, 5).eval()
    for name, value in theirs.state_dict().items():
        if value.is_floating_point():
            value.uniform_(0.5, 1.5) if "running_var" in name else value.normal_(std=0.1)
    ours = DeepLabV3({"res5": FeatureSpec(24, 8)}, 5, norm=nn.BatchNorm2d, **TORCHVISION).eval()
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    x = torch.randn(2, 24, 40, 13)
    expected = theirs(x)
    assert expected.std() > 0.01
    torch.testing.assert_close(ours({"res5": x})["logits"], expected, atol=1e-5, rtol=1e-5)
    assert ours.aspp.dropout.p == theirs[0].project[-1].p == 0.5


@pytest.mark.parametrize("aux, total", [(None, 39_638_869), (True, 42_004_074)])
def test_with_torchvisions_backbone_it_has_torchvisions_parameters(aux, total):
    with torch.device("meta"):
        peer = deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=21, aux_loss=aux)
        ours = DeepLabV3(R50, 21, norm=nn.BatchNorm2d, aux=aux, **TORCHVISION)
    shapes = [v.shape for k, v in peer.state_dict().items() if not k.startswith("backbone")]
    assert [v.shape for v in ours.state_dict().values()] == shapes
    assert sum(p.numel() for m in (ours, peer.backbone) for p in m.parameters()) == total


def test_the_auxiliary_head_reads_its_own_feature_and_only_trains(make_features):
    specs = {"res4": FeatureSpec(8, 8), "res5": FeatureSpec(12, 16)}
    decoder = DeepLabV3(specs, 3, norm=None, channels=4, aux="res4")
    features = make_features(specs, 64, 64)
    assert decoder(features)["aux_res4"].shape == (2, 3, 8, 8)
    assert set(decoder.eval()(features)) == {"logits"}


def test_the_cascaded_form_is_a_score_layer_on_the_last_block(make_features):
    specs = {"res7": FeatureSpec(12, 16)}
    decoder = DeepLabV3(specs, 3, norm=nn.BatchNorm2d, rates=None)
    features = make_features(specs, 64, 64)
    assert [name for name, _ in decoder.named_parameters()] == ["score.weight", "score.bias"]
    assert torch.equal(decoder(features)["logits"], decoder.score(features["res7"]))


def test_without_image_pooling_batch_norm_trains_at_batch_one(make_features):
    specs = {"res5": FeatureSpec(12, 16)}
    decoder = DeepLabV3(specs, 3, norm=nn.BatchNorm2d, channels=4, image_pooling=False).train()
    assert decoder(make_features(specs, 64, 64, batch=1))["logits"].shape == (1, 3, 4, 4)
