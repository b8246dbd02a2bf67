"""COCO-Stuff: the archive of its pixel maps beside COCO's images, unpacked and checked."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from seg_ext.data.datasets.coco_stuff import CATEGORIES, LABEL_MAP, load
from seg_ext.data.prepare.coco import IMAGES
from seg_ext.data.prepare.downloads import Download, Split, prepare_downloads
from seg_ext.data.prepare.report import Report

MAPS = Path("annotations/stuffthingmaps")
DOWNLOADS = (
    Download(
        "stuffthingmaps_trainval2017.zip",
        "github.com/nightrome/cocostuff",
        {r"(train|val)2017/(\d+\.png)": rf"{MAPS.as_posix()}/\g<1>2017/\2"},
    ),
    *IMAGES,
)
OFFICIAL = {"train": 118287, "val": 5000}


def prepare(root: Path, source: Path | None = None) -> Report:
    """Make ``root/coco/annotations/stuffthingmaps/{train,val}2017`` beside ``root/coco/{train,val}2017``.

    Args:
        root: folder of all data sets.
        source: an archive, or a folder with the archives or their content; None to look in ``root``.

    Raises:
        UserError: see :func:`seg_ext.data.prepare.downloads.prepare_downloads`.
    """
    place = root / "coco"
    splits = [
        Split(
            f"coco_stuff_171_{split}",
            place / f"{split}2017",  # the maps of all splits come together
            partial(load, "coco_stuff", root, f"{split}2017"),
            count,
        )
        for split, count in OFFICIAL.items()
    ]
    return prepare_downloads(place, source, DOWNLOADS, splits, num_classes=len(CATEGORIES), label_map=LABEL_MAP)
