"""Instance annotations of one image, transformed with it, as detectron2's Instances."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.data.transforms import TransformList
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, Keypoints, PolygonMasks
from numpy.typing import NDArray
from pycocotools import mask as mask_util

from seg_ext.data.external import PixelMap
from seg_ext.data.keypoints import move_keypoints

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
    mirrored: Sequence[int] | None = None,
) -> Instances:
    """Move annotations with their image; those that left it, and crowds, are dropped.

    Boxes are tight around what is left of their masks; without masks they are clipped. Masks are handled one by one:
    a decoded stack of them does not fit into the cache and took three times as long.

    Args:
        annotations: detectron2's, with bbox, bbox_mode, category_id and, as far as wanted, segmentation and keypoints.
        transforms: as applied to the image.
        source: height and width before the transforms.
        size: height and width after them.
        masks: "bitmask"; "polygon", which RLE annotations, and transforms that move no coordinates, turn into "bitmask"
            for their image; or "none".
        mirrored: see :func:`seg_ext.data.keypoints.mirrored_keypoints`; None for no keypoints.

    Returns:
        Fields gt_boxes, gt_classes, gt_masks and gt_keypoints, as far as wanted, also where no instance is left.

    Raises:
        ValueError: a mask whose size is not the image's, a polygon without three corners, another number of keypoints,
            or transforms that cannot move them.
    """
    kept = [a for a in annotations if not a.get("iscrowd", 0)]
    boxes = np.array([BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in kept]).reshape(-1, 4)
    boxes = transforms.apply_box(boxes).clip(0, (size[1], size[0]) * 2)
    visible = np.flatnonzero((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]))
    kept, boxes = [kept[i] for i in visible], boxes[visible]

    instances = Instances(size)
    instances.gt_classes = torch.tensor([int(a["category_id"]) for a in kept], dtype=torch.int64)
    if mirrored is not None:
        if _moves_pixels_alone(transforms):
            raise ValueError("keypoints cannot follow an augmentation that moves pixels alone")
        points = move_keypoints(kept, transforms, source=source, size=size, mirrored=mirrored)
        instances.gt_keypoints = Keypoints(points)
    if masks == "none":
        instances.gt_boxes = Boxes(torch.from_numpy(boxes))
        return instances
    segmentations = [a["segmentation"] for a in kept]
    _check_polygons(segmentations)
    if _moves_pixels_alone(transforms):
        segmentations = [_polygons_to_rle(s, source) if isinstance(s, list) else s for s in segmentations]
    if masks == "polygon" and all(isinstance(s, list) for s in segmentations):
        polygons = [_move_polygons(s, transforms) for s in segmentations]
        instances.gt_masks = PolygonMasks(polygons)
        xywh = mask_util.toBbox([_polygons_to_rle(p, size) for p in polygons]) if polygons else np.zeros((0, 4))
        instances.gt_boxes = Boxes(torch.from_numpy(np.hstack([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]])))
    else:
        stack = np.zeros((len(kept), *size), bool)
        for mask, segmentation in zip(stack, segmentations, strict=True):
            if isinstance(segmentation, list):
                _draw(mask, _move_polygons(segmentation, transforms))
            else:
                mask[:] = _move_mask(segmentation, transforms, source)
        instances.gt_masks = BitMasks(torch.from_numpy(stack))
        instances.gt_boxes = Boxes(tight_boxes(stack))
    left = instances.gt_boxes.nonempty()
    return instances if left.all() else instances[left]


def tight_boxes(masks: Array) -> torch.Tensor:
    """(N, H, W) bool -> (N, 4) float32 x0, y0, x1, y1, all 0 where a mask is empty."""
    xywh = np.array([cv2.boundingRect(mask.view(np.uint8)) for mask in masks], np.float32).reshape(-1, 4)
    return torch.from_numpy(np.hstack([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]]))


def _check_polygons(segmentations: Sequence[Any]) -> None:
    for polygon in (p for s in segmentations if isinstance(s, list) for p in s):
        if len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(f"a polygon of {len(polygon)} numbers; it has x and y of three corners at least")


def _moves_pixels_alone(transforms: Any) -> bool:
    nested = getattr(transforms, "transforms", ())
    return isinstance(transforms, PixelMap) or any(_moves_pixels_alone(t) for t in nested)


def _draw(mask: Array, polygons: Sequence[Array]) -> None:
    """Fill (H, W) False with what :func:`_polygons_to_rle` covers, looking at the polygons' surroundings alone."""
    corners = np.concatenate(polygons).reshape(-1, 2)[:, ::-1]
    first = np.floor(corners.min(axis=0)).clip(0, mask.shape).astype(int)
    last = (np.ceil(corners.max(axis=0)) + 1).clip(first, mask.shape).astype(int)
    if (last > first).all():
        shift = np.array([first[1], first[0]])
        near = [(polygon.reshape(-1, 2) - shift).reshape(-1) for polygon in polygons]
        rle = _polygons_to_rle(near, (int(last[0] - first[0]), int(last[1] - first[1])))
        mask[first[0] : last[0], first[1] : last[1]] = mask_util.decode(rle)


def compressed_rle(shape: Any, size: tuple[int, int]) -> dict[str, Any]:
    """COCO's compressed RLE of a segmentation: polygons, uncompressed or compressed RLE.

    Args:
        shape: as it stands in COCO's files.
        size: height and width of the image, which polygons do not state.
    """
    if isinstance(shape, list):
        return mask_util.merge(mask_util.frPyObjects(shape, *size))
    if isinstance(shape["counts"], list):
        return mask_util.frPyObjects(shape, *size)
    return shape


def _move_mask(segmentation: Any, transforms: TransformList, source: tuple[int, int]) -> Array:
    segmentation = compressed_rle(segmentation, source)
    if tuple(segmentation["size"]) != source:
        raise ValueError(f"a mask of (height, width) {tuple(segmentation['size'])} on an image of {source}")
    return transforms.apply_segmentation(mask_util.decode(segmentation).view(bool))


def _move_polygons(polygons: Sequence[Any], transforms: TransformList) -> list[Array]:
    moved = transforms.apply_polygons([np.array(p, np.float64).reshape(-1, 2) for p in polygons])
    return [np.asarray(polygon).reshape(-1) for polygon in moved]


def _polygons_to_rle(polygons: Sequence[Any], size: tuple[int, int]) -> dict[str, Any]:
    return mask_util.merge(mask_util.frPyObjects([np.asarray(p, np.float64).tolist() for p in polygons], *size))
