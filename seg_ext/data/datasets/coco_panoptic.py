"""Panoptic data in COCO's format with semantic label maps beside it (Kirillov et al. 2019)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from seg_ext.data.datasets.catalog import Records, register, require
from seg_ext.data.datasets.coco_instances import load_coco
from seg_ext.data.datasets.folder import semantic_metadata
from seg_ext.data.palette import palette
from seg_ext.errors import UserError

THING_ID = 1  # category ids of derived data
STUFF_ID = 2


def register_coco_panoptic(
    name: str,
    root: str | Path,
    split: str,
    *,
    thing_classes: Sequence[str],
    stuff_classes: Sequence[str],
    thing_ids: Mapping[int, int],
    stuff_ids: Mapping[int, int],
    thing_sem_seg_ids: Sequence[int],
    thing_colors: Sequence[Sequence[int]] | None = None,
    stuff_colors: Sequence[Sequence[int]] | None = None,
    hint: str = "check the folder it was registered with",
) -> None:
    """Register one split of ``root``; a second call with the same name replaces the first.

    Layout: ``{split}/images/``, ``{split}/semantic/NAME.png`` with train ids and 255 ignored,
    ``instances_{split}.json``, ``panoptic_{split}/NAME.png`` and ``panoptic_{split}.json``.

    Args:
        name: as it is called in DATASETS.TRAIN and DATASETS.TEST.
        root: folder of the data set.
        split: name of the split.
        thing_classes: names of the instances' classes.
        stuff_classes: names of the SEMANTIC classes, things included where the label maps have them.
        thing_ids: category id in the JSON files -> instance class.
        stuff_ids: category id in the JSON files -> semantic class.
        thing_sem_seg_ids: semantic classes that denote things.
        thing_colors: RGB by instance class; None for the default palette.
        stuff_colors: RGB by semantic class; None for the default palette.
        hint: what to do about a missing file, for errors.
    """
    base = Path(root)
    files = {
        "image_root": base / split / "images",
        "sem_seg_root": base / split / "semantic",
        "json_file": base / f"instances_{split}.json",
        "panoptic_root": base / f"panoptic_{split}",
        "panoptic_json": base / f"panoptic_{split}.json",
    }
    ids = {"thing_dataset_id_to_contiguous_id": dict(thing_ids), "stuff_dataset_id_to_contiguous_id": dict(stuff_ids)}
    metadata = semantic_metadata(stuff_classes, stuff_colors) | {
        "evaluator_type": "coco_panoptic_seg",
        "thing_classes": list(thing_classes),
        "thing_colors": [tuple(color) for color in thing_colors or palette(len(thing_classes) + 1)[1:]],
        "thing_sem_seg_ids": tuple(thing_sem_seg_ids),
        **ids,
        **{key: str(file) for key, file in files.items()},
    }
    register(name, partial(_load, name, files, thing_ids, stuff_ids, hint), **metadata)


def register_derived(
    name: str, root: str | Path, split: str, *, thing_class: str, stuff_class: str = "background", **options: Any
) -> None:
    """Register a split that :func:`seg_ext.data.derive.derive_coco` wrote: one class of things on one of stuff."""
    register_coco_panoptic(
        name,
        root,
        split,
        thing_classes=[thing_class],
        stuff_classes=[stuff_class, thing_class],
        thing_ids={THING_ID: 0},
        stuff_ids={STUFF_ID: 0, THING_ID: 1},
        thing_sem_seg_ids=(1,),
        **options,
    )


def _load(
    name: str, files: Mapping[str, Path], thing_ids: Mapping[int, int], stuff_ids: Mapping[int, int], hint: str
) -> Records:
    for file in files.values():
        require(name, file, hint)
    records = load_coco(name, files["json_file"], files["image_root"], hint=hint)
    try:
        annotations = json.loads(files["panoptic_json"].read_text())["annotations"]
        segments = {a["image_id"]: _segments(a["segments_info"], thing_ids, stuff_ids) for a in annotations}
        pngs = {a["image_id"]: files["panoptic_root"] / a["file_name"] for a in annotations}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"data set {name}: {files['panoptic_json']} is no COCO panoptic file: {error!r}") from error
    for record in records:
        image, key = Path(record["file_name"]), record["image_id"]
        if key not in segments:
            raise UserError(f"data set {name}: {files['panoptic_json']} has no annotation of {image.name} (id {key})")
        semantic = files["sem_seg_root"] / f"{image.stem}.png"
        for file in (semantic, pngs[key]):
            require(name, file, hint)
        record |= {
            "sem_seg_file_name": str(semantic),
            "pan_seg_file_name": str(pngs[key]),
            "segments_info": segments[key],
        }
    return records


def _segments(
    infos: Sequence[Mapping[str, Any]], thing_ids: Mapping[int, int], stuff_ids: Mapping[int, int]
) -> list[dict[str, Any]]:
    return [
        dict(info) | {"isthing": isthing, "category_id": (thing_ids if isthing else stuff_ids)[info["category_id"]]}
        for info in infos
        for isthing in (info["category_id"] in thing_ids,)
    ]
