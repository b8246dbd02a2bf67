"""Pictures of semantic, instance and panoptic segmentations over images, drawn with OpenCV and NumPy.

Images and pictures are RGB uint8, (H, W, 3) and (sH + legend, sW, 3): small images are enlarged by an integer factor s
so that text is legible. What does not belong together, in shape or number, raises UserError.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from detectron2.data.catalog import Metadata
from detectron2.structures import BoxMode
from numpy.typing import ArrayLike, NDArray
from pycocotools import mask as mask_util

from seg_ext.data.label_io import read_panoptic_ids, read_record_label
from seg_ext.data.palette import palette
from seg_ext.errors import UserError

Array = NDArray[Any]

_FONT = cv2.FONT_HERSHEY_DUPLEX
_LIGHT, _DARK = (255, 255, 255), (24, 27, 32)  # RGB: text, and its outline and the legend's ground
_SHORT, _LONG = 320, 1600  # pixels: pictures are enlarged until a side reaches its number


@dataclass(frozen=True)
class Objects:
    """Instances: masks (N, H, W) bool, classes (N,), boxes (N, 4) xyxy pixels, scores (N,), crowd regions (H, W)."""

    masks: Array
    classes: Array
    boxes: Array | None = None
    scores: Array | None = None
    crowd: Array | None = None


@dataclass(frozen=True)
class Scene:
    """What is known of one image, each or None: semantic ids (H, W), objects, panoptic ids (H, W) with segments."""

    semantic: Array | None = None
    instance: Objects | None = None
    panoptic: tuple[Array, list[dict[str, Any]]] | None = None


def scene_from_output(output: Mapping[str, Any], *, min_score: float = 0.0) -> Scene:
    """The arrays of a model's output for one image.

    Instances scored below ``min_score`` are left out, and so are boxes without masks and panoptic ids without segments.
    """
    labels = objects = panoptic = None
    if "sem_seg_labels" in output or "sem_seg" in output:
        found = output["sem_seg_labels"] if "sem_seg_labels" in output else output["sem_seg"].argmax(dim=0)
        labels = found.cpu().numpy()
    if "instances" in output and output["instances"].has("pred_masks"):
        found = output["instances"].to("cpu")
        found = found[found.scores >= min_score]
        boxes = found.pred_boxes.tensor.numpy() if found.has("pred_boxes") else None
        objects = Objects(found.pred_masks.bool().numpy(), found.pred_classes.numpy(), boxes, found.scores.numpy())
    if "panoptic_seg" in output and output["panoptic_seg"][1] is not None:
        ids, segments = output["panoptic_seg"]
        panoptic = ids.cpu().numpy(), list(segments)
    return Scene(labels, objects, panoptic)


def scene_from_record(record: Mapping[str, Any], metadata: Metadata) -> Scene:
    """The ground truth of a data-set record, read from its files; crowds become one region.

    Raises:
        UserError: an annotation file cannot be read or holds ids out of range.
    """
    semantic = objects = panoptic = None
    if "sem_seg_file_name" in record:
        semantic = read_record_label(
            record,
            metadata,
            num_classes=len(metadata.get("stuff_classes") or ()) or None,
            ignore=metadata.get("ignore_label", 255),
        )
    if record.get("annotations") is not None:
        objects = _annotated_objects(record)
    if "pan_seg_file_name" in record:
        panoptic = read_panoptic_ids(record["pan_seg_file_name"]), list(record["segments_info"])
    return Scene(semantic, objects, panoptic)


def _annotated_objects(record: Mapping[str, Any]) -> Objects:
    annotations = [a for a in record["annotations"] if a.get("segmentation")]
    crowd = np.array([a.get("iscrowd", 0) for a in annotations], bool)
    masks = np.zeros((len(annotations), record["height"], record["width"]), bool)
    for mask, annotation in zip(masks, annotations, strict=True):
        rle = _rle(annotation["segmentation"], *mask.shape)
        if tuple(rle["size"]) != mask.shape:
            raise UserError(f"{record.get('file_name')}: a mask of {tuple(rle['size'])} on an image of {mask.shape}")
        x, y, width, height = mask_util.toBbox(rle).astype(int)
        window = np.s_[y : y + height, x : x + width]
        mask[window] = mask_util.decode(rle)[window]
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
    return Objects(
        masks[~crowd],
        np.array([a["category_id"] for a in annotations], int)[~crowd],
        np.array(boxes, float).reshape(-1, 4)[~crowd],
        crowd=masks[crowd].any(0) if crowd.any() else None,
    )


def _rle(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """A compressed RLE of polygons, or of a compressed or uncompressed RLE."""
    if isinstance(segmentation, dict) and not isinstance(segmentation["counts"], list):
        return segmentation
    rles = mask_util.frPyObjects(segmentation, height, width)
    return mask_util.merge(rles) if isinstance(rles, list) else rles


def draw_semantic(
    image: Array,
    labels: Array,
    colors: ArrayLike,
    *,
    names: Sequence[str] | None = None,
    ignore: int = 255,
    alpha: float = 0.55,
) -> Array:
    """Tint and border classes; name them where there is room, the others in a legend below.

    Args:
        image: (H, W, 3).
        labels: (H, W) class ids.
        colors: (K, 3).
        names: K names; None for no text.
        ignore: id that stays untinted.
        alpha: opacity of the tint.
    """
    table = np.asarray(colors, np.uint8).reshape(-1, 3)
    ids = np.where(labels == ignore, 0, np.asarray(labels, np.int64) + 1)
    wrong = (ids > len(table)) | ((ids < 1) & (labels != ignore))
    if wrong.any():
        raise UserError(f"labels {labels[wrong].min()}..{labels[wrong].max()}: takes 0..{len(table) - 1}, or {ignore}")
    if names is not None and len(names) != len(table):
        raise UserError(f"{len(names)} class names for {len(table)} colours; give one a colour")
    canvas = _Canvas(image, ids, np.vstack([[0, 0, 0], table]), alpha)
    if names is not None:
        present = np.flatnonzero(np.bincount(ids.ravel())[1:]).tolist()
        printed = canvas.write({c + 1: names[c] for c in present})
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
    canvas = _Canvas(image, _stack(masks) if masks.ndim == 3 else masks, table, 0.45)
    if boxes is not None:
        canvas.outline(np.asarray(boxes, float).reshape(count, 4), table[1:])
    captions = [""] * count
    if classes is not None and names is not None and len(names) > 1:
        captions = [class_name(names, c) for c in np.asarray(classes).tolist()]
    if scores is not None:
        captions = [f"{c} {s:.2f}".strip() for c, s in zip(captions, np.asarray(scores).tolist(), strict=True)]
    canvas.write(dict(enumerate(captions, start=1)))
    return canvas.picture


def draw_panoptic(image: Array, id_map: Array, segments_info: Sequence[Mapping[str, Any]], metadata: Metadata) -> Array:
    """Tint stuff in its class's colour and every thing in its own; names where there is room, stuff's else below.

    Args:
        image: (H, W, 3).
        id_map: (H, W) segment ids; those without a segment stay untinted.
        segments_info: dicts with ``id``, ``isthing``, ``category_id`` (contiguous).
        metadata: names and colours.
    """
    found, inverse = np.unique(id_map, return_inverse=True)
    index = {s["id"]: i for i, s in enumerate(segments_info, start=1)}
    ids = np.array([index.get(i, 0) for i in found.tolist()])[inverse].reshape(id_map.shape)
    stuff = {i: s["category_id"] for i, s in enumerate(segments_info, start=1) if not s["isthing"]}
    table = np.vstack([[0, 0, 0], _distinct(len(segments_info))])
    table[list(stuff)] = stuff_colors(metadata, max(stuff.values(), default=0) + 1)[list(stuff.values())]
    names = {True: metadata.get("thing_classes") or (), False: metadata.get("stuff_classes") or ()}
    texts = {i: class_name(names[bool(s["isthing"])], s["category_id"]) for i, s in enumerate(segments_info, start=1)}
    canvas = _Canvas(image, ids, table, 0.5)
    printed = canvas.write(texts)
    canvas.legend([(texts[i], table[i].tolist()) for i in stuff if i not in printed])
    return canvas.picture


def draw_scene(image: Array, scene: Scene, metadata: Metadata) -> dict[str, Array]:
    """A picture for each part of a scene: ``"semantic"``, ``"instance"``, ``"panoptic"``."""
    pictures = {}
    if scene.semantic is not None:
        names = metadata.get("stuff_classes")
        ignore = metadata.get("ignore_label", 255)
        colors = stuff_colors(metadata, 1 + int(scene.semantic[scene.semantic != ignore].max(initial=0)))
        pictures["semantic"] = draw_semantic(image, scene.semantic, colors, names=names, ignore=ignore)
    if scene.instance is not None:
        objects, names = scene.instance, metadata.get("thing_classes")
        pictures["instance"] = draw_instances(
            image, objects.masks, boxes=objects.boxes, scores=objects.scores, classes=objects.classes, names=names
        )
    if scene.panoptic is not None:
        pictures["panoptic"] = draw_panoptic(image, *scene.panoptic, metadata)
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


def _edges(ids: Array) -> Array:
    """(H, W) bool: pixels of a region that touch another id."""
    edges = np.zeros(ids.shape, bool)
    for one, other in ((np.s_[:, 1:], np.s_[:, :-1]), (np.s_[1:], np.s_[:-1])):
        differ = ids[one] != ids[other]
        edges[one] |= differ
        edges[other] |= differ
    return edges & (ids > 0)


class _Canvas:
    """A picture in the making: an image (H, W, 3), enlarged when small, to which boxes and texts are added.

    Its regions, ids (H, W) in 0..n, are tinted with (n + 1, 3) colors at opacity alpha, fully on borders, and 0 not.
    """

    def __init__(self, image: Array, ids: Array, colors: Array, alpha: float) -> None:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise UserError(f"image is {image.dtype} {image.shape}; a picture needs uint8 (H, W, 3)")
        if ids.shape != image.shape[:2]:
            raise UserError(f"an image of {image.shape[:2]} pixels and a map of {ids.shape} do not belong together")
        height, width = ids.shape
        self.factor = max(1, min(math.ceil(_SHORT / min(height, width)), _LONG // max(height, width)))
        reach = self.factor * math.sqrt(height * width)
        self.text_height = max(10, round(reach / 56))  # of a capital letter, pixels
        self.line = max(1, round(reach / 500))
        self.taken = np.zeros((0, 4))  # xyxy of the texts
        self.ids = ids.repeat(self.factor, 0).repeat(self.factor, 1)
        picture = cv2.resize(image, self.ids.shape[::-1], interpolation=cv2.INTER_CUBIC)
        full = colors.astype(np.uint8).take(self.ids, 0)
        tinted = cv2.addWeighted(picture, 1 - alpha, full, alpha, 0)
        edges = cv2.dilate(_edges(self.ids).view(np.uint8), np.ones((self.line, self.line), np.uint8)) > 0
        tinted[edges] = full[edges]
        self.picture = np.where((self.ids > 0)[..., None], tinted, picture)

    def outline(self, boxes: Array, colors: Array) -> None:
        """Draw those xyxy boxes that are large against the text."""
        boxes = np.rint(boxes * self.factor).astype(int)
        roomy = (boxes[:, 2:] - boxes[:, :2] >= 7 * self.text_height).all(1)
        for (x0, y0, x1, y1), color in zip(boxes[roomy].tolist(), colors[roomy].tolist(), strict=True):
            cv2.rectangle(self.picture, (x0, y0), (x1 - 1, y1 - 1), color, self.line)

    def write(self, texts: Mapping[int, str]) -> set[int]:
        """Print each region's text inside it, larger regions first, where it fits; returns the ids printed."""
        printed: set[int] = set()
        if not any(texts.values()):
            return printed
        step = math.ceil(max(self.ids.shape) / 480)
        ids, area, depth, points = _interiors(self.ids[::step, ::step], self.text_height / step / 2)
        for index in np.argsort(-area, kind="stable").tolist():
            region, room = int(ids[index]), 2 * step * depth[index]
            if not texts.get(region):
                continue
            width, height, base = _extent(texts[region], self.text_height)
            corner = points[index] * step - np.array([width, height]) // 2
            x, y = np.maximum(np.minimum(corner, np.array(self.ids.shape[::-1]) - (width + 2, height + 2)), 2).tolist()
            box = np.array([x - 4, y - 4, x + width + 4, y + height + base + 2])
            free = not ((self.taken[:, :2] < box[2:]) & (self.taken[:, 2:] > box[:2])).all(1).any()
            if free and width <= 2.2 * room and width * height <= 0.6 * area[index] * step**2:
                _print(self.picture, texts[region], (x, y), self.text_height)
                self.taken = np.vstack([self.taken, box])
                printed.add(region)
        return printed

    def legend(self, entries: Sequence[tuple[str, Sequence[int]]]) -> None:
        """Add a strip below the picture, a swatch and a name for each (name, colour)."""
        if not entries:
            return
        em = self.text_height
        cell = max(_extent(name, em)[0] for name, _ in entries) + 3 * em
        width = max(self.picture.shape[1], cell + em)
        columns = (width - em) // cell
        strip = np.full((em + 2 * em * math.ceil(len(entries) / columns), width, 3), _DARK, np.uint8)
        for index, (name, color) in enumerate(entries):
            row, column = divmod(index, columns)
            x, y = em + column * cell, em + 2 * em * row
            cv2.rectangle(strip, (x, y), (x + em - 1, y + em - 1), color, cv2.FILLED)
            _print(strip, name, (x + em + em // 2, y), em)
        margin = ((0, 0), (0, width - self.picture.shape[1]), (0, 0))
        self.picture = np.vstack([np.pad(self.picture, margin), strip])


def _interiors(ids: Array, least: float) -> tuple[Array, Array, Array, Array]:
    """Ids of the regions of (H, W) with room for a disc of radius ``least``, their areas, and the largest disc in each.

    The disc is given as its radius and its centre (x, y).
    """
    inside = (~_edges(ids) & (ids > 0)).astype(np.uint8)
    depth = cv2.distanceTransform(np.pad(inside, 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
    y, x = np.nonzero(depth >= max(least, 1))
    region, depth = ids[y, x], depth[y, x]
    count = np.maximum(np.bincount(region), 1)
    off_centre = np.hypot(*(v - (np.bincount(region, v) / count)[region] for v in (x, y)))
    order = np.lexsort((depth - 0.1 * off_centre, region))  # of like discs, the one near the middle comes last
    found = np.flatnonzero(np.bincount(region))
    last = order[np.searchsorted(region[order], found, side="right") - 1]
    return found, np.bincount(ids.ravel())[found], depth[last], np.stack([x[last], y[last]], 1)


def _extent(text: str, height: int) -> tuple[int, int, int]:
    """Width, height and depth below the base line of a text, pixels."""
    (width, above), base = cv2.getTextSize(text, _FONT, cv2.getFontScaleFromHeight(_FONT, height, 1), 1)
    return width, above, base


def _print(picture: Array, text: str, corner: tuple[int, int], height: int) -> None:
    """Print a text, light with a dark outline, its top left corner at (x, y); what leaves the picture is cut."""
    width, ascent, base = _extent(text, height)
    pad = max(2, height // 5)
    ink = np.zeros((ascent + base + 2 * pad, width + 2 * pad), np.uint8)
    scale = cv2.getFontScaleFromHeight(_FONT, height, 1)
    cv2.putText(ink, text, (pad, pad + ascent), _FONT, scale, 255, 1, cv2.LINE_AA)
    outline = cv2.dilate(ink, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * pad - 1,) * 2))
    left, top = corner[0] - pad, corner[1] - pad
    area = picture[max(0, top) : max(0, top + len(ink)), max(0, left) : max(0, left + ink.shape[1])]
    for layer, color in ((outline, _DARK), (ink, _LIGHT)):
        opacity = layer[max(0, -top) :, max(0, -left) :][: area.shape[0], : area.shape[1], None] / np.float32(255)
        area[:] = np.rint(area * (1 - opacity) + np.array(color, np.float32) * opacity)
