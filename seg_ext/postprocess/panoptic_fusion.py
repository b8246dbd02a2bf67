"""Panoptic fusion: instances by score over a semantic map (Kirillov et al., Panoptic FPN, 2019, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def fuse_panoptic(
    labels: Tensor,
    masks: Tensor,
    *,
    scores: Tensor,
    classes: Tensor,
    thing_ids: Sequence[int],
    overlap_threshold: float = 0.5,
    stuff_area: int = 4096,
    score_threshold: float = 0.5,
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Merge instances and a semantic map into segments that do not overlap.

    Instances are taken in the order of their scores; one whose mask is covered by earlier ones for more than
    ``overlap_threshold`` of its area is dropped, others keep the pixels that are still free. Semantic classes that
    are no things fill the rest where they cover at least ``stuff_area`` pixels.

    Args:
        labels: (H, W) semantic ids.
        masks: (n, H, W) bool.
        scores: (n,).
        classes: (n,) thing ids.
        thing_ids: semantic ids that denote things.
        overlap_threshold: fraction of a mask's area.
        stuff_area: pixels.
        score_threshold: instances scored lower are dropped.

    Returns:
        (H, W) int32 segment ids, 0 where there is none, and one dict a segment: ``id``, ``isthing``,
        ``category_id``, and ``score`` and ``instance_id`` (index into masks) for things, ``area`` for stuff.
    """
    order = torch.argsort(scores, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    segments, kept = _place_instances(
        masks, rank, eligible=scores.double()[order] >= score_threshold, overlap_threshold=overlap_threshold
    )
    chosen = order[kept]
    info = [
        {"id": index, "isthing": True, "score": score, "category_id": category, "instance_id": instance}
        for index, (score, category, instance) in enumerate(
            zip(scores[chosen].tolist(), classes[chosen].tolist(), chosen.tolist(), strict=True), start=1
        )
    ]
    return fill_with_stuff(segments, info, labels, thing_ids=thing_ids, stuff_area=stuff_area)


def fill_with_stuff(
    segments: Tensor, info: list[dict[str, Any]], labels: Tensor, *, thing_ids: Sequence[int], stuff_area: int
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Add to segments of things, behind them, those of the semantic classes that are no things.

    Args:
        segments: (H, W) int32 ids 1..n, 0 where there is none.
        info: n dicts.
        labels: (H, W) semantic ids.
        thing_ids: those that denote things.
        stuff_area: pixels that a class covers at least.
    """
    free = segments == 0
    areas = torch.bincount(labels[free], minlength=int(labels.max()) + 1).tolist()
    info, ids = list(info), [0] * len(areas)
    for category, area in enumerate(areas):
        if area >= max(stuff_area, 1) and category not in thing_ids:
            ids[category] = len(info) + 1
            info.append({"id": ids[category], "isthing": False, "category_id": category, "area": area})
    lookup = torch.tensor(ids, dtype=torch.int32, device=labels.device)
    return torch.where(free, lookup[labels], segments), info


def _place_instances(
    masks: Tensor, rank: Tensor, *, eligible: Tensor, overlap_threshold: float
) -> tuple[Tensor, Tensor]:
    """Segment ids (H, W) int32 from masks (n, H, W) of ranks (n,), and which ranks of the eligible were kept (n,) bool.

    Whether a mask is kept depends only on those before it, so the assignment that reproduces itself is unique: it is
    reached by iterating from "all kept", each pass settling at least one further mask of a chain of overlaps. Only
    pixels of two masks or more take part.
    """
    count, height, width = masks.shape
    size = height * width
    place = _true_places(masks)
    starts = torch.arange(count + 1, device=place.device) * size
    areas = torch.diff(torch.searchsorted(place, starts))
    level = torch.repeat_interleave(rank.to(torch.int32), areas)  # the rank of the mask that each place is of
    pixel = place - torch.repeat_interleave(starts[:-1], areas)
    areas = torch.empty_like(areas).scatter_(0, rank, areas)
    shared = torch.nonzero((torch.bincount(pixel, minlength=size) > 1).index_select(0, pixel)).flatten()
    at, of = pixel.index_select(0, shared), level.index_select(0, shared)
    candidate = kept = eligible & (areas > 0)
    while True:
        first = _first_kept(at, of, kept, size)
        covered = torch.bincount(torch.where(first.gather(0, at) < of, of, count), minlength=count + 1)
        now = candidate & (covered[:count].double() / areas <= overlap_threshold)
        if torch.equal(now, kept):
            break
        kept = now
    ids = torch.cat([torch.cumsum(kept, 0) * kept, kept.new_zeros(1, dtype=torch.int64)]).to(torch.int32)
    return ids.index_select(0, _first_kept(pixel, level, kept, size)).view(height, width), kept


def _first_kept(pixel: Tensor, level: Tensor, kept: Tensor, size: int) -> Tensor:
    """(size,) lowest kept level at each pixel, from (m,) pairs of pixel and level; len(kept) where there is none."""
    count = len(kept)
    levels = torch.where(kept, torch.arange(count, dtype=level.dtype, device=kept.device), count)
    return level.new_full((size,), count).scatter_reduce_(0, pixel, levels.index_select(0, level), "amin")


def _true_places(masks: Tensor) -> Tensor:
    """(m,) int64 places of the true pixels in ``masks.flatten()``, ascending."""
    flat = masks.to(torch.bool).flatten()
    if flat.device.type == "cpu":  # NumPy passes over empty stretches, torch.nonzero takes four times as long
        return torch.from_numpy(np.flatnonzero(flat.numpy()))
    return torch.nonzero(flat).flatten()
