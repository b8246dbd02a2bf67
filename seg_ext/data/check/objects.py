"""Instances and segments of one image: boxes, masks, areas, ids."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.structures import BoxMode
from numpy.typing import NDArray
from pycocotools import mask as mask_util

Array = NDArray[Any]
Annotation = Mapping[str, Any]
Details = list[tuple[str, str]]  # code and detail

LOOSE, SLACK = 0.05, 2.0  # a box fits within 5 % of its longer side, 2 pixels at least
AREA_SHARE, AREA_SLACK = 0.1, 8.0  # an area fits within 10 %, 8 pixels at least
TWICE = 0.5  # IoU above which two instances are one


@dataclass(frozen=True)
class Objects:
    """Classes (N,) and areas (N,) in pixels of the objects that are no crowds, and pixels covered once and again."""

    classes: Array
    areas: Array
    covered: int = 0
    again: int = 0


@dataclass(frozen=True)
class _Shape:
    """A segmentation: RLE, its pixels, area and xyxy of the outline, whether it is polygons."""

    rle: dict[str, Any]
    pixels: int
    area: float
    box: Array
    polygon: bool


def check_annotations(
    annotations: Sequence[Annotation], size: tuple[int, int], names: Sequence[str]
) -> tuple[Details, Objects]:
    """Look at the instances of an image.

    Args:
        annotations: detectron2's, with "id" and "area" where the JSON has them.
        size: height and width of the image.
        names: of the classes; none for any number of them.
    """
    details: Details = []
    classes, areas = [], []
    shapes: list[tuple[str, _Shape]] = []
    for number, annotation in enumerate(annotations):
        name, crowd = f"annotation {annotation.get('id', number)}", bool(annotation.get("iscrowd", 0))
        try:
            shape, found = _check_shape(annotation, size)
            box = _xyxy(annotation)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            details.append(("bad_annotation", f"{name}: {type(error).__name__}: {' '.join(str(error).split())}"))
            continue
        found += _check_box(box, shape, size, crowd=crowd)
        category = annotation.get("category_id", -1)
        known = isinstance(category, int) and 0 <= category < len(names)
        if names and not known:
            found.append(("unknown_category", f"category {category} of 0..{len(names) - 1}"))
        elif not crowd:
            classes.append(category)
            areas.append(shape.area if shape is not None else float(np.prod(box[2:] - box[:2])))
        if shape is not None and not crowd:
            shapes.append((f"{name} ({names[category]})" if known else name, shape))
        details += [(code, f"{name}: {text}") for code, text in found]
    overlaps, covered, again = _overlaps(shapes)
    return details + overlaps, Objects(np.array(classes, np.int64), np.array(areas), covered, again)


def check_segments(ids: Array, segments: Sequence[Annotation]) -> tuple[Details, dict[int, int]]:
    """Compare a panoptic map with its segments.

    Args:
        ids: (H, W) segment ids, 0 void.
        segments: with "id", and "area" where it is stated.

    Returns:
        What is wrong, and the pixels of each id but 0.
    """
    counts = count_ids(ids)
    counts.pop(0, None)
    listed = Counter(segment.get("id") for segment in segments)
    details = [("duplicate_segment_id", f"segment {i}: {n} times") for i, n in listed.items() if n > 1]
    details += [("segment_not_in_png", f"segment {i}") for i in listed if i not in counts]
    details += [("segment_not_in_json", f"id {i} ({n} pixels)") for i, n in counts.items() if i not in listed]
    for segment in segments:
        true, stated = counts.get(segment.get("id", 0)), segment.get("area")
        if true is not None and stated is not None and stated != true:
            details.append(("wrong_area", f"segment {segment['id']}: area {stated}, mask {true}"))
    return details, counts


def count_ids(ids: Array) -> dict[int, int]:
    """Pixels of each id of a map, ascending; counted in runs, of which there are few."""
    flat = ids.ravel()
    starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]]))
    found, inverse = np.unique(flat[starts], return_inverse=True)
    pixels = np.bincount(inverse.ravel(), np.diff(starts, append=flat.size)).astype(np.int64)
    return dict(zip(found.tolist(), pixels.tolist(), strict=True))


def _xyxy(annotation: Annotation) -> Array:
    given = np.array(annotation["bbox"], float)
    if given.shape != (4,) or not np.isfinite(given).all():
        raise ValueError(f"bbox {annotation['bbox']}")
    return BoxMode.convert(given[None], annotation["bbox_mode"], BoxMode.XYXY_ABS)[0]


def _check_shape(annotation: Annotation, size: tuple[int, int]) -> tuple[_Shape | None, Details]:
    segmentation, crowd = annotation.get("segmentation"), bool(annotation.get("iscrowd", 0))
    if crowd and not isinstance(segmentation, dict):
        return None, [("crowd_without_rle", "no segmentation" if not segmentation else "polygons")]
    if segmentation is None:
        return None, []
    shape, found = _of_rle(segmentation, size) if isinstance(segmentation, dict) else _of_polygons(segmentation, size)
    stated = annotation.get("area")
    if shape is not None and stated is not None and not crowd:  # COCO's own crowds are stated otherwise
        slack = max(AREA_SLACK, AREA_SHARE * max(shape.pixels, shape.area)) if shape.polygon else 0.5
        if min(abs(stated - shape.pixels), abs(stated - shape.area)) > slack:
            found.append(("wrong_area", f"area {stated:g}, mask {shape.pixels}"))
    return shape, found


def _of_rle(segmentation: dict[str, Any], size: tuple[int, int]) -> tuple[_Shape | None, Details]:
    if tuple(segmentation["size"]) != size:
        return None, [("size_mismatch", f"a mask of {tuple(segmentation['size'])} on an image of {size}")]
    rle, counts = segmentation, segmentation["counts"]
    if isinstance(counts, list):
        if sum(counts) != size[0] * size[1] or min(counts, default=0) < 0:
            raise ValueError(f"an RLE of {sum(counts)} pixels for {size[0] * size[1]}")
        rle = mask_util.frPyObjects(segmentation, *size)
    area = int(mask_util.area(rle))
    if area == 0:
        return None, [("empty_mask", "RLE")]
    x, y, w, h = mask_util.toBbox(rle)
    if area > size[0] * size[1] or x + w > size[1] or y + h > size[0]:
        raise ValueError("an RLE of more pixels than the image has")
    return _Shape(rle, area, area, np.array([x, y, x + w, y + h]), False), []


def _of_polygons(polygons: Any, size: tuple[int, int]) -> tuple[_Shape | None, Details]:
    parts = [np.array(p, float).reshape(-1) for p in polygons]
    sound = [p.reshape(-1, 2) for p in parts if p.size >= 6 and p.size % 2 == 0]
    areas = [_shoelace(p) for p in sound]
    found: Details = []
    if len(sound) < len(parts) or not parts:
        shortest = min((p.size for p in parts), default=0)
        found = [("degenerate_polygon", f"{len(parts) - len(sound)} of {len(parts)} parts, {shortest} coordinates")]
    if sound and sum(areas) == 0:
        return None, [*found, ("degenerate_polygon", "no area")]
    if not sound:
        return None, found
    points = np.concatenate(sound)
    if not np.isfinite(points).all():
        raise ValueError("a polygon with NaN")
    rle = mask_util.merge(mask_util.frPyObjects([p.ravel().tolist() for p in sound], *size))
    box = np.concatenate([points.min(0), points.max(0)])
    return _Shape(rle, int(mask_util.area(rle)), sum(areas), box, True), found


def _shoelace(points: Array) -> float:
    x, y = points.T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def _check_box(box: Array, shape: _Shape | None, size: tuple[int, int], *, crowd: bool) -> Details:
    height, width = size
    shown = ", ".join(f"{v:g}" for v in box)
    if (box[2:] <= box[:2]).any():
        return [("empty_box", f"corners {shown}")]
    if box.min() < -1 or box[2] > width + 1 or box[3] > height + 1:
        return [("box_outside", f"corners {shown}, image {width}x{height}")]
    if shape is None or crowd:
        return []
    gap = float(np.abs(box - shape.box.clip(0, [width, height] * 2)).max())
    if gap <= max(SLACK, LOOSE * float((box[2:] - box[:2]).max())):
        return []
    return [("loose_box", f"corners {shown}, mask {', '.join(f'{v:g}' for v in shape.box)}")]


def _overlaps(shapes: list[tuple[str, _Shape]]) -> tuple[Details, int, int]:
    """Pairs that cover each other, pixels that are covered, and how many times more they are covered than once."""
    if not shapes:
        return [], 0, 0
    masks = [shape.rle for _, shape in shapes]
    covered = int(mask_util.area(mask_util.merge(masks)))
    ious = np.triu(mask_util.iou(masks, masks, [0] * len(masks)), 1)
    pairs = np.argwhere(ious > TWICE).tolist()
    details = [("overlapping_masks", f"{shapes[i][0]} and {shapes[j][0]}: IoU {ious[i, j]:.2f}") for i, j in pairs]
    return details, covered, sum(shape.pixels for _, shape in shapes) - covered
