"""Instances in COCO's format (Lin et al. 2014)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path

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
        UserError: a file is missing, or the annotations are not COCO's.
    """
    for file in (json_file, image_root):
        require(name, file, hint)
    try:
        records = load_coco_json(str(json_file), str(image_root), name if thing_ids is None else None)
        for annotation in chain.from_iterable(r["annotations"] for r in records if thing_ids is not None):
            annotation["category_id"] = (thing_ids or {})[annotation["category_id"]]
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        raise UserError(f"data set {name}: {json_file} is no COCO instances file: {error!r}") from error
    names = [os.path.relpath(record["file_name"], image_root) for record in records]
    chosen = choose(names)
    records = [record for record, file in zip(records, names, strict=True) if file in chosen]
    for record in records:
        require(name, Path(record["file_name"]), hint)
    return records
