"""SegNet: unpooling, the mirror of VGG, dropout, and what it refuses."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from seg_ext.decoders import SegNet, SegNetBasic
from seg_ext.decoders.segnet import unpool
from seg_ext.encoders.vgg import VGG, VGG_VARIANTS
from seg_ext.layers import FeatureSpec, group_norm

WIDTHS = (4, 6, 8)
SPECS = {"conv1": FeatureSpec(4, 1), **{f"pool{i}_indices": FeatureSpec(w, 2**i) for i, w in enumerate(WIDTHS, 1)}}
SPECS["pool3"] = FeatureSpec(8, 8)
BOTH = [(SegNet, {"convs": (2, 2, 3)}), (SegNetBasic, {})]
sides = st.integers(1, 23)


@given(height=sides, width=sides, ceil=st.booleans())
def test_unpooling_a_pooled_map_keeps_the_maxima_and_zeroes_the_rest(height, width, ceil):
    if not ceil and min(height, width) < 2:
        return
    x = torch.randn(2, 3, height, width)
    pooled, indices = F.max_pool2d(x, 2, ceil_mode=ceil, return_indices=True)
    back = unpool(pooled, indices, (height, width))
    kept = torch.zeros(2, 3, height * width, dtype=torch.bool).scatter(2, indices.flatten(2), True).view_as(x)
    assert kept.sum() == pooled.numel()
    assert torch.equal(back[kept], x[kept]) and not back[~kept].any()


def test_unpooling_equals_torchs():
    pooled, indices = F.max_pool2d(torch.randn(2, 3, 9, 12), 2, return_indices=True)
    assert torch.equal(unpool(pooled, indices, (9, 12)), F.max_unpool2d(pooled, indices, 2, output_size=(9, 12)))


def test_the_gradient_of_unpooling_returns_to_the_maxima_alone():
    x = torch.randn(1, 1, 4, 4, dtype=torch.double, requires_grad=True)
    pooled, indices = F.max_pool2d(x, 2, return_indices=True)
    weight = torch.randn(1, 1, 4, 4, dtype=torch.double)
    (unpool(pooled, indices, (4, 4)) * weight).sum().backward()
    assert torch.equal(x.grad, torch.where(unpool(pooled.detach(), indices, (4, 4)) != 0, weight, 0))


def encode(image, convs):
    """Features of an encoder whose poolings round up."""
    out, x = {"conv1": convs[0](image)}, convs[0](image)
    for level, conv in enumerate([*convs[1:], None], 1):
        x, out[f"pool{level}_indices"] = F.max_pool2d(x, 2, ceil_mode=True, return_indices=True)
        out[f"pool{level}"] = x
        x = conv(x) if conv is not None else x
    return out


@pytest.mark.parametrize("decoder, args", BOTH)
@pytest.mark.parametrize("size", [(1, 1), (24, 40), (45, 23)], ids=str)
def test_the_logits_have_the_images_size(decoder, args, size):
    convs = [nn.Conv2d(a, b, 3, padding=1) for a, b in zip((3, *WIDTHS), WIDTHS, strict=False)]
    logits = decoder(SPECS, 1, norm=group_norm, **args)(encode(torch.randn(2, 3, *size), convs))["logits"]
    assert logits.shape == (2, 1, *size)


def test_the_indices_decide_where_things_are():
    convs = [nn.Conv2d(a, b, 3, padding=1) for a, b in zip((3, *WIDTHS), WIDTHS, strict=False)]
    features = encode(torch.randn(1, 3, 16, 16), convs)
    decoder = SegNet(SPECS, 3, norm=None, convs=(2, 2, 3)).eval()
    other = {**features, "pool1_indices": encode(torch.randn(1, 3, 16, 16), convs)["pool1_indices"]}
    assert not torch.equal(decoder(features)["logits"], decoder(other)["logits"])


def vgg(levels=5, widths=(64, 128, 256, 512, 512)):
    specs = {f"pool{i}_indices": FeatureSpec(widths[i - 1], 2**i) for i in range(1, levels + 1)}
    return {"image": FeatureSpec(3, 1), **specs, f"pool{levels}": specs[f"pool{levels}_indices"]}


def test_on_vgg_the_convolutions_are_the_encoders_in_reverse():
    with torch.device("meta"):
        decoder = SegNet(vgg(), 11, norm=nn.BatchNorm2d)
    convs = [m for m in decoder.modules() if isinstance(m, nn.Conv2d)]
    widths = [512, 512, 512, 512, 512, 256, 256, 256, 128, 128, 64, 64, 11]
    assert [conv.out_channels for conv in convs] == widths
    assert all(conv.bias is not None and conv.kernel_size == (3, 3) for conv in convs)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in decoder.modules()) == 12


def test_basic_has_no_relu_and_no_bias_before_the_classifier():
    with torch.device("meta"):
        decoder = SegNetBasic(vgg(4, [64] * 4), 11, norm=nn.BatchNorm2d)
    convs = [m for m in decoder.modules() if isinstance(m, nn.Conv2d)]
    assert [conv.kernel_size for conv in convs] == [(7, 7)] * 4 + [(1, 1)]
    assert [conv.bias is None for conv in convs] == [True] * 4 + [False]
    assert not any(isinstance(m, nn.ReLU) for m in decoder.modules())


@pytest.mark.parametrize(
    "decoder, specs, places",
    [(SegNet, vgg(), [0, 1, 2]), (SegNetBasic, vgg(4, [64] * 4), [0, 1])],
)
def test_bayesian_dropout_ends_the_stages_from_the_third_pooling_on_and_costs_no_parameter(decoder, specs, places):
    with torch.device("meta"):
        plain, bayesian = (decoder(specs, 11, norm=nn.BatchNorm2d, dropout=p) for p in (0.0, 0.5))
    ends = [stage[-1] for stage in bayesian.stages]
    assert [i for i, end in enumerate(ends) if isinstance(end, nn.Dropout) and end.p == 0.5] == places
    assert sum(isinstance(m, nn.Dropout) for m in bayesian.modules()) == len(places)
    assert {k: v.shape for k, v in plain.state_dict().items()} == {k: v.shape for k, v in bayesian.state_dict().items()}


def test_with_dropout_off_bayesian_segnet_is_segnet_and_on_it_varies(make_features):
    plain, bayesian = (SegNet(SPECS, 3, norm=None, convs=(2, 2, 3), dropout=p) for p in (0.0, 0.5))
    bayesian.load_state_dict(plain.state_dict())
    features = make_features(SPECS, 32, 32)
    torch.testing.assert_close(bayesian.eval()(features)["logits"], plain(features)["logits"])
    bayesian.train()
    assert not torch.equal(bayesian(features)["logits"], bayesian(features)["logits"])


@pytest.mark.parametrize(
    "decoder, variant, bias, total",
    [
        (SegNet, "segnet", {}, 29_449_355),
        (SegNet, "bayesian_segnet", {}, 29_449_355),
        (SegNetBasic, "segnet_basic", {"bias": False}, 1_416_075),
        (SegNetBasic, "segnet_basic", {"bias": True}, 1_416_587),
    ],
)
def test_with_its_encoder_it_has_the_papers_parameters_and_the_images_size(decoder, variant, bias, total):
    with torch.device("meta"):
        encoder = VGG(norm=nn.BatchNorm2d, **{**VGG_VARIANTS[variant], **bias})
        indices = [name for name in encoder.specs if name.endswith("_indices")]
        names = ["conv1", *indices, indices[-1].removesuffix("_indices")]
        head = decoder({name: encoder.specs[name] for name in names}, 11, norm=nn.BatchNorm2d, **bias)
        logits = head(encoder(torch.randn(1, 3, 361, 480)))["logits"]
    assert sum(p.numel() for m in (encoder, head) for p in m.parameters()) == total
    assert logits.shape == (1, 11, 361, 480)
