"""PSPNet: its pooling against torch's, and its auxiliary head."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from seg_ext.decoders import PSPNet
from seg_ext.decoders.pspnet import PyramidPooling, averaging_matrix
from seg_ext.layers import FeatureSpec, group_norm

SPECS = {"res4": FeatureSpec(16, 8), "res5": FeatureSpec(32, 8)}


@given(st.integers(1, 12), st.integers(1, 80), st.integers(1, 80))
@settings(deadline=None)
def test_averaging_matrices_are_adaptive_average_pooling(bins, height, width):
    x = torch.randn(1, 2, height, width)
    pooled = averaging_matrix(bins, height, x) @ x @ averaging_matrix(bins, width, x).mT
    torch.testing.assert_close(pooled, F.adaptive_avg_pool2d(x, bins), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("size", [(60, 60), (13, 12), (2, 3)])
def test_the_pyramid_equals_the_one_written_with_adaptive_pooling(size, align_corners):
    pyramid = PyramidPooling(32, bins=(1, 2, 3, 6), norm=group_norm, align_corners=align_corners)
    x = torch.randn(2, 32, *size)
    expected = [x]
    for bins, projection in zip((1, 2, 3, 6), pyramid.projections, strict=True):
        pooled = projection(F.adaptive_avg_pool2d(x, bins))
        expected.append(F.interpolate(pooled, size, mode="bilinear", align_corners=align_corners))
    torch.testing.assert_close(pyramid(x), torch.cat(expected, dim=1), atol=1e-5, rtol=1e-4)
    assert pyramid.out_channels == 64


def test_pooling_matrices_take_the_precision_of_the_map():
    assert averaging_matrix(3, 7, torch.zeros(1, dtype=torch.float64)).dtype == torch.float64


def test_the_auxiliary_head_reads_the_second_deepest_feature_by_default(make_features):
    specs = {"res2": FeatureSpec(8, 4), **SPECS}
    assert set(PSPNet(specs, 3, norm=group_norm, channels=8)(make_features(specs, 64, 64))) == {"logits", "aux_res4"}
    named = PSPNet(specs, 3, norm=group_norm, channels=8, aux="res2")(make_features(specs, 64, 64))
    assert named["aux_res2"].shape == (2, 3, 16, 16)


@pytest.mark.parametrize("off", [None, False])
def test_no_auxiliary_head_leaves_no_parameters_behind(off):
    decoder = PSPNet(SPECS, 3, norm=group_norm, channels=8, aux=off)
    assert not [name for name, _ in decoder.named_parameters() if name.startswith("aux")]


def test_an_uneven_number_of_bins_still_joins(make_features):
    decoder = PSPNet(SPECS, 3, norm=nn.BatchNorm2d, bins=(1, 4, 8), channels=8, aux=None)
    assert decoder.pyramid.out_channels == 32 + 3 * 10
    assert decoder(make_features(SPECS, 64, 64))["logits"].shape == (2, 3, 8, 8)
