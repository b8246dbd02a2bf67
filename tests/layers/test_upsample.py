"""Bilinear kernels and the transposed convolutions that start from them."""

import pytest
import torch
import torch.nn.functional as F

from seg_ext.layers import bilinear_kernel, bilinear_transposed_conv


def test_the_kernel_of_size_four_is_the_known_one():
    line = torch.tensor([0.25, 0.75, 0.75, 0.25])
    torch.testing.assert_close(bilinear_kernel(4), torch.outer(line, line))


def test_the_kernel_of_an_odd_size_peaks_at_its_middle():
    torch.testing.assert_close(bilinear_kernel(3)[1], torch.tensor([0.5, 1, 0.5]))


@pytest.mark.parametrize("factor", [2, 4, 8, 32])
def test_inside_it_is_bilinear_interpolation_channel_by_channel(factor):
    x = torch.randn(2, 3, 4, 5)
    out = bilinear_transposed_conv(3, factor, learn=False)(x)
    assert out.shape == (2, 3, 5 * factor, 6 * factor)
    inside = slice(factor, -factor)  # half an input cell was added, and half a cell inside it the border fades
    expected = F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
    half = factor // 2
    torch.testing.assert_close(out[..., inside, inside], expected[..., half:-half, half:-half])


@pytest.mark.parametrize("learn", [False, True])
def test_the_full_kernel_is_a_parameter_that_trains_on_request(learn):
    (weight,) = bilinear_transposed_conv(21, 2, learn=learn).parameters()
    assert weight.shape == (21, 21, 4, 4) and weight.requires_grad is learn


@pytest.mark.parametrize("factor", [0, 1, 3])
def test_an_odd_factor_is_refused(factor):
    with pytest.raises(ValueError, match=f"even factor, not {factor}"):
        bilinear_transposed_conv(2, factor, learn=False)
