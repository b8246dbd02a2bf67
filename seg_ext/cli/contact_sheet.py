"""Grids of small pictures with captions: ground truth as it is stored, and as the mapper gives it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.data.catalog import Metadata
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as mask_util

from seg_ext.data.check import Report
from seg_ext.data.image_io import as_picture, read_picture
from seg_ext.data.mapper import SegMapper
from seg_ext.data.stream import seeded
from seg_ext.visualize import Objects, Scene, draw_ground_truth, draw_instances, draw_scene

Array = NDArray[Any]
Strip = tuple[str, list[Array]]  # caption and RGB pictures beside each other

_PANEL = (320, 240)  # width and height, pixels
_LINE, _GAP = 20, 8  # height of a caption, space between strips
_COLUMNS = 4  # panels beside each other
_GROUND, _INK = (24, 27, 32), (255, 255, 255)


def truth_sheet(reports: Sequence[Report]) -> bytes:
    """A PNG of the reports' examples, the image beside each kind of its ground truth."""
    named = len(reports) > 1
    return _grid(
        [
            (f"{report.name}: {caption}" if named else caption, pictures)
            for report in reports
            for caption, pictures in _truth_strips(report)
        ]
    )


def mapped_sheet(
    records: Sequence[tuple[str, Mapping[str, Any]]], mapper: SegMapper, *, count: int, seed: int
) -> bytes:
    """A PNG of some records as the mapper gives them: the image, its labels, instances and targets.

    Args:
        records: data set and record.
        mapper: in training or at test time.
        count: records at most.
        seed: of their choice and of the augmentations of each, so that an image looks the same in a longer sheet.
    """
    chosen = np.random.default_rng(seed).permutation(len(records))[:count].tolist()
    strips, pool = [], [record for _, record in records]
    for index in chosen:
        name, record = records[index]
        with seeded(seed, index):
            mapped = mapper(record, pool)
        caption = f"{name}: " * (len({name for name, _ in records}) > 1) + Path(record["file_name"]).name
        strips.append((caption, list(_mapped_panels(mapped, mapper, name))))
    return _grid(strips)


def _truth_strips(report: Report) -> Iterator[Strip]:
    meta = MetadataCatalog.get(report.name)
    for record in report.examples:
        image = read_picture(record["file_name"])
        shown = record
        if "segments_info" in record:
            shown = record | {"segments_info": [s for s in record["segments_info"] if s["category_id"] >= 0]}
        yield Path(record["file_name"]).name, [image, *draw_ground_truth(image, shown, meta).values()]


def _mapped_panels(mapped: Mapping[str, Any], mapper: SegMapper, name: str) -> Iterator[Array]:
    """Pictures of one mapped record."""
    image = as_picture(mapped["image"].numpy().transpose(1, 2, 0), mapper.image_format)
    yield image
    meta = MetadataCatalog.get(name)
    if "sem_seg" in mapped:
        labels = mapped["sem_seg"].numpy()
        meta = Metadata(**{**meta.as_dict(), "ignore_label": mapper.ignore})
        yield draw_scene(image, Scene(semantic=labels), meta)["semantic"]
    if "instances" in mapped:
        found = mapped["instances"]
        boxes, classes = found.gt_boxes.tensor.numpy(), found.gt_classes.numpy()
        if found.has("gt_masks"):
            masks = _masks(found.gt_masks, image.shape[:2])
            yield draw_scene(image, Scene(instance=Objects(masks, classes, boxes)), meta)["instance"]
        else:
            yield draw_instances(image, np.zeros((len(boxes), *image.shape[:2]), bool), boxes=boxes)
    for target in mapper.targets:
        if target.key in mapped:
            counts = mapped["sem_seg"].numpy() != mapper.ignore
            yield _heat(mapped[target.key].numpy(), counts)


def _masks(masks: Any, size: tuple[int, int]) -> Array:
    """(N, H, W) bool of BitMasks or PolygonMasks."""
    if hasattr(masks, "tensor"):
        return masks.tensor.numpy()
    found = np.zeros((len(masks), *size), bool)
    for mask, polygons in zip(found, masks.polygons, strict=True):
        mask[:] = mask_util.decode(mask_util.merge(mask_util.frPyObjects([p.tolist() for p in polygons], *size)))
    return found


def _heat(values: Array, counts: Array) -> Array:
    """RGB of (H, W) numbers, dark to bright from their least to their greatest; black where they do not count."""
    shown = values[counts] if counts.any() else values
    low, high = float(shown.min()), float(shown.max())
    scaled = np.rint(255 * ((values - low) / (high - low if high > low else 1)).clip(0, 1)).astype(np.uint8)
    return cv2.applyColorMap(scaled, cv2.COLORMAP_INFERNO)[..., ::-1] * counts[..., None]


def _grid(strips: Sequence[Strip]) -> bytes:
    """All strips, row by row, in a PNG."""
    panels = max((len(pictures) for _, pictures in strips), default=1)
    columns = min(max(1, _COLUMNS // panels), max(1, len(strips)))
    cell = panels * _PANEL[0] + _GAP, _PANEL[1] + _LINE + _GAP
    rows = -(-len(strips) // columns)
    sheet = Image.new("RGB", (columns * cell[0] + _GAP, max(1, rows) * cell[1] + _GAP), _GROUND)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    for index, (caption, pictures) in enumerate(strips):
        x, y = _GAP + index % columns * cell[0], _GAP + index // columns * cell[1]
        for place, picture in enumerate(pictures):
            sheet.paste(_fitted(picture), (x + place * _PANEL[0], y))
        draw.text((x, y + _PANEL[1] + 2), _clipped(caption, panels * _PANEL[0], draw, font), _INK, font)
    return cv2.imencode(".png", np.asarray(sheet)[..., ::-1])[1].tobytes()


def _fitted(picture: Array) -> Image.Image:
    """A panel with the whole picture in its middle."""
    height, width = picture.shape[:2]
    factor = min((_PANEL[0] - 4) / width, _PANEL[1] / height)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_NEAREST)
    panel = Image.new("RGB", _PANEL, _GROUND)
    panel.paste(Image.fromarray(small), ((_PANEL[0] - size[0]) // 2, (_PANEL[1] - size[1]) // 2))
    return panel


def _clipped(text: str, width: int, draw: ImageDraw.ImageDraw, font: Any) -> str:
    """The end of a text that is too long."""
    while draw.textlength(text, font) > width - 4:
        text = "…" + text[2:]
    return text
