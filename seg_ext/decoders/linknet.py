"""LinkNet: blocks of a fourth of the width between added skips (Chaurasia and Culurciello, 2017), in smp's form."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise, zip_longest

import torch.nn.functional as F
from torch import Tensor, nn

from seg_ext.layers import ConvNormAct, FeatureSpec, Norm, score_layer

from .contract import check_features, check_sizes


class _Block(nn.Module):
    """1x1 to a fourth, transposed 4x4 that doubles the size, 1x1: (N, C, h, w) -> (N, C', 2h, 2w)."""

    def __init__(self, in_channels: int, out_channels: int, *, norm: Norm | None) -> None:
        super().__init__()
        width = max(in_channels // 4, 1)
        self.reduce = ConvNormAct(in_channels, width, kernel_size=1, norm=norm)
        self.up = ConvNormAct(width, width, kernel_size=1, norm=norm)
        self.up.conv = nn.ConvTranspose2d(width, width, 4, stride=2, padding=1)  # type: ignore[assignment]
        self.expand = ConvNormAct(width, out_channels, kernel_size=1, norm=norm)

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        """(N, C, h, w), (N, C', h', w') -> (N, C', h', w'), h' being 2h or one less or more; without skip 2h."""
        x = self.expand(self.up(self.reduce(x)))
        if skip is None:
            return x
        x = F.pad(x, (0, 1, 0, 1), mode="replicate")  # for encoders that round sizes down
        return x[..., : skip.shape[-2], : skip.shape[-1]] + skip


class LinkNet(nn.Module):
    """From the deepest feature up: double, add the next shallower feature; one block more, then the classifier."""

    def __init__(
        self, in_features: dict[str, FeatureSpec], num_classes: int, *, norm: Norm | None, channels: int = 32
    ) -> None:
        """Build one block a feature.

        Args:
            in_features: one or more, each stride twice the one before, the first even.
            num_classes: K.
            norm: from channels to a layer, or None.
            channels: width of the last block, which joins nothing.

        Raises:
            ValueError: an argument outside what is said here.
        """
        super().__init__()
        check_features("LinkNet", in_features, num_classes)
        check_sizes("LinkNet", "channels", (channels,))
        names, specs = list(in_features)[::-1], list(in_features.values())[::-1]
        strides = [spec.stride for spec in specs]
        if strides[-1] % 2 or any(deep != 2 * shallow for deep, shallow in pairwise(strides)):
            raise ValueError(f"LinkNet takes even strides, each twice the one before, not {strides[::-1]}")
        self.names = names
        self.out_stride = strides[-1] // 2
        widths = [*(spec.channels for spec in specs), channels]
        self.blocks = nn.ModuleList(_Block(a, b, norm=norm) for a, b in pairwise(widths))
        self.score = score_layer(channels, num_classes)

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{name: (N, C, H/s, W/s)} -> {"logits": (N, K, H/out_stride, W/out_stride)}."""
        x = features[self.names[0]]
        for block, name in zip_longest(self.blocks, self.names[1:]):
            x = block(x, None if name is None else features[name])
        return {"logits": self.score(x)}
