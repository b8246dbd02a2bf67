"""ADE20K scene parsing: the benchmark's archive, unpacked and checked."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from seg_ext.data.datasets.ade20k import CLASSES, FOLDER, LABEL_MAP, SPLITS, load
from seg_ext.data.prepare.downloads import NAME, Download, Split, prepare_downloads
from seg_ext.data.prepare.report import Report

DOWNLOADS = (
    Download(
        "ADEChallengeData2016.zip",
        "sceneparsing.csail.mit.edu",
        {
            rf"images/(training|validation)/({NAME}\.jpg)": r"images/\1/\2",
            rf"annotations/(training|validation)/({NAME}\.png)": r"annotations/\1/\2",
            r"(objectInfo150\.txt|sceneCategories\.txt)": r"\1",
        },
    ),
)
OFFICIAL = {"train": 20210, "val": 2000}


def prepare(root: Path, source: Path | None = None) -> Report:
    """Make ``root/ADEChallengeData2016`` as the benchmark has it.

    Args:
        root: folder of all data sets.
        source: the archive, or a folder with it or its content; None to look in ``root``.

    Raises:
        UserError: see :func:`seg_ext.data.prepare.downloads.prepare_downloads`.
    """
    place = root / FOLDER
    splits = [
        Split(f"ade20k_150_{split}", place / "annotations" / SPLITS[split], partial(load, "ade20k", root, split), count)
        for split, count in OFFICIAL.items()
    ]
    return prepare_downloads(place, source, DOWNLOADS, splits, num_classes=len(CLASSES), label_map=LABEL_MAP)
