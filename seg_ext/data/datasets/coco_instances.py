"""Instances in COCO's format (Lin et al. 2014)."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from detectron2.data.datasets.coco import load_coco_json

from seg_ext.data.datasets.catalog import Records, register, require
from seg_ext.data.datasets.split import Choose, choose_all
from seg_ext.data.palette import palette
from seg_ext.errors import UserError


def register_coco_instances(
    name: str,
    json_file: Path,
    image_root: Path,
    *,
    thing_classes: Sequence[str],
    thing_ids: Mapping[int, int],
    thing_colors: Sequence[Sequence[int]] | None = None,
    hint: str,
) -> None:
    """Register one annotation file; a second call with the same name replaces the first.

    Args:
        name: as it is called in DATASETS.TRAIN and DATASETS.TEST.
        json_file: COCO instances, polygons or RLEs; RLEs need INPUT.MASK_FORMAT bitmask.
        image_root: folder of its images.
        thing_classes: names of the classes.
        thing_ids: category id in the file -> class.
        thing_colors: RGB by class; None for the default palette.
        hint: what to do about a missing file, for errors.
    """
    register(
        name,
        partial(load_coco, name, json_file, image_root, hint=hint),
        evaluator_type="coco",
        json_file=str(json_file),
        image_root=str(image_root),
        thing_classes=list(thing_classes),
        thing_colors=[tuple(color) for color in thing_colors or palette(len(thing_classes) + 1)[1:]],
        thing_dataset_id_to_contiguous_id=dict(thing_ids),
    )


def load_coco(
    name: str,
    json_file: Path,
    image_root: Path,
    *,
    hint: str,
    thing_ids: Mapping[int, int] | None = None,
    choose: Choose = choose_all,
) -> Records:
    """Records of one annotation file, every chosen image of which exists.

    Args:
        name: as it is registered.
        json_file: COCO instances.
        image_root: folder of its images.
        hint: what to do about a missing file, for errors.
        thing_ids: category id in the file -> class; None for the order of the ids, which must then be the metadata's.
        choose: of the images' names in the file, those that are wanted.

    Raises:
        UserError: a file is missing, the annotations are not COCO's, or one is of an unknown category.
    """
    for file in (json_file, image_root):
        require(name, file, hint)
    try:
        records = load_coco_json(str(json_file), str(image_root), name if thing_ids is None else None)
        for annotation in chain.from_iterable(r["annotations"] for r in records if thing_ids is not None):
            annotation["category_id"] = class_of(thing_ids or {}, annotation["category_id"], f"{name}: {json_file}")
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        if isinstance(error, UserError):
            raise
        _check_categories(name, json_file)
        raise UserError(f"data set {name}: {json_file} is no COCO instances file: {error!r}") from error
    names = [os.path.relpath(record["file_name"], image_root) for record in records]
    chosen = choose(names)
    records = [record for record, file in zip(records, names, strict=True) if file in chosen]
    for record in records:
        require(name, Path(record["file_name"]), hint)
    return records


def class_of(ids: Mapping[int, int], category: Any, where: str) -> int:
    """The class of a category id.

    Args:
        ids: category id -> class.
        category: of an annotation or a segment.
        where: data set and file, for the error.

    Raises:
        UserError: it is none of the ids.
    """
    if category not in ids:
        raise UserError(f"data set {where}: category_id {category!r} is unknown; known are {_listed(list(ids))}")
    return ids[category]


def _check_categories(name: str, json_file: Path) -> None:
    """Refuse an annotation of a category that its own file does not list; a file of another kind passes."""
    try:
        content = json.loads(json_file.read_bytes())
        known = {category["id"]: 0 for category in content["categories"]}
        used = [(annotation.get("id"), annotation["category_id"]) for annotation in content["annotations"]]
    except (KeyError, TypeError, AttributeError, ValueError, OSError):
        return
    for number, category in used:
        class_of(known, category, f"{name}: {json_file}: annotation {number}")


def _listed(ids: Sequence[int]) -> str:
    """Ids in ascending order, neighbours as ranges."""
    ids = sorted(ids)
    starts = [i for i, j in zip(ids, [None, *ids], strict=False) if j is None or i != j + 1]
    ends = [i for i, j in zip(ids, [*ids[1:], None], strict=True) if j is None or j != i + 1]
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True)) or "none"
