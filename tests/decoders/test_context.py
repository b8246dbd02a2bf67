"""The context module: identity at first, its receptive field, padding and counts."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from seg_ext.decoders import DilatedContext
from seg_ext.decoders.context import ContextModule
from seg_ext.encoders.vgg import VGG, VGG_VARIANTS
from seg_ext.layers import FeatureSpec

DILATION10 = (1, 1, 2, 4, 8, 16, 32, 64, 1)


@pytest.mark.parametrize("pad_layers", [False, True])
@pytest.mark.parametrize("classes", [1, 21])
def test_the_basic_module_starts_as_relu_exactly(classes, pad_layers):
    x = torch.randn(1, classes, 9, 12)
    assert torch.equal(ContextModule(classes, pad_layers=pad_layers)(x), x.relu())


def test_the_large_module_without_noise_starts_as_relu_and_with_it_nearly():
    x = torch.randn(1, 3, 9, 12)
    torch.testing.assert_close(ContextModule(3, large=True, std=0)(x), x.relu())
    torch.manual_seed(0)
    off = (ContextModule(3, large=True, std=1e-4)(x) - x.relu()).abs().mean()
    assert 0 < off < 0.05


def test_the_noise_is_smaller_in_wider_layers():
    torch.manual_seed(0)
    for layer, factor in zip(list(ContextModule(5, large=True))[:-1], (2, 2, 4, 8, 16, 32, 32), strict=True):
        corner = layer.conv.weight[..., 0, 0]
        assert corner.std().item() == pytest.approx(0.01 / factor, rel=0.25)


@pytest.mark.parametrize("large, dilations, field", [(False, None, 67), (True, None, 67), (False, DILATION10, 259)])
def test_the_receptive_field_is_the_papers(large, dilations, field):
    module = ContextModule(1, large=large, **({"dilations": dilations} if dilations else {}))
    for parameter in module.parameters():
        nn.init.constant_(parameter, 0.1)
    side = field + 8
    x = torch.ones(1, 1, side, side, requires_grad=True)
    module(x)[0, 0, side // 2, side // 2].backward()
    rows = x.grad[0, 0].any(1).nonzero().flatten()
    columns = x.grad[0, 0].any(0).nonzero().flatten()
    assert rows[-1] - rows[0] + 1 == columns[-1] - columns[0] + 1 == field
    assert rows[0] + rows[-1] == 2 * (side // 2)


def test_padding_is_33_zeros_once_and_then_valid_convolutions():
    module = ContextModule(2)
    for parameter in module.parameters():
        nn.init.uniform_(parameter, 0, 0.1)
    x = torch.rand(1, 2, 7, 5)
    y = F.pad(x, (33, 33, 33, 33))
    for layer, dilation in zip(list(module)[:-1], (1, 1, 2, 4, 8, 16, 1), strict=True):
        y = F.conv2d(y, layer.conv.weight, layer.conv.bias, dilation=dilation).relu()
    torch.testing.assert_close(module(x), module[-1](y))


def test_padding_every_layer_changes_only_cells_near_the_border():
    once, layers = ContextModule(1, dilations=(1, 1, 2)), ContextModule(1, dilations=(1, 1, 2), pad_layers=True)
    for parameter in once.parameters():
        nn.init.uniform_(parameter, 0, 0.1)
    layers.load_state_dict(once.state_dict())
    x = torch.rand(1, 1, 20, 20)
    a, b = once(x), layers(x)
    torch.testing.assert_close(a[..., 4:-4, 4:-4], b[..., 4:-4, 4:-4])
    assert (a - b).abs()[..., 0, 0] > 1e-4


@pytest.mark.parametrize("large, count", [(False, 28_392), (True, 6_803_139)])
def test_the_modules_parameters_for_21_classes(large, count):
    assert sum(p.numel() for p in ContextModule(21, large=large).parameters()) == count


def test_the_decoder_starts_as_the_front_ends_positive_scores(make_features):
    specs = {"fc7": FeatureSpec(16, 8)}
    decoder = DilatedContext(specs, 3)
    features = make_features(specs, 64, 48)
    assert torch.equal(decoder(features)["logits"], decoder.score(features["fc7"]).relu())
    assert decoder.out_stride == 8


def test_with_the_front_end_it_has_the_papers_parameters_and_528_pixels_give_66_scores():
    with torch.device("meta"):
        encoder = VGG(norm=None, **VGG_VARIANTS["dilated"])
        decoder = DilatedContext({"fc7": encoder.specs["fc7"]}, 21)
        logits = decoder(encoder(torch.randn(1, 3, 528, 400)))["logits"]
    assert sum(p.numel() for p in encoder.parameters()) + 21 * 4097 == 134_346_581
    assert sum(p.numel() for m in (encoder, decoder) for p in m.parameters()) == 134_346_581 + 28_392
    assert logits.shape == (1, 21, 66, 50)
