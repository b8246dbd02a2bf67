"""Panoptic fusion: instances by score over a semantic map (Kirillov et al., Panoptic FPN, 2019, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
    order = order[scores[order] >= score_threshold]
    segments, kept = _place_instances(masks[order], overlap_threshold)
    kept_ids = order[kept]
    info = [
        {"id": index, "isthing": True, "score": score, "category_id": category, "instance_id": instance}
        for index, (score, category, instance) in enumerate(
            zip(scores[kept_ids].tolist(), classes[kept_ids].tolist(), kept_ids.tolist(), strict=True), start=1
        )
    ]
    free = labels[segments == 0]
    areas = torch.bincount(free, minlength=1)
    stuff = torch.nonzero((areas >= max(stuff_area, 1)), as_tuple=True)[0].tolist()
    stuff = [category for category in stuff if category not in thing_ids]
    lookup = torch.zeros(max(len(areas), int(labels.max()) + 1), dtype=torch.int32, device=labels.device)
    for index, category in enumerate(stuff, start=len(info) + 1):
        lookup[category] = index
        info.append({"id": index, "isthing": False, "category_id": category, "area": int(areas[category])})
    return torch.where(segments == 0, lookup[labels], segments), info


def _place_instances(masks: Tensor, overlap_threshold: float) -> tuple[Tensor, Tensor]:
    """Segment ids (H, W) int32 from masks (n, H, W) in order of precedence, and which masks were kept (n,) bool.

    Whether a mask is kept depends only on those before it, so the assignment that reproduces itself is unique: it is
    reached by iterating from "all kept", each pass settling at least one further mask of a chain of overlaps.
    """
    count, height, width = masks.shape
    rank, pixel = torch.nonzero(masks.flatten(1), as_tuple=True)
    areas = torch.bincount(rank, minlength=count)
    kept = areas > 0
    while True:
        owner = rank.new_full((height * width,), count)
        owner.scatter_reduce_(0, pixel, torch.where(kept[rank], rank, count), "amin")
        covered = torch.bincount(rank[owner[pixel] < rank], minlength=count)
        now = (areas > 0) & (covered <= overlap_threshold * areas)
        if torch.equal(now, kept):
            break
        kept = now
    ids = torch.cat([torch.cumsum(kept, 0) * kept, kept.new_zeros(1, dtype=torch.int64)]).to(torch.int32)
    return ids[owner].view(height, width), kept
