"""Outlines of the regions of a label map along the edges of its pixels, as polygons with holes."""

from __future__ import annotations

from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_CORNERS = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])  # (x, y) at which a pixel's top, right, bottom, left side begins


class Region(NamedTuple):
    """A 4-connected region.

    Attributes:
        label: of its pixels.
        rings: each (n, 2) corners (x, y) in pixels from the image's top left corner, the first not repeated; the outer
            ring has a positive area sum(x_i y_i+1 - x_i+1 y_i) / 2 and comes first, those of its holes a negative one.
    """

    label: int
    rings: list[Array]


def outline(labels: Array, *, ignore: int) -> list[Region]:
    """The regions of an (H, W) map of whole numbers; pixels of ``ignore`` are in none."""
    padded = np.pad(labels, 1, constant_values=ignore)
    pixels, sides, following = _sides(padded, ignore)
    if not len(pixels):
        return []
    order, starts = _walk(following)
    pixels, sides = pixels[order], sides[order]
    last = np.append(starts[1:], len(order)) - 1
    before = np.arange(len(order)) - 1
    before[starts] = last
    corner = sides != sides[before]  # where the walk turns
    row, column = np.divmod(pixels, padded.shape[1])
    points = np.stack([column - 1, row - 1], 1)[corner] + _CORNERS[sides[corner]]
    ends = np.add.reduceat(corner, starts).cumsum()
    begins = np.append(0, ends[:-1])
    is_hole = _doubled_areas(points, begins, ends) < 0
    parts = _components(padded).ravel()[pixels[starts]]
    found = padded.ravel()[pixels[starts]].tolist()
    regions: list[Region] = []
    for index in np.lexsort((is_hole, parts)).tolist():
        if not is_hole[index]:
            regions.append(Region(found[index], []))
        regions[-1].rings.append(points[begins[index] : ends[index]])
    return regions


def outline_masks(masks: Array) -> list[list[Region]]:
    """The regions of each of (N, H, W) masks, which may overlap."""
    if not len(masks):
        return []
    rows: Array = np.any(masks, 2)
    columns: Array = np.any(masks, 1)
    top, left = rows.argmax(1), columns.argmax(1)
    bottom = masks.shape[1] - rows[:, ::-1].argmax(1)
    right = masks.shape[2] - columns[:, ::-1].argmax(1)
    heights = np.where(rows.any(1), bottom - top, 0)
    widths = np.where(rows.any(1), right - left, 0)
    begins = np.append(0, heights.cumsum())
    packed = np.zeros((begins[-1], widths.max()), np.int32)  # their boxes below each other, numbered from 1
    for index, (y, x, height, width) in enumerate(zip(top, left, heights, widths, strict=True)):
        packed[begins[index] : begins[index + 1], :width] = masks[index, y : y + height, x : x + width] * (index + 1)
    found: list[list[Region]] = [[] for _ in masks]
    for region in outline(packed, ignore=0):
        index = region.label - 1
        shift = np.array([left[index], top[index] - begins[index]])
        found[index].append(Region(index, [ring + shift for ring in region.rings]))
    return found


def _sides(padded: Array, ignore: int) -> tuple[Array, Array, Array]:
    """Sides of pixels that bound a region, region to the right: pixel, side 0..3, and number of the one that follows.

    Where two pixels of a region touch at a corner alone, the walk stays with the pixel that it came along.
    """
    labels, width = padded.ravel(), padded.shape[1]
    step = (-width, 1, width, -1)
    kept = np.flatnonzero(labels != ignore)
    found = [kept[labels[kept] != labels[kept + s]] for s in step]
    number = np.full((4, labels.size), -1, np.int64)
    begin = 0
    for side, pixels in enumerate(found):
        number[side, pixels] = np.arange(begin, begin := begin + len(pixels))
    following = []
    for side, pixels in enumerate(found):
        turn = (side + 1) % 4
        beside = pixels + step[turn]
        right, straight, left = number[turn, pixels], number[side, beside], number[side - 1, beside + step[side]]
        following.append(np.where(right >= 0, right, np.where(straight >= 0, straight, left)))
    sides = np.repeat(np.arange(4), [len(pixels) for pixels in found])
    return np.concatenate(found), sides, np.concatenate(following)


def _walk(following: Array) -> tuple[Array, Array]:
    """The cycles of a permutation one after the other, each in its order, and where each begins.

    All elements jump at once, each time twice as far: log2(n) steps of NumPy.
    """
    root, ahead = np.arange(len(following)), following
    while True:
        least = np.minimum(root, root[ahead])
        if (least == root).all():
            break
        root, ahead = least, ahead[ahead]
    ends = following == root
    ahead = np.where(ends, np.arange(len(following)), following)
    left = (~ends).astype(np.int64)  # steps to the last of the cycle
    while (more := left[ahead]).any():
        left, ahead = left + more, ahead[ahead]
    order = np.lexsort((-left, root))
    return order, np.flatnonzero(np.diff(root[order], prepend=-1))


def _components(padded: Array) -> Array:
    """(H, W) numbers of the 4-connected regions of equal labels."""
    height, width = padded.shape
    linked = np.zeros((2 * height - 1, 2 * width - 1), np.uint8)
    linked[::2, ::2] = 1
    linked[1::2, ::2] = padded[1:] == padded[:-1]
    linked[::2, 1::2] = padded[:, 1:] == padded[:, :-1]
    return cv2.connectedComponents(linked, connectivity=4)[1][::2, ::2]


def _doubled_areas(points: Array, begins: Array, ends: Array) -> Array:
    """Twice the area of each ring points[begin:end]."""
    after = np.arange(1, len(points) + 1)
    after[ends - 1] = begins
    x, y = points.T
    return np.add.reduceat(x * y[after] - x[after] * y, begins)
