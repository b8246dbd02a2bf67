"""Semantic, instance and panoptic ground truth from instance label maps: 0 is background, 1..N are instances."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as mask_util

from seg_ext.data.datasets.coco_panoptic import STUFF_ID, THING_ID
from seg_ext.data.datasets.folder import load_folder
from seg_ext.data.label_io import read_record_label, write_label
from seg_ext.data.palette import palette
from seg_ext.errors import UserError

Record = Mapping[str, Any]
Segments = list[dict[str, Any]]

_MOST_SEGMENTS = 2**24 - 1  # ids of a panoptic PNG, less the background's


@dataclass(frozen=True)
class Derived:
    """Ground truth of one image.

    Attributes:
        semantic: (H, W), 0 background, 1 instance.
        panoptic: (H, W) segment ids: the instances' own, and for the background the greatest one + 1.
        segments: COCO segments_info, the instances by id, then the background; areas and boxes in pixels.
        rles: compressed COCO RLE of each instance, by id.
    """

    semantic: NDArray[np.uint8]
    panoptic: NDArray[np.int32]
    segments: Segments
    rles: Segments


def derive_image(labels: NDArray[np.integer]) -> Derived:
    """Derive all ground truths of one image; instances that touch stay apart, parts of one instance stay together.

    Args:
        labels: (H, W) ids, 0 background; ids may have gaps.
    """
    background = int(labels.max(initial=0)) + 1
    panoptic = np.where(labels > 0, labels.astype(np.int32), np.int32(background))
    ids, areas = np.unique(panoptic, return_counts=True)
    rles = _encode(panoptic)
    segments = [
        {
            "id": i,
            "category_id": STUFF_ID if i == background else THING_ID,
            "area": area,
            "bbox": box.tolist(),
            "iscrowd": 0,
        }
        for i, area, box in zip(ids.tolist(), areas.tolist(), mask_util.toBbox(rles), strict=True)
    ]
    return Derived((labels > 0).astype(np.uint8), panoptic, segments, rles[: len(ids) - (background in ids)])


def derive_coco(root: str | Path, split: str, *, thing_class: str, stuff_class: str = "background") -> dict[str, int]:
    """Write what :func:`seg_ext.data.datasets.coco_panoptic.register_derived` reads.

    From ``{split}/images/`` and ``{split}/labels/`` come ``{split}/semantic/``, ``panoptic_{split}/``,
    ``panoptic_{split}.json`` and ``instances_{split}.json``. They are written aside and, once complete, moved to
    their places, the instances file last.

    Args:
        root: folder of the data set.
        split: name of the split.
        thing_class: name of the instances' class.
        stuff_class: name of the background.

    Returns:
        Counts of "images" and "instances".

    Raises:
        UserError: no images, an image without a label map, sizes that differ, or ids that a panoptic PNG cannot hold.
    """
    base = Path(root)
    images, labels = base / split / "images", base / split / "labels"
    records = load_folder(f"{base.name}/{split}", images, labels, hint="instance labels are derived from it")
    if not records:
        raise UserError(f"{images} holds no images")
    thing = {"id": THING_ID, "name": thing_class, "isthing": 1}
    stuff = {"id": STUFF_ID, "name": stuff_class, "isthing": 0}
    with tempfile.TemporaryDirectory(prefix=".derive-", dir=base) as temporary:
        new = Path(temporary)
        for folder in ("semantic", "panoptic"):
            (new / folder).mkdir()
        truths = [_write_images(new, record) for record in records]
        instances = _write_json(new, records, truths, [thing, stuff])
        for name, place in (
            ("semantic", base / split / "semantic"),
            ("panoptic", base / f"panoptic_{split}"),
            ("panoptic.json", base / f"panoptic_{split}.json"),
            ("instances.json", base / f"instances_{split}.json"),
        ):
            if place.is_dir():
                shutil.rmtree(place)
            os.replace(new / name, place)
    return {"images": len(records), "instances": instances}


def _write_images(folder: Path, record: Record) -> tuple[Segments, Segments]:
    """Write the two PNGs of one image; returns its segments and the RLEs of its instances."""
    derived = derive_image(_read(record))
    write_label(folder / "semantic" / _png(record), derived.semantic, palette(2))
    rgb = derived.panoptic[..., None] >> np.array([0, 8, 16]) & 255
    Image.fromarray(rgb.astype(np.uint8)).save(folder / "panoptic" / _png(record))
    return derived.segments, derived.rles


def _write_json(
    folder: Path, records: Sequence[Record], truths: Sequence[tuple[Segments, Segments]], categories: Segments
) -> int:
    """Write the two JSON files; returns the number of instances."""
    images: Segments = []
    instances: Segments = []
    panoptic: Segments = []
    for image_id, (record, (segments, rles)) in enumerate(zip(records, truths, strict=True), 1):
        size = {key: record[key] for key in ("height", "width")}
        images.append({"id": image_id, "file_name": Path(record["file_name"]).name, **size})
        panoptic.append({"image_id": image_id, "file_name": _png(record), "segments_info": segments})
        instances += [
            segment | {"id": i, "image_id": image_id, "segmentation": rle}
            for i, (segment, rle) in enumerate(zip(segments, rles, strict=False), len(instances) + 1)
        ]
    for name, listed, used in (("panoptic", panoptic, categories), ("instances", instances, categories[:1])):
        content = {"images": images, "annotations": listed, "categories": used}
        (folder / f"{name}.json").write_text(json.dumps(content))
    return len(instances)


def _encode(labels: NDArray[np.int32]) -> Segments:
    """RLEs of all ids, ascending, from the runs of the map read column by column."""
    flat = labels.ravel(order="F")
    starts = np.flatnonzero(np.diff(flat, prepend=-1))
    ends = np.append(starts[1:], flat.size)
    values = flat[starts]
    order = np.argsort(values, kind="stable")
    _, first = np.unique(values[order], return_index=True)
    runs = np.split(np.stack([starts, ends], axis=1)[order], first[1:])
    counts = [np.diff(run.ravel(), prepend=0, append=flat.size) for run in runs]
    raw = [{"size": list(labels.shape), "counts": c[: c.size - (c[-1] == 0)].tolist()} for c in counts]
    rles = mask_util.frPyObjects(raw, *labels.shape)
    return [rle | {"counts": rle["counts"].decode("ascii")} for rle in rles]


def _read(record: Record) -> NDArray[np.int32]:
    file = record["sem_seg_file_name"]
    labels, size = read_record_label(record), (record["height"], record["width"])
    if labels.shape != size:
        raise UserError(
            f"{file} is {labels.shape[1]}x{labels.shape[0]}, but {record['file_name']} is {size[1]}x{size[0]};"
            " they must be equal"
        )
    if labels.max(initial=0) >= _MOST_SEGMENTS:
        raise UserError(f"{file}: id {labels.max()}; a panoptic PNG holds ids below {_MOST_SEGMENTS}")
    return labels


def _png(record: Record) -> str:
    return f"{record['image_id']}.png"
