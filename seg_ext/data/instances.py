"""Instance annotations of one image, transformed with it, as detectron2's Instances."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data.transforms import TransformList
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, PolygonMasks
from numpy.typing import NDArray
from pycocotools import mask as mask_util

Array = NDArray[Any]
Annotation = Mapping[str, Any]

MASK_FORMATS = ("bitmask", "polygon", "none")


def to_instances(
    annotations: Iterable[Annotation],
    transforms: TransformList,
    *,
    source: tuple[int, int],
    size: tuple[int, int],
    masks: str = "bitmask",
) -> Instances:
    """Move annotations with their image; those that left it, and crowds, are dropped.

    Boxes are tight around what is left of their masks; without masks they are clipped. Masks are handled one by one:
    a decoded stack of them does not fit into the cache and took three times as long.

    Args:
        annotations: detectron2's, with bbox, bbox_mode, category_id and, for masks, segmentation.
        transforms: as applied to the image.
        source: height and width before the transforms.
        size: height and width after them.
        masks: "bitmask"; "polygon", which RLE annotations turn into "bitmask" for their image; or "none".

    Returns:
        Fields gt_boxes, gt_classes and gt_masks, also where no instance is left.

    Raises:
        ValueError: a mask whose size is not the image's.
    """
    kept = [a for a in annotations if not a.get("iscrowd", 0)]
    boxes = np.array([BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in kept]).reshape(-1, 4)
    boxes = transforms.apply_box(boxes).clip(0, (size[1], size[0]) * 2)
    visible = np.flatnonzero((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]))
    kept, boxes = [kept[i] for i in visible], boxes[visible]

    instances = Instances(size)
    instances.gt_classes = torch.tensor([int(a["category_id"]) for a in kept], dtype=torch.int64)
    if masks == "none":
        instances.gt_boxes = Boxes(torch.from_numpy(boxes))
        return instances
    segmentations = [a["segmentation"] for a in kept]
    if masks == "polygon" and all(isinstance(s, list) for s in segmentations):
        polygons = [_move_polygons(s, transforms) for s in segmentations]
        instances.gt_masks = PolygonMasks(polygons)
        xywh = mask_util.toBbox([_polygons_to_rle(p, size) for p in polygons]) if polygons else np.zeros((0, 4))
        instances.gt_boxes = Boxes(torch.from_numpy(np.hstack([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]])))
    else:
        stack = np.zeros((len(kept), *size), bool)
        for mask, segmentation in zip(stack, segmentations, strict=True):
            mask[:] = _move_mask(segmentation, transforms, source, size)
        instances.gt_masks = BitMasks(torch.from_numpy(stack))
        instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
    return instances[instances.gt_boxes.nonempty()]


def _move_mask(segmentation: Any, transforms: TransformList, source: tuple[int, int], size: tuple[int, int]) -> Array:
    if isinstance(segmentation, list):
        return mask_util.decode(_polygons_to_rle(_move_polygons(segmentation, transforms), size)).view(bool)
    if isinstance(segmentation["counts"], list):
        segmentation = mask_util.frPyObjects(segmentation, *source)
    if tuple(segmentation["size"]) != source:
        raise ValueError(f"a mask of (height, width) {tuple(segmentation['size'])} on an image of {source}")
    return transforms.apply_segmentation(mask_util.decode(segmentation).view(bool))


def _move_polygons(polygons: Sequence[Any], transforms: TransformList) -> list[Array]:
    moved = transforms.apply_polygons([np.array(p, np.float64).reshape(-1, 2) for p in polygons])
    return [np.asarray(polygon).reshape(-1) for polygon in moved]


def _polygons_to_rle(polygons: Sequence[Array], size: tuple[int, int]) -> dict[str, Any]:
    return mask_util.merge(mask_util.frPyObjects([p.tolist() for p in polygons], *size))
