"""Instances as centres and offsets, both ways: targets from ids, ids from predictions (Panoptic-DeepLab, 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from seg_ext.postprocess.panoptic_fusion import fill_with_stuff

VOID, STUFF = 0, 1  # in a map of ids; instances are greater
_CHUNK = 1 << 22  # distances at once


def centre_targets(ids: Tensor, *, sigma: float) -> tuple[Tensor, Tensor, Tensor]:
    """What the instance branch is to predict.

    Args:
        ids: (H, W) integers: VOID, STUFF, or an instance's, greater.
        sigma: standard deviation of the Gaussian around a centre, pixels; it ends 3 of them away.

    Returns:
        The heat of centres (H, W), 1 at each and the greatest where they overlap; offsets (2, H, W), rows and columns
        from each pixel to the mean of its instance's, 0 elsewhere; and each pixel's instance area (H, W), 0 elsewhere.
    """
    height, width = ids.shape
    known, number = torch.unique(torch.where(ids > STUFF, ids, 0), return_inverse=True)
    if known[0] > 0:  # instances everywhere
        number = number + 1
    count = int(number.max()) + 1
    rows, columns = _grid(height, width, ids.device)
    flat = number.flatten()
    areas = torch.bincount(flat, minlength=count)
    means = torch.stack([torch.bincount(flat, x.flatten(), minlength=count) for x in (rows, columns)]) / areas.clamp(1)
    inside = number > 0
    offset = torch.where(inside, means[:, number] - torch.stack([rows, columns]), 0).float()
    heat = _gaussians(means[:, 1:].round(), (height, width), sigma)
    return heat, offset, torch.where(inside, areas[number], 0)


def _gaussians(centres: Tensor, size: tuple[int, int], sigma: float) -> Tensor:
    """(H, W) greatest of the Gaussians around (2, n) rows and columns: each falls off along both axes apart."""
    reach = 3 * sigma + 1
    axes = []
    for side, centre in zip(size, centres, strict=True):
        away = torch.arange(side, device=centres.device)[None] - centre[:, None]  # (n, side)
        axes.append(torch.where(away.abs() <= reach, torch.exp(-(away**2) / (2 * sigma**2)), 0).float())
    heat = torch.zeros(size, device=centres.device)
    step = max(1, _CHUNK // (size[0] * size[1]))
    for start in range(0, centres.shape[1], step):
        ys, xs = (axis[start : start + step] for axis in axes)
        heat = torch.maximum(heat, (ys[:, :, None] * xs[:, None, :]).amax(0))
    return heat


def find_centres(heat: Tensor, *, threshold: float = 0.1, kernel: int = 7, most: int = 200) -> Tensor:
    """(n, 2) rows and columns of the peaks of heat (H, W), the hottest first; of equal ones in a square the first.

    Args:
        heat: of centres.
        threshold: a peak is hotter.
        kernel: side of the square of cells whose greatest a peak is; odd.
        most: peaks at most.
    """
    highest = _square_max(heat, kernel)
    order = torch.arange(heat.numel(), 0, -1, device=heat.device, dtype=torch.float64).view_as(heat)
    rank = torch.where((heat == highest) & (heat > threshold), order, 0)
    peaks = torch.where((rank > 0) & (rank == _square_max(rank, kernel)), heat, 0).flatten()
    values, places = peaks.topk(min(most, peaks.numel()))
    places = places[values > 0]
    return torch.stack([torch.div(places, heat.shape[1], rounding_mode="floor"), places % heat.shape[1]], dim=1)


def _square_max(x: Tensor, kernel: int) -> Tensor:
    """(H, W) greatest of the kernel^2 values around each."""
    return F.max_pool2d(x[None, None], kernel, stride=1, padding=kernel // 2)[0, 0]


def group_pixels(
    labels: Tensor,
    heat: Tensor,
    offset: Tensor,
    *,
    thing_ids: Sequence[int],
    threshold: float = 0.1,
    kernel: int = 7,
    most: int = 200,
    stuff_area: int = 2048,
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Panoptic segments: a pixel of a thing goes to the centre nearest to where its offset points.

    An instance takes the class that most of its pixels have; stuff remains where it covers ``stuff_area`` pixels.

    Args:
        labels: (H, W) semantic ids.
        heat: (H, W) of centres.
        offset: (2, H, W) rows and columns from each pixel to its centre, pixels.
        thing_ids: semantic ids that denote things.
        threshold: see :func:`find_centres`; likewise ``kernel`` and ``most``.
        kernel: likewise.
        most: likewise.
        stuff_area: pixels.

    Returns:
        (H, W) int32 segment ids, 0 where there is none, and one dict a segment: ``id``, ``isthing``, ``category_id``
        (semantic), ``area``, and of things ``score``, the heat of the centre.
    """
    classes = int(labels.max()) + 1
    ids = torch.tensor(list(thing_ids), dtype=torch.int64, device=labels.device)
    is_thing = torch.isin(torch.arange(classes, device=labels.device), ids)
    things = torch.nonzero(is_thing[labels].flatten()).flatten()
    centres = find_centres(heat, threshold=threshold, kernel=kernel, most=most)
    segments = torch.zeros(labels.numel(), dtype=torch.int32, device=labels.device)
    info: list[dict[str, Any]] = []
    if len(centres) and len(things):
        height, width = labels.shape
        places = torch.stack(_grid(height, width, labels.device)).flatten(1)[:, things] + offset.flatten(1)[:, things]
        owner = _nearest(places.T, centres.to(places.dtype))
        votes = torch.bincount(owner * classes + labels.flatten()[things], minlength=len(centres) * classes)
        areas, best = votes.view(-1, classes).sum(1), votes.view(-1, classes).argmax(1)
        taken = areas > 0
        segments[things] = torch.cumsum(taken, 0).to(torch.int32)[owner]
        scores = heat[centres[:, 0], centres[:, 1]]
        rows = zip(best[taken].tolist(), areas[taken].tolist(), scores[taken].tolist(), strict=True)
        info = [
            {"id": i, "isthing": True, "category_id": category, "area": area, "score": score}
            for i, (category, area, score) in enumerate(rows, start=1)
        ]
    return fill_with_stuff(segments.view(labels.shape), info, labels, thing_ids=thing_ids, stuff_area=stuff_area)


def _nearest(points: Tensor, centres: Tensor) -> Tensor:
    """(m,) index of the centre (n, 2) nearest to each point (m, 2), the first of equals; some points at a time."""
    step = max(1, _CHUNK // len(centres))
    parts = [
        ((points[start : start + step, None] - centres[None]) ** 2).sum(2).argmin(1)
        for start in range(0, len(points), step)
    ]
    return torch.cat(parts)


def _grid(height: int, width: int, device: torch.device) -> list[Tensor]:
    """Row and column of each pixel, (H, W) float64 each: a mean of them rounds as the exact one does."""
    rows = torch.arange(height, device=device, dtype=torch.float64)
    columns = torch.arange(width, device=device, dtype=torch.float64)
    return list(torch.meshgrid(rows, columns, indexing="ij"))
