"""Aerial imagery of Dubai: satellite images, five classes (MBRSC and Humans in the Loop 2020)."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from seg_ext.data.datasets import catalog
from seg_ext.data.datasets.catalog import root_hint
from seg_ext.data.datasets.folder import load_folder, semantic_metadata

CLASSES = {
    "water": (0xE2, 0xA9, 0x29),
    "land": (0x84, 0x29, 0xF6),
    "road": (0x6E, 0xC1, 0xE4),
    "building": (0x3C, 0x10, 0x98),
    "vegetation": (0xFE, 0xDD, 0x3A),
}
VOID = ((0x9B, 0x9B, 0x9B), (0, 0, 0))  # unlabelled, and beyond the image
SPLITS = ("train", "val")


def register(root: Path) -> None:
    """Register aerial_dubai_train and aerial_dubai_val under ``root/aerial_dubai``.

    Layout: ``{train,val}/images/tileT_part_PPP.jpg`` and ``{train,val}/labels/tileT_part_PPP.png`` with ids 0..4 and
    255 void. ``seg-ext data prepare aerial_dubai`` makes it from Kaggle's 8 tiles of 9 parts (509x544 to 2149x1479
    pixels) with their colour masks. The colours are those of the masks, which differ from the source's classes.json.
    Parts of one tile touch without overlap and lie in both splits: the score is optimistic about other places. The
    data set's Kaggle page states CC0.
    """
    hint = f"run `seg-ext data prepare aerial_dubai --source DIR` or {root_hint(root, 'aerial_dubai')}"
    for split in SPLITS:
        name, base = f"aerial_dubai_{split}", root / "aerial_dubai" / split
        folders = base / "images", base / "labels"
        metadata = semantic_metadata(list(CLASSES), list(CLASSES.values()), folders=folders)
        catalog.register(name, partial(load_folder, name, *folders, hint=hint), **metadata)
