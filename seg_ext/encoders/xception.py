"""Aligned Xception-41, -65 and -71 (Chollet, 2017; Chen et al., DeepLabv3+, 2018, figure 4), as in the released code.

The released code activates before each separable convolution and has none inside it; only the last block activates
after its depthwise and pointwise convolutions. The decoder's maps are taken before the third separable convolution.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from seg_ext.layers import ConvNormAct, FeatureSpec, Norm, SeparableConv

from .contract import Encoder

ENTRY: dict[int, tuple[tuple[int, int], ...]] = {  # channels and stride of the blocks of the entry flow, by depth
    41: ((128, 2), (256, 2), (728, 2)),
    65: ((128, 2), (256, 2), (728, 2)),
    71: ((128, 2), (256, 1), (256, 2), (728, 1), (728, 2)),
}
MIDDLE = {41: 8, 65: 16, 71: 16}


class Block(nn.Module):
    """Three separable convolutions, activated before each, beside a shortcut: (N, C, H, W) -> (N, C', h, w)."""

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int],
        *,
        stride: int = 1,
        dilation: int = 1,
        norm: Norm | None,
        shortcut: str,
    ) -> None:
        """Build the convolutions.

        Args:
            in_channels: C.
            channels: of the three convolutions.
            stride: of the third and of the shortcut.
            dilation: of all three.
            norm: from channels to a layer, or None.
            shortcut: "conv" (1x1, normalised), "sum" (identity) or "none", where the activations follow instead.
        """
        super().__init__()
        self.activates_first = shortcut != "none"
        self.convs = nn.ModuleList(
            SeparableConv(
                a,
                b,
                stride=stride if index == len(channels) - 1 else 1,
                dilation=dilation,
                norm=norm,
                act=None if self.activates_first else nn.ReLU,
            )
            for index, (a, b) in enumerate(pairwise((in_channels, *channels)))
        )
        self.shortcut: nn.Module | None = None
        if shortcut == "conv":
            self.shortcut = ConvNormAct(in_channels, channels[-1], kernel_size=1, stride=stride, norm=norm, act=None)
        elif shortcut == "sum":
            self.shortcut = nn.Identity()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) -> the block's output (N, C', h, w) and its second convolution's (N, C'', H, W)."""
        maps = [x]
        for conv in self.convs:
            maps.append(conv(F.relu(maps[-1]) if self.activates_first else maps[-1]))
        *_, second, last = maps
        return last if self.shortcut is None else last + self.shortcut(x), second


class Xception(Encoder):
    """Entry, middle and exit flow; the state dict does not depend on the output stride.

    Maps: "entry2" (256 channels, stride 4, DeepLabv3+'s low-level map), "entry3" (728, stride 8) and "exit1" (1024,
    stride 16), each the second separable convolution of the block that halves the size, and "exit" (2048); no stride
    exceeds the output stride. In Xception-71 the block of "entry2" is the entry flow's third, of "entry3" its fifth.
    """

    def __init__(
        self,
        in_channels: int = 3,
        *,
        norm: Norm | None,
        depth: int = 65,
        output_stride: int = 16,
        eps: float = 1e-3,
    ) -> None:
        """Build the net.

        Args:
            in_channels: C of the image.
            norm: from channels to a layer (BatchNorm in the released nets), or None.
            depth: 41, 65 or 71.
            output_stride: 8, 16 or 32: later strides become dilations.
            eps: of every norm, 1e-3 in the released nets.

        Raises:
            ValueError: another depth or output stride.
        """
        super().__init__()
        if depth not in ENTRY or output_stride not in (8, 16, 32):
            raise ValueError(
                f"Xception takes depth {sorted(ENTRY)} and output_stride 8, 16 or 32, not {depth} and {output_stride}"
            )
        self.in_channels = in_channels
        self.conv1 = ConvNormAct(in_channels, 32, stride=2, norm=norm)
        self.conv2 = ConvNormAct(32, 64, norm=norm)
        self.blocks = nn.ModuleDict()
        self.specs = {}
        self._taps: dict[str, str] = {}  # block -> name of its second convolution's map
        stride, dilation, channels = 2, 1, 64
        plan = [(f"entry{i}", (width,) * 3, step) for i, (width, step) in enumerate(ENTRY[depth], start=1)]
        plan += [(f"middle{i}", (728,) * 3, 1) for i in range(1, MIDDLE[depth] + 1)]
        plan += [("exit1", (728, 1024, 1024), 2), ("exit2", (1536, 1536, 2048), 1)]
        halvings = iter(("entry1", "entry2", "entry3", "exit1"))
        for name, widths, step in plan:
            if step == 2:
                tap = next(halvings)
                if tap != "entry1":
                    self._taps[name] = tap
                    self.specs[tap] = FeatureSpec(widths[1], stride)
            moves = step if stride * step <= output_stride else 1
            shortcut = "sum" if name.startswith("middle") else "none" if name == "exit2" else "conv"
            self.blocks[name] = Block(channels, widths, stride=moves, dilation=dilation, norm=norm, shortcut=shortcut)
            stride, dilation, channels = stride * moves, dilation * (step // moves), widths[-1]
        self.specs["exit"] = FeatureSpec(channels, stride)
        for module in self.modules():
            if hasattr(module, "eps"):
                module.eps = eps  # type: ignore[assignment]

    def walk(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield every map of the image x (N, C, H, W) with its name."""
        x = self.conv2(self.conv1(x))  # (N, 64, H/2, W/2)
        for name, block in self.blocks.items():
            x, second = block(x)
            if name in self._taps:
                yield self._taps[name], second
        yield "exit", x
