"""Instances across tiles: what overlapping windows see of one object becomes one instance of the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, Instances
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from seg_ext.inference.windows import Axis

_CHUNK = 1 << 24  # elements of a temporary


class Tile(NamedTuple):
    """The instances of one window, those within the image.

    Attributes:
        bounds: top, left, bottom, right of the window's part of the image.
        boxes: (n, 4) x0, y0, x1, y1 in the image.
        areas: (n,) pixels.
        cut: (n,) bool: it reaches an edge of the window that is none of the image.
        masks: (n, h, w) bool over the bounds; None of boxes alone.
        found: the other fields.
    """

    bounds: tuple[int, int, int, int]
    boxes: Tensor
    areas: Tensor
    cut: Tensor
    masks: Tensor | None
    found: Instances


def cut_tile(found: Instances, rows: Axis, columns: Axis, place: tuple[int, int]) -> Tile:
    """A window's instances where they lie in the image; those beyond it, in a mirrored border, are dropped."""
    (top, inner_top), (left, inner_left) = rows.inside(place[0]), columns.inside(place[1])
    bounds = top.start, left.start, top.stop, left.stop
    corner = columns.starts[place[1]], rows.starts[place[0]]
    boxes = found.pred_boxes.tensor + found.pred_boxes.tensor.new_tensor(corner * 2)
    low, high = boxes.new_tensor([bounds[1], bounds[0]] * 2), boxes.new_tensor([bounds[3], bounds[2]] * 2)
    boxes = boxes.clamp(low, high)
    masks = found.pred_masks[:, inner_top, inner_left].bool() if found.has("pred_masks") else None
    areas = _box_areas(boxes) if masks is None else masks.sum((1, 2), dtype=torch.float32)
    open_sides = boxes.new_tensor([left.start > 0, top.start > 0, left.stop < columns.length, top.stop < rows.length])
    reached = torch.cat([boxes[:, :2] <= low[:2] + 1, boxes[:, 2:] >= high[2:] - 1], 1)
    kept = areas > 0
    cut = (reached & open_sides.bool()).any(1)
    rest = Instances(found.image_size, **{k: v for k, v in found.get_fields().items() if k != "pred_masks"})
    if rest.has("pred_keypoints"):
        rest.pred_keypoints = rest.pred_keypoints + rest.pred_keypoints.new_tensor([*corner, 0])
    return Tile(bounds, boxes[kept], areas[kept], cut[kept], None if masks is None else masks[kept], rest[kept])


def merge_tiles(tiles: Sequence[Tile], size: Sequence[int], *, agreement: float = 0.5) -> Instances:
    """One instance for all that tiles see of an object.

    Two instances of one class in overlapping tiles are the same object where, within the overlap, their masks (boxes
    where there are none) have an IoU of at least ``agreement``, or where one that the edge of its tile cuts is covered
    by the other for that share of itself. An object over several tiles is a chain of such pairs: its mask is the union,
    its score the mean weighted by area, other fields those of its largest part.

    Args:
        tiles: of one image, see :func:`cut_tile`; at least one.
        size: height and width of the image.
        agreement: from above 0 to 1.

    Returns:
        Instances by falling score.
    """
    counts = [len(tile.areas) for tile in tiles]
    firsts = np.cumsum([0, *counts])
    links = [
        torch.nonzero(_same_object(tiles[a], tiles[b], agreement)).cpu().numpy() + (firsts[a], firsts[b])
        for a, b in _overlapping(tiles)
    ]
    pairs = np.concatenate([np.zeros((0, 2), np.int64), *links])
    graph = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(firsts[-1], firsts[-1]))
    count, components = connected_components(graph, directed=False)
    return _united(tiles, torch.as_tensor(components, dtype=torch.int64), count, size)


def _overlapping(tiles: Sequence[Tile]) -> list[tuple[int, int]]:
    """Pairs of tiles that have instances and share pixels."""
    bounds = np.array([tile.bounds for tile in tiles]).reshape(-1, 4)
    held = np.array([len(tile.areas) > 0 for tile in tiles])
    shared = np.minimum(bounds[:, None, 2:], bounds[None, :, 2:]) > np.maximum(bounds[:, None, :2], bounds[None, :, :2])
    first, second = np.nonzero(np.triu(shared.all(2) & held[:, None] & held[None], 1))
    return list(zip(first.tolist(), second.tolist(), strict=True))


def _same_object(a: Tile, b: Tile, agreement: float) -> Tensor:
    """(n, m) bool: which instances of two overlapping tiles are one object."""
    top, left = (max(x, y) for x, y in zip(a.bounds[:2], b.bounds[:2], strict=True))
    bottom, right = (min(x, y) for x, y in zip(a.bounds[2:], b.bounds[2:], strict=True))
    if a.masks is None or b.masks is None:
        low, high = a.boxes.new_tensor([left, top] * 2), a.boxes.new_tensor([right, bottom] * 2)
        boxes_a, boxes_b = a.boxes.clamp(low, high), b.boxes.clamp(low, high)
        corner = torch.maximum(boxes_a[:, None, :2], boxes_b[None, :, :2])
        both = (torch.minimum(boxes_a[:, None, 2:], boxes_b[None, :, 2:]) - corner).clamp(min=0).prod(2)
        inside_a, inside_b = _box_areas(boxes_a), _box_areas(boxes_b)
    else:
        flat_a, flat_b = (
            masks[:, top - origin[0] : bottom - origin[0], left - origin[1] : right - origin[1]].flatten(1).float()
            for masks, origin in ((a.masks, a.bounds), (b.masks, b.bounds))
        )
        both, inside_a, inside_b = flat_a @ flat_b.T, flat_a.sum(1), flat_b.sum(1)
    either = inside_a[:, None] + inside_b[None] - both
    same = both >= agreement * either
    same |= a.cut[:, None] & (both >= agreement * a.areas[:, None])
    same |= b.cut[None] & (both >= agreement * b.areas[None])
    return same & (both > 0) & (a.found.pred_classes[:, None] == b.found.pred_classes[None])


def _united(tiles: Sequence[Tile], components: Tensor, count: int, size: Sequence[int]) -> Instances:
    """The instances of the image, from each part's component."""
    boxes, areas = torch.cat([t.boxes for t in tiles]), torch.cat([t.areas for t in tiles]).double()
    parts = Instances.cat([Instances((0, 0), **t.found.get_fields()) for t in tiles])
    of = components.to(areas.device)
    total = areas.new_zeros(count).index_add_(0, of, areas)
    scores = areas.new_zeros(count).index_add_(0, of, areas * parts.scores) / total
    order = torch.argsort(scores, descending=True, stable=True)
    of = torch.argsort(order)[of]  # component by falling score
    by_area = torch.argsort(areas, stable=True)
    by_object = by_area[torch.argsort(of[by_area], stable=True)]
    base = by_object[torch.bincount(of, minlength=count).cumsum(0) - 1]  # the largest part of each
    where = of[:, None].expand(-1, 4)
    corners = boxes.new_zeros(count, 4)
    low = corners.scatter_reduce(0, where, boxes, "amin", include_self=False)[:, :2]
    high = corners.scatter_reduce(0, where, boxes, "amax", include_self=False)[:, 2:]
    result = Instances((int(size[0]), int(size[1])), **parts[base].get_fields())
    result.pred_boxes, result.scores = Boxes(torch.cat([low, high], 1)), scores[order].to(parts.scores.dtype)
    if all(t.masks is not None for t in tiles):
        result.pred_masks = _united_masks(tiles, of, count, size)
    return result


def _united_masks(tiles: Sequence[Tile], components: Tensor, count: int, size: Sequence[int]) -> Tensor:
    """(count, H, W) bool unions."""
    masks = torch.zeros(count, *size, dtype=torch.bool, device=components.device)
    for tile, of in zip(tiles, components.split([len(t.areas) for t in tiles]), strict=True):
        if tile.masks is None or not len(of):
            continue
        present, place = torch.unique(of, return_inverse=True)
        top, left, bottom, right = tile.bounds
        seen = torch.zeros(len(present), *tile.masks.shape[1:], dtype=torch.int16, device=of.device)
        seen.index_add_(0, place, tile.masks.to(torch.int16))
        masks[present, top:bottom, left:right] |= seen > 0
    return masks


def resize_instances(found: Instances, size: Sequence[int]) -> Instances:
    """Instances of an image at another size: boxes and keypoints scaled, masks bilinear, in parts."""
    height, width = found.image_size
    if (height, width) == tuple(size):
        return found
    result = Instances((int(size[0]), int(size[1])), **found.get_fields())
    factors = size[1] / width, size[0] / height
    result.pred_boxes = found.pred_boxes.clone()
    result.pred_boxes.scale(*factors)
    if found.has("pred_keypoints"):
        result.pred_keypoints = found.pred_keypoints * found.pred_keypoints.new_tensor([*factors, 1])
    if found.has("pred_masks"):
        step = max(1, _CHUNK // (size[0] * size[1]))
        parts = [
            F.interpolate(masks[:, None].float(), tuple(size), mode="bilinear", align_corners=False)[:, 0] >= 0.5
            for masks in found.pred_masks.split(step)
        ]
        result.pred_masks = torch.cat(parts) if parts else found.pred_masks.new_zeros(0, *size)
    return result


def _box_areas(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1)
