"""What every encoder is: maps by name, shallow to deep, each with a FeatureSpec; and mirrored borders."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor, nn

from seg_ext.layers import FeatureSpec


class Encoder(nn.Module, ABC):
    """Base of the encoders; a subclass sets the attributes and writes `walk`.

    Attributes:
        in_channels: channels of the image.
        specs: every map that `walk` gives, in its order.
        smallest: fewest pixels a side that leave one cell in every map.
    """

    in_channels: int
    specs: dict[str, FeatureSpec]
    smallest: int = 1

    @abstractmethod
    def walk(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield every map of the image x (N, C, H, W) with its name, as soon as it is computed."""

    def forward(self, x: Tensor, names: Collection[str] | None = None) -> dict[str, Tensor]:
        """(N, C, H, W) -> the named maps (N, C', h, w), or all; what lies behind the last of them is not computed.

        Raises:
            ValueError: a name that is not in `specs`, or an image smaller than `smallest`.
        """
        wanted = set(self.specs if names is None else names)
        if not wanted <= set(self.specs):
            raise ValueError(f"{type(self).__name__} gives {', '.join(self.specs)}, not {sorted(wanted)}")
        height, width = x.shape[-2:]
        if min(height, width) < self.smallest:
            raise ValueError(
                f"{type(self).__name__} takes images of {self.smallest} or more pixels a side, not {height}x{width}"
            )
        found: dict[str, Tensor] = {}
        for name, features in self.walk(x):
            if name in wanted:
                found[name] = features
            if len(found) == len(wanted):
                break
        return found


def smallest_side(steps: Sequence[tuple[int, int]]) -> int:
    """Fewest pixels a side that leave one cell, where each step in turn needs factor * cells + more for its cells."""
    side = 1
    for factor, more in reversed(steps):
        side = max(factor * side + more, 1)
    return side


def mirror_pad(x: Tensor, margin: int, *, more: Sequence[int] = (0, 0)) -> Tensor:
    """Mirror x (N, C, H, W) over its border pixels, `margin` on every side and `more` (rows, columns) at the far ends.

    Margins wider than the image go on mirroring, as OpenCV's BORDER_REFLECT_101 does.
    """
    for dim, extra in zip((2, 3), more, strict=True):
        last = x.shape[dim] - 1
        index = torch.arange(-margin, last + 1 + margin + extra, device=x.device) % max(2 * last, 1)
        x = x.index_select(dim, torch.minimum(index, 2 * last - index).clamp(min=0))
    return x
