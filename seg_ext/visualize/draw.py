"""Semantic, instance and panoptic segmentations drawn over images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from detectron2.data.catalog import Metadata
from numpy.typing import ArrayLike

from seg_ext.data.palette import palette
from seg_ext.errors import UserError
from seg_ext.visualize.canvas import Canvas
from seg_ext.visualize.scene import Array, Scene, scene_from_output, scene_from_record


def draw_semantic(
    image: Array,
    labels: Array,
    colors: ArrayLike,
    *,
    names: Sequence[str] | None = None,
    ignore: int = 255,
    alpha: float = 0.55,
    legend: bool = True,
) -> Array:
    """Tint and border classes; name them where there is room, the others in a legend below.

    Args:
        image: (H, W, 3).
        labels: (H, W) class ids.
        colors: (K, 3).
        names: K names; None for no text.
        ignore: id that stays untinted.
        alpha: opacity of the tint.
        legend: False leaves the strip below out, so that equal images give equal sizes.
    """
    table = np.asarray(colors, np.uint8).reshape(-1, 3)
    ids = np.where(labels == ignore, 0, np.asarray(labels, np.int64) + 1)
    wrong = (ids > len(table)) | ((ids < 1) & (labels != ignore))
    if wrong.any():
        raise UserError(f"labels {labels[wrong].min()}..{labels[wrong].max()}: takes 0..{len(table) - 1}, or {ignore}")
    if names is not None and len(names) != len(table):
        raise UserError(f"{len(names)} class names for {len(table)} colours; give one a colour")
    canvas = Canvas(image, ids, np.vstack([[0, 0, 0], table]), alpha)
    if names is not None:
        present = np.flatnonzero(np.bincount(ids.ravel())[1:]).tolist()
        printed = canvas.write({c + 1: names[c] for c in present})
        if legend:
            canvas.legend([(names[c], table[c].tolist()) for c in present if c + 1 not in printed])
    return canvas.picture


def draw_instances(
    image: Array,
    masks: Array,
    *,
    boxes: ArrayLike | None = None,
    scores: ArrayLike | None = None,
    classes: ArrayLike | None = None,
    names: Sequence[str] | None = None,
    colors: ArrayLike | None = None,
) -> Array:
    """Tint and outline instances, smaller ones in front; boxes and captions only where there is room.

    Args:
        image: (H, W, 3).
        masks: (N, H, W) bool.
        boxes: (N, 4) xyxy, pixels.
        scores: (N,), printed.
        classes: (N,) indices into names, printed when there are several names.
        names: class names.
        colors: (N, 3); a distinct one for each when None.
    """
    masks, count = np.asarray(masks, bool), len(masks)
    for what, values in {"boxes": boxes, "scores": scores, "classes": classes, "colors": colors}.items():
        if values is not None and len(np.asarray(values)) != count:
            raise UserError(f"{len(np.asarray(values))} {what} for {count} masks; give each mask one")
    table = np.vstack([[0, 0, 0], _distinct(count) if colors is None else np.reshape(colors, (count, 3))])
    canvas = Canvas(image, _stack(masks) if masks.ndim == 3 else masks, table, 0.45)
    if boxes is not None:
        canvas.outline(np.asarray(boxes, float).reshape(count, 4), table[1:])
    captions = [""] * count
    if classes is not None and names is not None and len(names) > 1:
        captions = [class_name(names, c) for c in np.asarray(classes).tolist()]
    if scores is not None:
        captions = [f"{c} {s:.2f}".strip() for c, s in zip(captions, np.asarray(scores).tolist(), strict=True)]
    canvas.write(dict(enumerate(captions, start=1)))
    return canvas.picture


def draw_panoptic(
    image: Array,
    id_map: Array,
    segments_info: Sequence[Mapping[str, Any]],
    metadata: Metadata,
    *,
    legend: bool = True,
) -> Array:
    """Tint stuff in its class's colour and every thing in its own; names where there is room, stuff's else below.

    Args:
        image: (H, W, 3).
        id_map: (H, W) segment ids; those without a segment stay untinted.
        segments_info: dicts with ``id``, ``isthing``, ``category_id`` (contiguous).
        metadata: names and colours.
        legend: as in :func:`draw_semantic`.
    """
    found, inverse = np.unique(id_map, return_inverse=True)
    index = {s["id"]: i for i, s in enumerate(segments_info, start=1)}
    ids = np.array([index.get(i, 0) for i in found.tolist()])[inverse].reshape(id_map.shape)
    stuff = {i: s["category_id"] for i, s in enumerate(segments_info, start=1) if not s["isthing"]}
    table = np.vstack([[0, 0, 0], _distinct(len(segments_info))])
    table[list(stuff)] = stuff_colors(metadata, max(stuff.values(), default=0) + 1)[list(stuff.values())]
    names = {True: metadata.get("thing_classes") or (), False: metadata.get("stuff_classes") or ()}
    texts = {i: class_name(names[bool(s["isthing"])], s["category_id"]) for i, s in enumerate(segments_info, start=1)}
    canvas = Canvas(image, ids, table, 0.5)
    printed = canvas.write(texts)
    if legend:
        canvas.legend([(texts[i], table[i].tolist()) for i in stuff if i not in printed])
    return canvas.picture


def draw_scene(image: Array, scene: Scene, metadata: Metadata, *, legend: bool = True) -> dict[str, Array]:
    """A picture for each part of a scene: ``"semantic"``, ``"instance"``, ``"panoptic"``; ``legend`` as in them."""
    pictures = {}
    if scene.semantic is not None:
        names = metadata.get("stuff_classes")
        ignore = metadata.get("ignore_label", 255)
        colors = stuff_colors(metadata, 1 + int(scene.semantic[scene.semantic != ignore].max(initial=0)))
        pictures["semantic"] = draw_semantic(image, scene.semantic, colors, names=names, ignore=ignore, legend=legend)
    if scene.instance is not None:
        objects, names = scene.instance, metadata.get("thing_classes")
        pictures["instance"] = draw_instances(
            image, objects.masks, boxes=objects.boxes, scores=objects.scores, classes=objects.classes, names=names
        )
    if scene.panoptic is not None:
        pictures["panoptic"] = draw_panoptic(image, *scene.panoptic, metadata, legend=legend)
    return pictures


def draw_prediction(image: Array, output: Mapping[str, Any], metadata: Metadata) -> dict[str, Array]:
    """A picture for each task in a model's output, instances scored below 0.5 left out."""
    return draw_scene(image, scene_from_output(output, min_score=0.5), metadata)


def draw_ground_truth(image: Array, record: Mapping[str, Any], metadata: Metadata) -> dict[str, Array]:
    """A picture for each task that a data-set record has ground truth for."""
    return draw_scene(image, scene_from_record(record, metadata), metadata)


def stuff_colors(metadata: Metadata, count: int) -> Array:
    """(K, 3) RGB uint8 of the semantic classes, of ``count`` or more.

    Raises:
        UserError: the data set has fewer.
    """
    names = metadata.get("stuff_classes") or range(count)
    if len(names) < count:
        raise UserError(f"semantic class {count - 1} in a picture: data set '{metadata.name}' has 0..{len(names) - 1}")
    return np.array(metadata.get("stuff_colors") or palette(len(names)), np.uint8).reshape(-1, 3)


def class_name(names: Sequence[str], index: int) -> str:
    """The name of a class, or its number where it has none."""
    return names[index] if index < len(names) else str(index)


def _distinct(count: int) -> Array:
    """(count, 3) vivid RGB: hues a golden angle apart, in three steps of brightness."""
    index = np.arange(count)
    hue = (index * 0.61803399 + 0.08) % 1 * 180
    hsv = np.stack([hue, 225 - 45 * (index % 2), 255 - 35 * (index % 3)], 1).astype(np.uint8)
    return cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB)[0] if count else hsv


def _stack(masks: Array) -> Array:
    """(H, W) ids, 0 where no mask is, i + 1 where mask i is the smallest of (N, H, W) that cover the pixel."""
    count, height, width = masks.shape
    by_size = np.argsort(-masks.sum((1, 2)), kind="stable")
    rank = np.empty(count, np.uint16 if count < 2**16 else np.uint32)
    rank[by_size] = np.arange(1, count + 1)
    rows = max(1, 2**22 // max(1, count * width))
    strips = [(masks[:, y : y + rows] * rank[:, None, None]).max(0, initial=0) for y in range(0, height, rows)]
    return np.concatenate([[0], by_size + 1])[np.concatenate(strips)]
