"""ConvNormAct, SeparableConv and the heads built from them."""

from math import sqrt

import pytest
import torch
from torch import nn
from torchvision.models.segmentation.fcn import FCNHead

from seg_ext.layers import ConvNormAct, SeparableConv, conv_head, group_norm, he_fan_in, score_layer


def test_the_convolution_has_a_bias_only_without_norm():
    assert ConvNormAct(3, 4, norm=nn.BatchNorm2d).conv.bias is None
    assert ConvNormAct(3, 4, norm=None).conv.bias is not None


@pytest.mark.parametrize("kernel_size, dilation", [(1, 1), (3, 1), (3, 6), (7, 1), (5, 2)])
def test_stride_one_keeps_the_size(kernel_size, dilation):
    layer = ConvNormAct(2, 4, kernel_size=kernel_size, dilation=dilation, norm=None)
    assert layer(torch.randn(1, 2, 9, 12)).shape == (1, 4, 9, 12)


def test_padding_zero_is_a_valid_convolution():
    assert ConvNormAct(2, 4, padding=0, norm=None)(torch.randn(1, 2, 9, 12)).shape == (1, 4, 7, 10)


def test_no_activation_lets_negative_values_through():
    x = torch.randn(1, 2, 8, 8)
    assert ConvNormAct(2, 4, norm=None, act=None)(x).min() < 0 <= ConvNormAct(2, 4, norm=None)(x).min()


@pytest.mark.parametrize("groups", [1, 64])
def test_weights_are_he_normal_by_the_fan_out_of_a_group(groups):
    torch.manual_seed(0)
    weight = ConvNormAct(64, 128, groups=groups, norm=None).conv.weight
    assert weight.std().item() == pytest.approx(sqrt(2 / (9 * 128 / groups)), rel=0.1)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_hes_fan_in_keeps_the_second_moment_of_maps_through_relu_and_dropout(dropout):
    torch.manual_seed(0)
    layer = ConvNormAct(96, 32, norm=None)
    he_fan_in(layer.conv, dropout=dropout)
    x = torch.nn.functional.dropout(layer(torch.randn(2, 96, 32, 32)), dropout)
    assert x.square().mean().item() == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.SyncBatchNorm])
def test_training_batch_norm_on_one_value_per_channel_is_refused_in_one_line(norm):
    layer = ConvNormAct(3, 4, kernel_size=1, norm=norm)
    with pytest.raises(ValueError, match=r'one value per channel.*use NORM "GN" \(or eval-mode BN\)') as error:
        layer(torch.randn(1, 3, 1, 1))
    assert "\n" not in str(error.value)


def test_batch_norm_at_batch_two_or_in_eval_mode_and_group_norm_are_not_refused():
    assert ConvNormAct(3, 4, norm=nn.BatchNorm2d)(torch.randn(2, 3, 1, 1)).shape == (2, 4, 1, 1)
    assert ConvNormAct(3, 4, norm=nn.BatchNorm2d).eval()(torch.randn(1, 3, 1, 1)).shape == (1, 4, 1, 1)
    assert ConvNormAct(3, 4, norm=group_norm)(torch.randn(1, 3, 1, 1)).shape == (1, 4, 1, 1)


def test_batch_norm_synchronised_over_processes_is_not_refused(monkeypatch):
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)

    class Synced(nn.BatchNorm2d):
        def forward(self, x):
            return x

    assert ConvNormAct(3, 4, norm=Synced)(torch.randn(1, 3, 1, 1)).shape == (1, 4, 1, 1)
    with pytest.raises(ValueError, match="one value per channel"):
        ConvNormAct(3, 4, norm=nn.BatchNorm2d)(torch.randn(1, 3, 1, 1))


def test_a_separable_convolution_mixes_no_channels_before_the_pointwise_one():
    layer = SeparableConv(4, 6, dilation=2, norm=nn.BatchNorm2d)
    assert layer.depthwise.conv.weight.shape == (4, 1, 3, 3)
    assert layer.pointwise.conv.weight.shape == (6, 4, 1, 1)
    assert sum(p.numel() for p in layer.parameters()) == 4 * 9 + 8 + 24 + 12
    assert layer(torch.randn(2, 4, 7, 5)).shape == (2, 6, 7, 5)


def test_a_separable_convolution_has_an_activation_after_both_parts_or_none():
    x = torch.randn(2, 4, 8, 8)
    assert SeparableConv(4, 6, norm=None).depthwise(x).min() >= 0
    linear = SeparableConv(4, 6, norm=None, act=None)
    torch.testing.assert_close(linear(-x), -linear(x))


def test_a_bare_depthwise_convolution_is_linear():
    layer = SeparableConv(4, 6, norm=nn.BatchNorm2d, bare_depthwise=True)
    assert sum(p.numel() for p in layer.parameters()) == 4 * 9 + 24 + 12
    x = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(layer.depthwise(-x), -layer.depthwise(x))


def test_score_layer_of_std_zero_scores_zero():
    assert not score_layer(8, 3, std=0)(torch.randn(1, 8, 2, 2)).any()
    assert score_layer(8, 3)(torch.randn(1, 8, 2, 2)).any()


def test_conv_head_equals_torchvisions_fcn_head():
    theirs = FCNHead(32, 5).eval()
    ours = conv_head(32, 5, channels=8, norm=nn.BatchNorm2d).eval()
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    x = torch.randn(2, 32, 6, 7)
    torch.testing.assert_close(ours(x), theirs(x))
    assert [m.p for m in ours if isinstance(m, nn.Dropout)] == [m.p for m in theirs if isinstance(m, nn.Dropout)]


@pytest.mark.parametrize(
    ("classes", "kernel_size", "std"), [(3, 1, 0.01), (21, 3, 0.01), (2, 1, 1 / 32), (1, 3, 1 / 96)]
)
def test_weights_of_one_or_two_classes_start_as_hes_and_of_more_at_a_hundredth(classes, kernel_size, std):
    layer = score_layer(2048, classes, kernel_size=kernel_size)
    assert layer.weight.std().item() == pytest.approx(std, rel=0.1)
    assert not layer.bias.any()
