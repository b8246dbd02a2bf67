"""Nuclei: one fluorescence microscopy image with every nucleus outlined, from StarDist's examples (Schmidt 2018)."""

from __future__ import annotations

from pathlib import Path

from seg_ext.data.datasets.catalog import root_hint
from seg_ext.data.datasets.coco_panoptic import register_derived

SPLITS = ("train", "test")


def register(root: Path) -> None:
    """Register nuclei_train and nuclei_test under ``root/nuclei``, as ``seg-ext data prepare nuclei`` makes it."""
    hint = f"run `seg-ext data prepare nuclei` or {root_hint(root, 'nuclei')}"
    for split in SPLITS:
        register_derived(f"nuclei_{split}", root / "nuclei", split, thing_class="nucleus", hint=hint)
