"""Ultrasound nerve segmentation: Kaggle's training images and masks, unpacked and checked."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from seg_ext.data.datasets.catalog import Records
from seg_ext.data.datasets.nerve import CLASSES, LABEL_MAP, load
from seg_ext.data.prepare.downloads import Download, Split, prepare_downloads
from seg_ext.data.prepare.report import Report

PAGE = "kaggle.com/c/ultrasound-nerve-segmentation/data (Download All; or train.zip)"
DOWNLOADS = (
    Download(
        "ultrasound-nerve-segmentation.zip", PAGE, {r"(\d+_\d+(?:_mask)?\.tif)": r"train/\1"}, nested=r"train\.zip"
    ),
)
OFFICIAL = 5635


def prepare(root: Path, source: Path | None = None) -> Report:
    """Make ``root/nerve/train`` of Kaggle's training images and their masks.

    Args:
        root: folder of all data sets.
        source: the archive, its train.zip, or a folder with them or their content; None to look in ``root``.

    Raises:
        UserError: see :func:`seg_ext.data.prepare.downloads.prepare_downloads`.
    """
    place = root / "nerve"
    both = Split("nerve_train and nerve_val", place / "train", partial(_load, root), OFFICIAL)
    return prepare_downloads(place, source, DOWNLOADS, [both], num_classes=len(CLASSES), label_map=LABEL_MAP)


def _load(root: Path) -> Records:
    return [record for split in ("train", "val") for record in load("nerve", root, split)]
