"""Atrous spatial pyramid pooling with image-level features (Chen et al., DeepLabv3, 2017, section 3.3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .conv import ConvNormAct
from .norm import Norm


class ASPP(nn.Module):
    """A 1x1 branch, a 3x3 one for each rate and the image mean, joined and projected: (N, C, h, w) -> (N, C', h, w)."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        rates: Sequence[int],
        norm: Norm | None,
        conv: Callable[..., nn.Module] = ConvNormAct,
        image_pooling: bool = True,
        dropout: float = 0.0,
    ) -> None:
        """Build the branches and the projection.

        Args:
            in_channels: C.
            channels: C', also the width of every branch.
            rates: dilation of each 3x3 branch, in cells.
            norm: from channels to a layer, or None.
            conv: makes the 3x3 branches; SeparableConv in DeepLabv3+.
            image_pooling: add the branch that pools the whole map, so that every cell sees the image.
            dropout: probability after the projection (0.1 in the released DeepLab code, 0.5 in torchvision's).

        Raises:
            ValueError: no rate, or one below 1; in forward, image pooling under training BatchNorm at batch 1.
        """
        super().__init__()
        if not rates or any(rate < 1 for rate in rates):
            raise ValueError(f"ASPP takes one or more rates >= 1, not {list(rates)}")
        self.point = ConvNormAct(in_channels, channels, kernel_size=1, norm=norm)
        self.atrous = nn.ModuleList(conv(in_channels, channels, dilation=rate, norm=norm) for rate in rates)
        self.image = ConvNormAct(in_channels, channels, kernel_size=1, norm=norm) if image_pooling else None
        width = channels * (1 + len(rates) + image_pooling)
        self.project = ConvNormAct(width, channels, kernel_size=1, norm=norm)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C', h, w)."""
        branches = [self.point(x), *(conv(x) for conv in self.atrous)]  # each (N, C', h, w)
        if self.image is not None:
            branches.append(self.image(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[-2:]))
        return self.dropout(self.project(torch.cat(branches, dim=1)))
