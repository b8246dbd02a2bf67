"""COCO 2017: its archives unpacked, and the label maps that detectron2's coco_2017_*_panoptic sets read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

from seg_ext.data.label_io import read_panoptic_ids, write_label
from seg_ext.data.prepare.downloads import Download, unpack_downloads, wanted
from seg_ext.data.prepare.outputs import count_files, make
from seg_ext.data.prepare.report import Report
from seg_ext.errors import UserError

VOID = 255
SPLITS = ("train2017", "val2017")
_STUFF = [c["id"] for c in COCO_CATEGORIES if not c["isthing"]]
CATEGORY = {c["id"]: 0 for c in COCO_CATEGORIES} | {category: i for i, category in enumerate(_STUFF, 1)}
PAGE = "cocodataset.org/#download"
IMAGES = tuple(
    Download(f"{split}.zip", PAGE, {rf"({split})/(\d+\.jpg)": r"\1/\2"}) for split in ("train2017", "val2017")
)
DOWNLOADS = (
    *IMAGES,
    Download(
        "annotations_trainval2017.zip",
        PAGE,
        {r"annotations/((?:instances|captions|person_keypoints)_(?:train|val)2017\.json)": r"annotations/\1"},
    ),
    Download(
        "panoptic_annotations_trainval2017.zip",
        PAGE,
        {
            r"annotations/(panoptic_(?:train|val)2017\.json)": r"annotations/\1",
            r"(panoptic_(?:train|val)2017)/(\d+\.png)": r"\1/\2",
        },
        nested=r"panoptic_(?:train|val)2017\.zip",
    ),
)


def prepare(root: Path, source: Path | None = None) -> Report:
    """Make ``root/coco`` as detectron2's COCO 2017 sets read it, of whatever is there.

    The archives go to ``{train,val}2017/``, ``annotations/`` and ``panoptic_{train,val}2017/``. Of panoptic annotations
    come ``panoptic_stuff_{train,val}2017/NAME.png``: 0 for all things, 1..53 for the kinds of stuff in the order of
    their ids, and 255 where nothing is annotated (Kirillov et al. 2019, section 5).

    Args:
        root: folder of all data sets.
        source: an archive, or a folder with the archives or their content; None to look in ``root``.

    Raises:
        UserError: see :func:`seg_ext.data.prepare.downloads.unpack_downloads`; no annotations, or damaged ones, or an
            image that they list is missing.
    """
    place = root / "coco"
    written, lines = unpack_downloads(place, source, DOWNLOADS), []
    for split in SPLITS:
        short = split.removesuffix("2017")
        listed = place / "annotations" / f"instances_{split}.json"
        if listed.is_file() and (place / split).is_dir():
            count = _check_images(listed, place / split) if written else count_files(place / split)
            lines.append(f"coco_2017_{short}: {count} images")
        listed = place / "annotations" / f"panoptic_{split}.json"
        if listed.is_file():
            segments = _read(listed)
            to, pngs = place / f"panoptic_stuff_{split}", place / f"panoptic_{split}"
            if not pngs.is_dir():
                raise UserError(f"{pngs} not found: {wanted(root, DOWNLOADS[-1:])}")
            written += make({to / name: partial(_write, pngs / name, ids) for name, ids in segments.items()}, to.name)
            lines.append(f"coco_2017_{short}_panoptic_stuffonly, _separated: {len(segments)} images")
    if not lines:
        raise UserError(f"{place} holds no annotations with their images: {wanted(root, DOWNLOADS)}")
    return Report(place, written > 0, lines)


def _check_images(listed: Path, folder: Path) -> int:
    """The images that an annotation file lists, all of which are there."""
    try:
        names = [image["file_name"] for image in json.loads(listed.read_bytes())["images"]]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{listed} is no COCO instances file: {error!r}") from error
    there = {file.name for file in folder.iterdir()}
    lacking = [name for name in names if name not in there]
    if lacking:
        raise UserError(
            f"{folder} lacks {len(lacking)} images of {listed.name}, the first {lacking[0]}: download again"
        )
    return len(names)


def _read(listed: Path) -> dict[str, dict[int, int]]:
    """Name of each PNG -> its segments' ids -> semantic ids."""
    try:
        return {
            Path(a["file_name"]).name: {s["id"]: CATEGORY[s["category_id"]] for s in a["segments_info"]}
            for a in json.loads(listed.read_bytes())["annotations"]
        }
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{listed} is no COCO panoptic file: {error!r}") from error


def _write(png: Path, semantic: Mapping[int, int], path: Path) -> None:
    ids, place = np.unique(read_panoptic_ids(png), return_inverse=True)
    unknown = sorted(set(ids.tolist()) - {0} - semantic.keys())
    if unknown:
        raise UserError(f"{png}: segment {unknown[0]} is not in its JSON file")
    table = np.array([semantic.get(i, VOID) for i in ids.tolist()], np.uint8)
    write_label(path, table[place].reshape(place.shape))
