"""Transposed convolution that starts as bilinear interpolation (Long et al., FCN, 2015, section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def bilinear_kernel(kernel_size: int) -> Tensor:
    """The (k, k) kernel with which a transposed convolution of stride (k + 1) // 2 interpolates bilinearly."""
    factor = (kernel_size + 1) // 2
    position = torch.arange(kernel_size, dtype=torch.float32)
    line = 1 - (position - (kernel_size - 1) / 2).abs() / factor
    return torch.outer(line, line)


def bilinear_transposed_conv(channels: int, factor: int, *, learn: bool) -> nn.ConvTranspose2d:
    """Upsampling by `factor`: (N, C, h, w) -> (N, C, (h + 1) * factor, (w + 1) * factor).

    As in FCN's released nets the kernel is full, (C, C, 2 * factor, 2 * factor), bilinear from each channel to itself
    and zero across, without bias or padding. Output cell o lies at input cell (o + 0.5) / factor - 1: the map grows by
    half an input cell on every side, where it fades to 0.

    Args:
        channels: C.
        factor: an even number; odd ones would put the output half a cell off.
        learn: False keeps the kernel a parameter without gradient.

    Raises:
        ValueError: an odd factor.
    """
    if factor < 2 or factor % 2:
        raise ValueError(f"bilinear_transposed_conv takes an even factor, not {factor}")
    conv = nn.ConvTranspose2d(channels, channels, 2 * factor, stride=factor, bias=False)
    with torch.no_grad():
        nn.init.zeros_(conv.weight)
        conv.weight[range(channels), range(channels)] = bilinear_kernel(2 * factor)
    return conv.requires_grad_(learn)
