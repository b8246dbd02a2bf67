"""ISPRS Potsdam: 38 aerial orthophotos of 6000x6000 pixels, 5 cm each, six classes (ISPRS WG II/4)."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from seg_ext.data.datasets import catalog
from seg_ext.data.datasets.catalog import root_hint
from seg_ext.data.datasets.folder import load_folder, semantic_metadata

CLASSES = {
    "impervious surface": (255, 255, 255),
    "building": (0, 0, 255),
    "low vegetation": (0, 255, 255),
    "tree": (0, 255, 0),
    "car": (255, 255, 0),
    "clutter": (255, 0, 0),
}
SPLITS = {
    "train": (
        *("2_10", "2_11", "2_12", "3_10", "3_11", "3_12", "4_10", "4_11", "4_12", "5_10", "5_11", "5_12"),
        *("6_7", "6_8", "6_9", "6_10", "6_11", "6_12", "7_7", "7_8", "7_9", "7_10", "7_11", "7_12"),
    ),
    "test": (
        *("2_13", "2_14", "3_13", "3_14", "4_13", "4_14", "4_15"),
        *("5_13", "5_14", "5_15", "6_13", "6_14", "6_15", "7_13"),
    ),
}
FOLDERS = {"potsdam_train": ("train", "labels"), "potsdam_test": ("test", "labels")}
FOLDERS["potsdam_test_eroded"] = ("test", "labels_eroded")


def register(root: Path) -> None:
    """Register potsdam_train, potsdam_test and potsdam_test_eroded under ``root/potsdam``.

    Layout, as ``seg-ext data prepare potsdam`` makes it: ``{train,test}/images/`` and ``{train,test}/labels/``, crops
    of the orthophotos with ids 0..5 in the order of the benchmark and 255 void; ``test/labels_eroded/`` has the
    labels without class boundaries (void), on which the benchmark's scores are stated. The split is the official one,
    24 and 14 areas; the labels of area 7_10 are known to be faulty and are kept. The clutter class counts in our mean
    IoU, not in the benchmark's mean F1. The data are ISPRS's, for research, and must be cited.
    """
    hint = f"run `seg-ext data prepare potsdam --source DIR` or {root_hint(root, 'potsdam')}"
    for name, (split, labels) in FOLDERS.items():
        base = root / "potsdam" / split
        folders = base / "images", base / labels
        metadata = semantic_metadata(list(CLASSES), list(CLASSES.values()), folders=folders)
        catalog.register(name, partial(load_folder, name, *folders, hint=hint), **metadata)
