"""Instance masks of panoptic maps, and panoptic maps of instance masks: made once, kept in a cache folder."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from detectron2.structures import BoxMode
from PIL import Image
from pycocotools import mask as mask_util

from seg_ext.data.datasets.catalog import Records
from seg_ext.data.datasets.coco_panoptic import segment_colors
from seg_ext.data.derive import derive_image
from seg_ext.data.instances import compressed_rle
from seg_ext.data.label_io import read_panoptic_ids
from seg_ext.errors import UserError

Record = Mapping[str, Any]

logger = logging.getLogger(__name__)


def with_instances(records: Records, cache: Path) -> Records:
    """Add "annotations" to records of panoptic maps: a box and an RLE for every segment of a thing, by id.

    Args:
        records: with "pan_seg_file_name" and "segments_info".
        cache: folder of ``instances.json``, made where needed; a changed PNG or segment is derived anew.

    Raises:
        UserError: a PNG cannot be read or lacks a segment, or the cache cannot be written.
    """
    keys = [_digest(r["pan_seg_file_name"], _stamp(r["pan_seg_file_name"]), r["segments_info"]) for r in records]
    made = {key: partial(_annotations, record) for key, record in zip(keys, records, strict=True)}
    kept = _kept(cache / "instances.json", made)
    return [record | {"annotations": kept[key]} for key, record in zip(keys, records, strict=True)]


def with_panoptic(records: Records, cache: Path, *, categories: Mapping[int, int], background: int) -> Records:
    """Add panoptic and semantic maps to records of instances: later annotations cover earlier ones.

    Semantic class 0 is what no annotation covers, class k + 1 is instance class k. The maps and their COCO panoptic
    file are ``panoptic/*.png`` and ``panoptic.json`` in the cache.

    Args:
        records: with "annotations" that have masks.
        cache: folder of the maps, made where needed; a changed annotation is drawn anew.
        categories: instance class -> category id in ``panoptic.json``.
        background: category id of what no annotation covers.

    Raises:
        UserError: an annotation without a mask or with one of another size, or the cache cannot be written.
    """
    folder = cache / "panoptic"
    _make(folder)
    semantic = {background: 0} | {category: k + 1 for k, category in categories.items()}
    things = {category: k for k, category in categories.items()}
    keys = [_digest(r["height"], r["width"], r["annotations"], list(categories.items()), background) for r in records]
    files = [folder / f"{key}.png" for key in keys]
    made = {
        file.stem: partial(_draw, record, file, categories, background)
        for file, record in zip(files, records, strict=True)
    }
    kept = _kept(cache / "segments.json", made, whole=lambda key: (folder / f"{key}.png").is_file())
    listed = [
        {"image_id": r["image_id"], "file_name": file.name, "segments_info": kept[file.stem]}
        for r, file in zip(records, files, strict=True)
    ]
    _write(cache / "panoptic.json", json.dumps({"annotations": listed}))
    return [
        record
        | {
            "pan_seg_file_name": str(file),
            "segments_info": [
                s | {"isthing": s["category_id"] in things, "category_id": (semantic | things)[s["category_id"]]}
                for s in kept[file.stem]
            ],
            "sem_seg_file_name": str(file),
            "sem_seg_label_colors": segment_colors(kept[file.stem], semantic),
        }
        for record, file in zip(records, files, strict=True)
    ]


def _annotations(record: Record) -> Records:
    """Annotations of the things of a panoptic map."""
    file, ids = record["pan_seg_file_name"], read_panoptic_ids(record["pan_seg_file_name"])
    things = {s["id"]: s for s in record["segments_info"] if s["isthing"]}
    derived = derive_image(np.where(np.isin(ids, list(things)), ids, 0))
    shown = {segment["id"]: rle for segment, rle in zip(derived.segments, derived.rles, strict=False)}
    boxes = {segment["id"]: segment["bbox"] for segment in derived.segments}
    lacking = things.keys() - shown.keys()
    if lacking:
        raise UserError(f"{file}: no pixel of segment {min(lacking)}, which its JSON lists")
    return [
        {
            "bbox": boxes[i],
            "bbox_mode": int(BoxMode.XYWH_ABS),
            "category_id": segment["category_id"],
            "iscrowd": segment.get("iscrowd", 0),
            "segmentation": shown[i],
        }
        for i, segment in sorted(things.items())
    ]


def _draw(record: Record, file: Path, categories: Mapping[int, int], background: int) -> Records:
    """Write the panoptic PNG of a record's annotations; returns its segments."""
    size, annotations = (record["height"], record["width"]), record["annotations"]
    ids = np.full(size, len(annotations) + 1, np.int32)
    for i, annotation in enumerate(annotations, start=1):
        ids[_mask(record, annotation.get("segmentation"), size)] = i
    rgb = (ids[..., None] >> np.array([0, 8, 16]) & 255).astype(np.uint8)
    partial_file = file.with_suffix(f".{uuid4().hex}")
    Image.fromarray(rgb).save(partial_file, format="PNG")
    partial_file.replace(file)
    return [
        {
            "id": i,
            "category_id": background if i > len(annotations) else categories[annotations[i - 1]["category_id"]],
            "area": area,
            "iscrowd": 0 if i > len(annotations) else annotations[i - 1].get("iscrowd", 0),
        }
        for i, area in zip(*(x.tolist() for x in np.unique(ids, return_counts=True)), strict=True)
    ]


def _mask(record: Record, shape: Any, size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool of polygons or an RLE."""
    if not shape:
        raise UserError(f"{record['file_name']}: an annotation has no segmentation, which label maps are drawn from")
    try:
        mask = mask_util.decode(compressed_rle(shape, size)).view(bool)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{record['file_name']}: a segmentation is neither polygons nor an RLE: {error}") from error
    if mask.shape != size:
        raise UserError(f"{record['file_name']}: a mask of {mask.shape} on an image of {size}")
    return mask


def _kept(
    file: Path, made: Mapping[str, Callable[[], Any]], *, whole: Callable[[str], bool] = lambda key: True
) -> dict[str, Any]:
    """Values by key: those the file holds and ``whole`` accepts, the others made now; the file then holds these."""
    try:
        stored = json.loads(file.read_bytes()) if file.is_file() else {}
    except ValueError:
        stored = {}  # an interrupted disk: all is made anew
    missing = [key for key in made if key not in stored or not whole(key)]
    if missing:
        logger.info("deriving ground truth of %d images into %s", len(missing), file.parent)
        _make(file.parent)
        stored |= {key: made[key]() for key in missing}
        stored = {key: stored[key] for key in made}
        _write(file, json.dumps(stored))
    return stored


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made: {error.strerror}; name a folder for it with 'cache'") from error


def _write(file: Path, text: str) -> None:
    """Replace a file whole, so that processes that do the same at the same time do no harm."""
    if file.is_file() and file.read_text() == text:
        return
    try:
        partial_file = file.with_suffix(f".{uuid4().hex}")
        partial_file.write_text(text)
        partial_file.replace(file)
    except OSError as error:
        raise UserError(f"{file}: cannot be written: {error.strerror}; name a folder for it with 'cache'") from error


def _digest(*content: Any) -> str:
    return hashlib.sha256(json.dumps(content, default=_text).encode()).hexdigest()[:24]


def _text(value: Any) -> str:
    return value.decode("ascii") if isinstance(value, bytes) else str(value)


def _stamp(file: str) -> tuple[int, int]:
    status = os.stat(file)
    return status.st_mtime_ns, status.st_size
