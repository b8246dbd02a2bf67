"""Panoptic data in COCO's format with semantic label maps beside it (Kirillov et al. 2019)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from seg_ext.data.datasets.catalog import Records, register, require
from seg_ext.data.datasets.coco_instances import class_of, load_coco
from seg_ext.data.datasets.folder import semantic_metadata
from seg_ext.data.datasets.split import Choose, choose_all
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
    things = {"classes": thing_classes, "colors": thing_colors, "ids": thing_ids}
    stuff = {"classes": stuff_classes, "colors": stuff_colors, "ids": stuff_ids}
    register_files(name, files, things, stuff, thing_sem_seg_ids=thing_sem_seg_ids, hint=hint)


def register_files(
    name: str,
    files: Mapping[str, Path],
    things: Mapping[str, Any],
    stuff: Mapping[str, Any],
    *,
    thing_sem_seg_ids: Sequence[int],
    hint: str,
) -> None:
    """Register a panoptic set whose files lie anywhere; a second call with the same name replaces the first.

    Args:
        name: as it is called in DATASETS.TRAIN and DATASETS.TEST.
        files: "image_root", "sem_seg_root" (NAME.png), "json_file" (instances), "panoptic_root", "panoptic_json".
        things: "classes", "ids" and, unless they are the default palette's, "colors" of
            :func:`register_coco_panoptic`'s things.
        stuff: likewise of its semantic classes.
        thing_sem_seg_ids: likewise.
        hint: likewise.
    """
    thing_ids, stuff_ids = dict(things["ids"]), dict(stuff["ids"])
    colors = things.get("colors") or palette(len(things["classes"]) + 1)[1:]
    metadata = semantic_metadata(stuff["classes"], stuff.get("colors")) | {
        "evaluator_type": "coco_panoptic_seg",
        "thing_classes": list(things["classes"]),
        "thing_colors": [tuple(color) for color in colors],
        "thing_sem_seg_ids": tuple(thing_sem_seg_ids),
        "thing_dataset_id_to_contiguous_id": thing_ids,
        "stuff_dataset_id_to_contiguous_id": stuff_ids,
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


def load_panoptic(
    name: str,
    json_file: Path,
    panoptic_root: Path,
    image_root: Path,
    *,
    thing_ids: Mapping[int, int],
    stuff_ids: Mapping[int, int],
    hint: str,
    choose: Choose = choose_all,
) -> Records:
    """Records of one panoptic annotation; its PNGs are read as semantic label maps too, void as 255.

    Args:
        name: as it is registered.
        json_file: COCO panoptic.
        panoptic_root: folder of its PNGs.
        image_root: folder of its images.
        thing_ids: category id in the file -> instance class.
        stuff_ids: category id in the file -> semantic class, things included.
        hint: what to do about a missing file, for errors.
        choose: of the images' names in the file, those that are wanted.

    Raises:
        UserError: a file is missing, an image has no annotation, or the file is not COCO's.
    """
    for file in (json_file, panoptic_root, image_root):
        require(name, file, hint)
    try:
        content = json.loads(json_file.read_bytes())
        images = {image["file_name"]: image for image in content["images"]}
        annotated = {a["image_id"]: a for a in content["annotations"]}
        chosen = choose(images)
        lacking = [file for file in sorted(chosen) if images[file]["id"] not in annotated]
        if lacking:
            raise UserError(f"data set {name}: {json_file} has no annotation of {lacking[0]}")
        where, ids = f"{name}: {json_file}", (thing_ids, stuff_ids)
        return [
            _panoptic_record(name, image_root / file, image, panoptic_root, annotated[image["id"]], ids, where, hint)
            for file, image in images.items()
            if file in chosen
        ]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"data set {name}: {json_file} is no COCO panoptic file: {error!r}") from error


def segment_colors(segments: Sequence[Mapping[str, Any]], semantic: Mapping[int, int]) -> dict[tuple[int, ...], int]:
    """Colour of each segment in a panoptic PNG -> semantic class; void's black -> 255.

    Args:
        segments: COCO segments_info, of categories that ``semantic`` has.
        semantic: category id -> semantic class.
    """
    colors = {tuple(segment["id"] >> shift & 255 for shift in (0, 8, 16)): segment for segment in segments}
    return {(0, 0, 0): 255} | {color: semantic[segment["category_id"]] for color, segment in colors.items()}


def _panoptic_record(
    name: str,
    image_file: Path,
    image: Mapping[str, Any],
    panoptic_root: Path,
    annotation: Mapping[str, Any],
    ids: tuple[Mapping[int, int], Mapping[int, int]],
    where: str,
    hint: str,
) -> dict[str, Any]:
    png = panoptic_root / annotation["file_name"]
    for file in (image_file, png):
        require(name, file, hint)
    segments = annotation["segments_info"]
    return {
        "file_name": str(image_file),
        "image_id": image["id"],
        "height": image["height"],
        "width": image["width"],
        "pan_seg_file_name": str(png),
        "segments_info": _segments(segments, *ids, f"{where}: image {image['id']}"),
        "sem_seg_file_name": str(png),
        "sem_seg_label_colors": segment_colors(segments, ids[1]),
    }


def _load(
    name: str, files: Mapping[str, Path], thing_ids: Mapping[int, int], stuff_ids: Mapping[int, int], hint: str
) -> Records:
    for file in files.values():
        require(name, file, hint)
    records = load_coco(name, files["json_file"], files["image_root"], hint=hint)
    try:
        annotations = json.loads(files["panoptic_json"].read_text())["annotations"]
        where = f"{name}: {files['panoptic_json']}"
        segments = {
            a["image_id"]: _segments(a["segments_info"], thing_ids, stuff_ids, f"{where}: image {a['image_id']}")
            for a in annotations
        }
        pngs = {a["image_id"]: files["panoptic_root"] / a["file_name"] for a in annotations}
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
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
    infos: Sequence[Mapping[str, Any]], thing_ids: Mapping[int, int], stuff_ids: Mapping[int, int], where: str
) -> list[dict[str, Any]]:
    known = {**stuff_ids, **thing_ids}
    return [
        dict(info) | {"isthing": category in thing_ids, "category_id": class_of(known, category, where)}
        for info in infos
        for category in (info["category_id"],)
    ]
