"""Cityscapes: its archives unpacked, and the train ids that detectron2's cityscapes_fine_sem_seg sets read."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from detectron2.data.datasets.builtin_meta import CITYSCAPES_CATEGORIES

from seg_ext.data.label_io import image_size, read_label, write_label
from seg_ext.data.prepare.downloads import NAME, Download, counted, unpack_downloads, wanted
from seg_ext.data.prepare.outputs import make
from seg_ext.data.prepare.report import Report
from seg_ext.errors import UserError

PAGE = "cityscapes-dataset.com/downloads"
KINDS = r"(?:labelIds\.png|instanceIds\.png|color\.png|polygons\.json)"
DOWNLOADS = (
    Download(
        "leftImg8bit_trainvaltest.zip",
        PAGE,
        {rf"leftImg8bit/(train|val|test)/({NAME}/{NAME}_leftImg8bit\.png)": r"leftImg8bit/\1/\2"},
    ),
    Download(
        "gtFine_trainvaltest.zip",
        PAGE,
        {rf"gtFine/(train|val|test)/({NAME}/{NAME}_gtFine_{KINDS})": r"gtFine/\1/\2"},
    ),
)
OFFICIAL = {"train": 2975, "val": 500}
TRAIN_IDS = {c["id"]: c["trainId"] for c in CITYSCAPES_CATEGORIES}
VOID = 255
_IDS = 34


def prepare(root: Path, source: Path | None = None) -> Report:
    """Make ``root/cityscapes/{leftImg8bit,gtFine}`` and every ``*_gtFine_labelTrainIds.png`` of train and val.

    Train ids are 0..18 for the 19 classes of the benchmark and 255 for the others, as the data set's own scripts give
    them (Cordts et al. 2016).

    Args:
        root: folder of all data sets.
        source: an archive, or a folder with the archives or their content; None to look in ``root``.

    Raises:
        UserError: see :func:`seg_ext.data.prepare.downloads.unpack_downloads`; an image without labels, or labels of
            other ids or sizes.
    """
    place = root / "cityscapes"
    written, found, lines = unpack_downloads(place, source, DOWNLOADS), 0, []
    for split, official in OFFICIAL.items():
        pairs = _pairs(place, split)
        outputs = {
            ids.with_name(ids.name.replace("_labelIds", "_labelTrainIds")): partial(_write, image, ids)
            for image, ids in pairs.items()
        }
        written += make(outputs, f"cityscapes {split}", alone=False)
        lines.append(counted(f"cityscapes_fine_sem_seg_{split}", len(pairs), official))
        found += len(pairs)
    if not found:
        raise UserError(f"{place} holds no images: {wanted(root, DOWNLOADS)}")
    return Report(place, written > 0, lines)


def _pairs(place: Path, split: str) -> dict[Path, Path]:
    """Image -> its labels."""
    pairs = {}
    for image in sorted((place / "leftImg8bit" / split).glob("*/*_leftImg8bit.png")):
        name = image.name.replace("_leftImg8bit", "_gtFine_labelIds")
        pairs[image] = place / "gtFine" / split / image.parent.name / name
        if not pairs[image].is_file():
            raise UserError(f"{pairs[image]}, the labels of {image.name}, not found: {wanted(place.parent, DOWNLOADS)}")
    return pairs


def _write(image: Path, labels: Path, path: Path) -> None:
    ids = read_label(labels, num_classes=_IDS, ignore=VOID)
    if ids.shape != image_size(image):
        raise UserError(f"{labels} is {ids.shape}, but its image {image_size(image)}; they must be equal")
    table = np.full(256, VOID, np.uint8)
    table[list(TRAIN_IDS)] = list(TRAIN_IDS.values())
    write_label(path, table[ids])
