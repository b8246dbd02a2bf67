"""Ultrasound nerve segmentation: the brachial plexus in ultrasound images of the neck (Kaggle 2016)."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

from seg_ext.data.datasets import catalog
from seg_ext.data.datasets.catalog import Records, require, root_hint
from seg_ext.data.datasets.folder import semantic_metadata
from seg_ext.data.datasets.pairs import Pair, every_fifth, load_pairs
from seg_ext.errors import UserError

CLASSES = ("background", "nerve")
LABEL_MAP = {255: 1}


def register(root: Path) -> None:
    """Register nerve_train and nerve_val under ``root/nerve``.

    Layout, as unpacked from Kaggle's train.zip: ``train/S_I.tif``, subject S and image I, and
    ``train/S_I_mask.tif`` with 0 background and 255 nerve. Kaggle has 5,635 of them, 580x420, of 47 subjects; many
    have no nerve. Every fifth subject, in the order of their numbers, is validation: images of one subject are alike
    and never on both sides. The data are for use under the competition's rules.
    """
    for split in ("train", "val"):
        name = f"nerve_{split}"
        metadata = semantic_metadata(CLASSES) | {"pairs": partial(_pairs, name, root, split)}
        catalog.register(name, partial(load, name, root, split), label_map=LABEL_MAP, **metadata)


def load(name: str, root: Path, split: str) -> Records:
    """Records of a split of the data set under ``root``."""
    return load_pairs(name, _pairs(name, root, split), hint="but every image has a mask beside it")


def _pairs(name: str, root: Path, split: str) -> list[Pair]:
    hint = f"run `seg-ext data prepare nerve` or {root_hint(root, 'nerve')}"
    folder = require(name, root / "nerve" / "train", hint)
    images = sorted(
        (int(match[1]), int(match[2]), file)
        for file in folder.glob("*.tif")
        if (match := re.fullmatch(r"(\d+)_(\d+)\.tif", file.name))
    )
    if not images:
        raise UserError(f"data set {name}: {folder} holds no S_I.tif; {hint}")
    held_out = {s for i, s in enumerate(sorted({subject for subject, _, _ in images})) if every_fifth(i)}
    return [
        (file.stem, file, file.with_name(f"{file.stem}_mask.tif"))
        for subject, _, file in images
        if (subject in held_out) == (split == "val")
    ]
