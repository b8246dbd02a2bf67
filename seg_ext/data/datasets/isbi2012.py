"""ISBI 2012: cell membranes in electron microscopy of a fly's nerve cord (Arganda-Carreras et al. 2015)."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path

from seg_ext.data.datasets import catalog
from seg_ext.data.datasets.catalog import Records, root_hint
from seg_ext.data.datasets.folder import load_folder, semantic_metadata
from seg_ext.data.datasets.pairs import every_fifth

CLASSES = {"cell": (255, 255, 255), "membrane": (0, 0, 0)}
SPLITS = ("train", "val", "trainval")


def register(root: Path) -> None:
    """Register isbi2012_train, _val and _trainval under ``root/isbi2012``.

    Layout: ``train/images/NN.png`` and ``train/labels/NN.png`` with ids 0 cell, 1 membrane; no void. The challenge
    has 30 labelled slices of 512x512 pixels, 4x4x50 nm, of a Drosophila first instar larva's ventral nerve cord; its
    own labels are 255 for cells and 0 for membranes (``seg-ext data prepare isbi2012`` converts them). It has no
    validation split: here every fifth slice, in the order of the names, is validation. Neighbouring slices are alike,
    so the score on them is optimistic. The challenge's page asks to cite its paper; it states no licence.
    """
    for split in SPLITS:
        name = f"isbi2012_{split}"
        folders = root / "isbi2012/train/images", root / "isbi2012/train/labels"
        metadata = semantic_metadata(list(CLASSES), list(CLASSES.values()), folders=folders)
        catalog.register(name, partial(_load, name, root, split), **metadata, choose=partial(_choose, split))


def _load(name: str, root: Path, split: str) -> Records:
    base = root / "isbi2012" / "train"
    hint = f"run `seg-ext data prepare isbi2012` or {root_hint(root, 'isbi2012')}"
    return load_folder(name, base / "images", base / "labels", hint=hint, choose=partial(_choose, split))


def _choose(split: str, names: Iterable[str]) -> set[str]:
    """Of the file names of all slices, those of a split."""
    return {n for i, n in enumerate(sorted(names)) if split == "trainval" or every_fifth(i) == (split == "val")}
