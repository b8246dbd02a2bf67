"""Where windows lie over an image, and how much each of their pixels counts where several meet."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from seg_ext.errors import UserError

BLENDS = ("hann", "uniform", "scores")


class Axis(NamedTuple):
    """Windows along one side of an image.

    Attributes:
        starts: first pixel of each window, ascending; below 0 where the image is shorter than a window.
        size: pixels of a window.
        length: pixels of the image.
        weights: (windows, size) float32; over the image those of all windows at a pixel sum to 1.
    """

    starts: tuple[int, ...]
    size: int
    length: int
    weights: Tensor

    def inside(self, index: int) -> tuple[slice, slice]:
        """The part of the image that a window covers, and that part within the window."""
        start = self.starts[index]
        first, last = max(start, 0), min(start + self.size, self.length)
        return slice(first, last), slice(first - start, last - start)

    def places(self, index: int) -> Tensor:
        """(size,) pixel of the image for each of a window; beyond its ends the image is mirrored, edges repeated."""
        places = torch.arange(self.size).add(self.starts[index]).remainder(2 * self.length)
        return torch.minimum(places, 2 * self.length - 1 - places)


def check_windows(size: Any, overlap: float, blend: str, *, key: str = "TEST.SLIDING_WINDOW") -> tuple[int, int]:
    """Height and width of a window.

    Raises:
        UserError: a value outside its range; the message begins with ``key``.
    """
    if not (len(size) == 2 and all(isinstance(side, int) and side > 0 for side in size)):
        raise UserError(f"{key}.SIZE {list(size)}: takes [height, width] in pixels, or []")
    if not 0 <= overlap < 1:
        raise UserError(f"{key}.OVERLAP {overlap}: takes a share of a window, from 0 to below 1")
    if blend not in BLENDS:
        raise UserError(f"{key}.BLEND {blend!r}: takes {', '.join(BLENDS)}")
    return size[0], size[1]


def lay_windows(length: int, size: int, *, overlap: float, blend: str) -> Axis:
    """Lay as few windows as give the overlap over a side of ``length`` pixels, from its first to its last.

    They are spread evenly; with "scores" they lie at full steps, as mmsegmentation's, the last one as far as the side
    allows. An image shorter than a window lies in the middle of one.

    Args:
        length: pixels.
        size: pixels of a window.
        overlap: share of a window that the next one covers again, at least.
        blend: "hann" weighs a window's pixels by the square of a half sine over it, the others all the same.
    """
    starts: tuple[int, ...] = ((length - size) // 2,)
    if length > size:
        step = max(1, math.floor(size * (1 - overlap) + 1e-9))
        count = math.ceil((length - size) / step)
        last = length - size
        starts = tuple(min(i * step, last) if blend == "scores" else last * i // count for i in range(count + 1))
    taper = torch.ones(size, dtype=torch.float64)
    if blend == "hann":
        taper = torch.sin((torch.arange(size, dtype=torch.float64) + 0.5) * (math.pi / size)) ** 2
    total = torch.zeros(length, dtype=torch.float64)
    axis = Axis(starts, size, length, taper.float())
    for i in range(len(starts)):
        image, window = axis.inside(i)
        total[image] += taper[window]
    weights = torch.zeros(len(starts), size)
    for i in range(len(starts)):
        image, window = axis.inside(i)
        weights[i, window] = (taper[window] / total[image]).float()
    return axis._replace(weights=weights)
