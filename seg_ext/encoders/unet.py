"""U-Net's contracting path (Ronneberger et al., 2015), with valid or padded convolutions."""

from __future__ import annotations

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor, nn

from seg_ext.layers import ConvNormAct, FeatureSpec, Norm, he_fan_in

from .contract import Encoder, mirror_pad, smallest_side

DROPOUTS = ("deep levels", "convs")


class UNetEncoder(Encoder):
    """Levels of two 3x3 convolutions, 2x2 max pools between them, channels doubling: "level1" (stride 1), "level2" ...

    Beside the four-level expanding path of `UNet` without padding it makes the original net: 572 pixels in, 388 out.
    Weights start normal with std sqrt(2 / fan_in) (section 3), less where dropout follows every convolution.
    """

    def __init__(
        self,
        in_channels: int = 3,
        *,
        norm: Norm | None,
        width: int = 64,
        depth: int = 5,
        valid: bool = False,
        mirror: bool = False,
        bias: bool = False,
        dropout: float = 0.5,
        dropout_after: str = "deep levels",
    ) -> None:
        """Build the levels.

        Args:
            in_channels: C of the image.
            norm: from channels to a layer, or None.
            width: channels of level1.
            depth: number of levels.
            valid: no padding in the convolutions; each takes a pixel of its level off every side.
            mirror: with `valid`, mirror the image's borders as far as the whole net eats them (92 pixels of depth 5),
                so that an expanding path of two valid convolutions a level gives the image from offset 0; the far
                ends grow until every pool meets an even size.
            bias: a bias in the convolutions before a norm too (UNet 3+); without norm they always have one.
            dropout: probability, 0.5 in public code.
            dropout_after: "deep levels", the last two (U-Net), or "convs", every convolution (U-Net++).

        Raises:
            ValueError: an argument outside what is said here.
        """
        super().__init__()
        if depth < 1 or width < 1 or not 0 <= dropout < 1 or (mirror and not valid):
            raise ValueError(
                "UNetEncoder takes depth and width >= 1, 0 <= dropout < 1 and mirror only with valid, "
                f"not {depth}, {width}, {dropout} and mirror={mirror}, valid={valid}"
            )
        if dropout_after not in DROPOUTS:
            raise ValueError(f"UNetEncoder takes dropout_after of {list(DROPOUTS)}, not {dropout_after!r}")
        self.in_channels = in_channels
        self.levels = nn.ModuleDict()
        self.dropout = nn.Dropout(dropout)
        self.drops_every_conv = dropout_after == "convs"
        self.specs = {}
        self.margin = 2 * (2**depth - 1) + 2 * (2 ** (depth - 1) - 1) if mirror else 0
        self.stride = 2 ** (depth - 1)
        padding = 0 if valid else 1
        channels, offset, steps = in_channels, -self.margin, []
        for level in range(1, depth + 1):
            out, stride = width * 2 ** (level - 1), 2 ** (level - 1)
            blocks = [
                ConvNormAct(width_in, out, padding=padding, bias=bias or norm is None, norm=norm)
                for width_in in (channels, out)
            ]
            for block in blocks:
                he_fan_in(block.conv, dropout=dropout if self.drops_every_conv else 0.0)
            self.levels[f"level{level}"] = nn.Sequential(*blocks)
            offset += 2 * stride if valid else 0
            steps += [(2, 0)] * (level > 1) + [(1, 4 if valid else 0)]
            self.specs[f"level{level}"] = FeatureSpec(out, stride, offset)
            channels = out
        self.smallest = 1 if mirror else smallest_side(steps)

    def walk(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield every map of the image x (N, C, H, W) with its name."""
        if self.margin:
            even = 4 * (self.stride - 1) - 2 * self.margin  # the sizes H for which every pool meets an even size
            x = mirror_pad(x, self.margin, more=[(even - side) % self.stride for side in x.shape[-2:]])
        for level, (name, convs) in enumerate(self.levels.items(), start=1):
            x = x if level == 1 else F.max_pool2d(x, 2)
            for conv in convs.children():
                x = self.dropout(conv(x)) if self.drops_every_conv else conv(x)
            deep = not self.drops_every_conv and level > len(self.levels) - 2
            x = self.dropout(x) if deep else x
            yield name, x
