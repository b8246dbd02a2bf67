"""Keypoints of instances, moved with their image: left and right change places where it is mirrored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.data.transforms import TransformList
from torch import Tensor

from seg_ext.errors import UserError


def mirrored_keypoints(datasets: Sequence[str]) -> tuple[int, ...]:
    """For each keypoint the one whose place it takes in a mirrored image, by the data sets' metadata.

    Args:
        datasets: names; those with instances have "keypoint_names", and the pairs of "keypoint_flip_map" alike.

    Raises:
        UserError: metadata are missing, differ, or name a keypoint that is none.
    """
    found: dict[str, tuple[int, ...]] = {}
    for name in datasets:
        metadata = MetadataCatalog.get(name)
        if metadata.get("thing_classes") is None:  # label maps alone
            continue
        for key in ("keypoint_names", "keypoint_flip_map"):
            if metadata.get(key) is None:
                raise UserError(f"data set {name} has no {key} in its metadata, and MODEL.KEYPOINT_ON needs it")
        names, pairs = list(metadata.keypoint_names), dict(metadata.keypoint_flip_map)
        unknown = [point for point in (*pairs, *pairs.values()) if point not in names]
        if unknown:
            raise UserError(f"data set {name}: keypoint_flip_map has {unknown[0]!r}; keypoint_names are {names}")
        pairs |= {right: left for left, right in pairs.items()}
        found[name] = tuple(names.index(pairs.get(point, point)) for point in names)
    if len(set(found.values())) != 1:
        raise UserError(f"DATASETS.TRAIN {', '.join(found) or 'is empty'}: takes sets with the same keypoints")
    return next(iter(found.values()))


def move_keypoints(
    annotations: Sequence[Mapping[str, Any]],
    transforms: TransformList,
    *,
    source: tuple[int, int],
    size: tuple[int, int],
    mirrored: Sequence[int],
) -> Tensor:
    """Move the K keypoints of N annotations with their image.

    Args:
        annotations: each with "keypoints": x, y, visibility of every point in turn.
        transforms: as applied to the image, of points too.
        source: height and width before the transforms.
        size: height and width after them.
        mirrored: of :func:`mirrored_keypoints`.

    Returns:
        (N, K, 3) float32: x, y in pixels, and visibility (0 not labelled, 1 hidden, 2 visible); a point that is not
        labelled or that left the image is 0 in all three.

    Raises:
        ValueError: an annotation with another number of points.
    """
    count = len(mirrored)
    for annotation in annotations:
        if len(annotation["keypoints"]) != 3 * count:
            numbers = len(annotation["keypoints"])
            raise ValueError(f"keypoints of {numbers} numbers; takes x, y and visibility of {count} points")
    points = np.array([annotation["keypoints"] for annotation in annotations], np.float64).reshape(-1, count, 3)
    points[..., :2] = transforms.apply_coords(points[..., :2].reshape(-1, 2)).reshape(-1, count, 2)
    inside = ((points[..., :2] >= 0) & (points[..., :2] <= size[::-1])).all(axis=-1)
    points[~inside | (points[..., 2] == 0)] = 0
    if _mirrors(transforms, source):
        points = points[:, list(mirrored)]
    return torch.from_numpy(points.astype(np.float32))


def _mirrors(transforms: TransformList, source: tuple[int, int]) -> bool:
    """Whether a step to the right and a step down, from the middle of the image, turn the other way round."""
    middle = np.array([source[1] / 2, source[0] / 2])
    corner, right, down = transforms.apply_coords(middle + np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    return bool(np.linalg.det(np.stack([right - corner, down - corner])) < 0)
