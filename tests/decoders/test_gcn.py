"""GCN: its large kernels, refinements and upsampling."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from seg_ext.decoders import GCN
from seg_ext.decoders.gcn import BoundaryRefinement, GlobalConv, Up
from seg_ext.layers import FeatureSpec

SPECS = {f"res{i}": FeatureSpec(3 * i, 2**i) for i in (2, 3, 4, 5)}


@pytest.mark.parametrize("kernel_size", [1, 3, 7])
def test_a_global_convolution_is_one_dense_kernel(kernel_size):
    conv = GlobalConv(3, 2, kernel_size=kernel_size)
    for layer in (*conv.tall_wide, *conv.wide_tall):
        nn.init.zeros_(layer.bias)
    tall, wide = (layer.weight.squeeze((2, 3)) if kernel_size == 1 else layer.weight for layer in conv.tall_wide)
    if kernel_size == 1:
        dense = wide @ tall + conv.wide_tall[1].weight[..., 0, 0] @ conv.wide_tall[0].weight[..., 0, 0]
        dense = dense[..., None, None]
    else:
        dense = torch.einsum("mcy,omx->ocyx", tall[..., 0], wide[..., 0, :])
        second = conv.wide_tall[1].weight[..., 0], conv.wide_tall[0].weight[..., 0, :]
        dense = dense + torch.einsum("omy,mcx->ocyx", *second)
    x = torch.randn(2, 3, 9, 12)
    torch.testing.assert_close(conv(x), F.conv2d(x, dense, padding=kernel_size // 2), atol=1e-5, rtol=1e-5)


def test_refinement_with_a_zero_second_convolution_is_the_identity():
    refinement, x = BoundaryRefinement(4), torch.randn(2, 4, 5, 6)
    nn.init.zeros_(refinement.conv2.weight)
    nn.init.zeros_(refinement.conv2.bias)
    assert torch.equal(refinement(x), x)


def test_nine_refinements_from_strides_4_to_32_to_stride_1(make_features):
    decoder = GCN(SPECS, 3, kernel_size=3)
    assert sum(isinstance(module, BoundaryRefinement) for module in decoder.modules()) == 9
    assert decoder.out_stride == 1
    assert decoder(make_features(SPECS, 64, 96))["logits"].shape == (2, 3, 64, 96)


def test_the_network_written_out(make_features):
    decoder = GCN(SPECS, 3, kernel_size=5)
    features = make_features(SPECS, 64, 96)
    scores = {name: decoder.scores[name][1](decoder.scores[name][0](x)) for name, x in features.items()}
    x, refine = scores["res5"], iter(decoder.refine)
    for name in ("res4", "res3", "res2", None, None):
        x = F.interpolate(x, scale_factor=2, mode="bilinear")
        x = next(refine)(x if name is None else x + scores[name])
    torch.testing.assert_close(decoder(features)["logits"], x)


@pytest.mark.parametrize("factor", [2, 4])
def test_a_learned_upsampling_starts_as_bilinear_interpolation_inside(factor):
    up, x = Up(3, factor, up="transpose"), torch.randn(1, 3, 6, 7)
    out = up(x)
    assert up.conv.weight.requires_grad and up.conv.weight.shape == (3, 3, 2 * factor, 2 * factor)
    assert out.shape == (1, 3, 6 * factor, 7 * factor)
    inside = slice(factor, -factor)
    expected = F.interpolate(x, scale_factor=factor, mode="bilinear")
    torch.testing.assert_close(out[..., inside, inside], expected[..., inside, inside])


def test_final_ups_set_the_out_stride(make_features):
    decoder = GCN(SPECS, 3, kernel_size=3, final_ups=0, up="transpose")
    assert decoder.out_stride == 4
    assert decoder(make_features(SPECS, 70, 100))["logits"].shape == (2, 3, 18, 25)
