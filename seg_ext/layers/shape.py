"""What a feature map is (channels, stride, offset), and resizing a map to a given size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class FeatureSpec:
    """Channels and grid of a feature map (N, channels, h, w).

    Cell (i, j) stands for the input rows offset + i * stride up to offset + (i + 1) * stride, columns with j alike; its
    centre is pixel offset + i * stride + (stride - 1) / 2. A map that was padded by half a kernel everywhere has
    offset 0. VGG with 100 pixels of padding has offset -99 after its pools and -3 after the unpadded 7x7 fc6.
    """

    channels: int
    stride: int
    offset: int = 0

    def __post_init__(self) -> None:
        """Refuse an empty map."""
        if self.channels < 1 or self.stride < 1:
            raise ValueError(f"FeatureSpec takes channels >= 1 and stride >= 1, not {self.channels} and {self.stride}")


def exporting() -> bool:
    """Whether a graph is captured, which must hold at every size."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing()


def resize_to(x: Tensor, size: Sequence[int], *, mode: str = "bilinear", align_corners: bool | None = False) -> Tensor:
    """Resize x (N, C, h, w) to (N, C, *size), size in cells (height, width); x itself when it has that size.

    Args:
        x: floating point map.
        size: (height, width), as in `skip.shape[-2:]`.
        mode: any mode of `torch.nn.functional.interpolate`; `align_corners` is not read by "nearest" and "area".
        align_corners: False puts cell centres on half-integers; True matches the corner cells (PSPNet's released code).

    Raises:
        ValueError: size is not two numbers.
    """
    if len(size) != 2:
        raise ValueError(f"resize_to takes size (height, width), not {tuple(size)}")
    if not exporting() and tuple(x.shape[-2:]) == tuple(size):  # a graph keeps the resize, which is exact
        return x
    corners = align_corners if mode in ("linear", "bilinear", "bicubic", "trilinear") else None
    return F.interpolate(x, size=tuple(size), mode=mode, align_corners=corners)
