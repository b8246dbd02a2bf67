"""Data Science Bowl 2018: one label image, COCO and panoptic annotations from one mask a nucleus."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from seg_ext.data.datasets.dsb2018 import CLASSES, SPLITS
from seg_ext.data.datasets.folder import load_folder
from seg_ext.data.derive import derive_coco
from seg_ext.data.label_io import read_image, read_label
from seg_ext.data.prepare.archive import opened
from seg_ext.data.prepare.instances import annotate, coco_instances
from seg_ext.data.prepare.outputs import Outputs, count_files, finish, is_finished, made, make, write_json
from seg_ext.data.prepare.report import Report
from seg_ext.errors import UserError

SEED = 0
HELD_OUT = 0.1  # of the images
WANTED = (
    "give --source DIR, the folder or archive stage1_train (ID/images/ID.png, ID/masks/*.png)"
    " from kaggle.com/c/data-science-bowl-2018 or bbbc.broadinstitute.org/BBBC038"
)


def prepare(root: Path, source: Path | None = None) -> Report:
    """Make ``root/dsb2018`` from Kaggle's stage1_train, where it is not there yet, and ``root/dsb2018_panoptic``.

    10 % of the images, drawn with a fixed seed, are validation. Nucleus k of a label image is the k-th mask in the
    order of the file names; a pixel of two masks belongs to the first. RGBA images become RGB.

    Args:
        root: folder of all data sets.
        source: folder or archive of stage1_train; None where ``root/dsb2018`` is in place.

    Raises:
        UserError: no source, masks that do not fit their image, or a place that cannot be written.
    """
    place, derived = root / "dsb2018", root / "dsb2018_panoptic"
    written = 0
    if source is None and not all(count_files(place / split / "labels") for split in SPLITS):
        raise UserError(f"{place} holds no nuclei: {WANTED}")
    if source is not None and not is_finished(place):
        with opened(source, made(place)) as folder:
            outputs = _outputs(place, folder)
            written = make(outputs, "dsb2018")
        finish(place, outputs)
    lines = []
    for split in SPLITS:
        written += _write_instances(place, split)
        written += _derive(place, derived, split)
        lines.append(f"dsb2018_*_{split}: {count_files(place / split / 'images')} images")
    return Report(place, written > 0, lines)


def _outputs(place: Path, folder: Path) -> Outputs:
    found = {image.stem: image for image in sorted(folder.rglob("*/images/*.png")) if _masks(image)}
    if not found:
        raise UserError(f"{folder} holds no ID/images/ID.png with masks: {WANTED}")
    held_out = set(random.Random(SEED).sample(sorted(found), max(1, round(HELD_OUT * len(found)))))
    return {
        place / ("val" if name in held_out else "train") / kind / f"{name}.png": partial(write, image)
        for name, image in found.items()
        for kind, write in (("images", _write_image), ("labels", _write_labels))
    }


def _masks(image: Path) -> Sequence[Path]:
    return sorted((image.parents[1] / "masks").glob("*.png"))


def _write_image(image: Path, path: Path) -> None:
    Image.fromarray(read_image(image, "RGB")).save(path)


def _write_labels(image: Path, path: Path) -> None:
    labels = np.zeros(read_image(image).shape[:2], np.uint16)
    for k, file in enumerate(_masks(image), 1):
        mask = read_label(file)
        if mask.shape != labels.shape:
            raise UserError(f"{file} is {mask.shape}, but its image {labels.shape}; they must be equal")
        labels[(mask > 0) & (labels == 0)] = k
    Image.fromarray(labels).save(path)


def _write_instances(place: Path, split: str) -> int:
    """Number of files written: 1, or 0 where it is there."""
    file = place / f"instances_{split}_rle.json"
    if file.exists():
        return 0
    records = load_folder(f"dsb2018/{split}", place / split / "images", place / split / "labels", hint=WANTED)
    images = (
        (
            {"file_name": Path(r["file_name"]).name, "height": r["height"], "width": r["width"]},
            annotate(read_label(r["sem_seg_file_name"]), 1),
        )
        for r in records
    )
    write_json(file, coco_instances(images, CLASSES[1:]))
    return 1


def _derive(place: Path, derived: Path, split: str) -> int:
    """Copy images and labels and derive the rest from them, unless that is done; the number of files copied."""
    outputs = {
        derived / split / kind / file.name: partial(shutil.copyfile, file)
        for kind in ("images", "labels")
        for file in sorted((place / split / kind).glob("*.png"))
    }
    copied = make(outputs, f"dsb2018_panoptic {split}")
    if copied or not (derived / f"instances_{split}.json").exists():
        derive_coco(derived, split, thing_class=CLASSES[1])
        return max(1, copied)
    return 0
