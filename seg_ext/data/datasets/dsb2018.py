"""Data Science Bowl 2018: nuclei in fluorescence and stained microscopy (Caicedo et al. 2019)."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from seg_ext.data.datasets import catalog
from seg_ext.data.datasets.catalog import root_hint
from seg_ext.data.datasets.coco_instances import register_coco_instances
from seg_ext.data.datasets.coco_panoptic import register_derived
from seg_ext.data.datasets.folder import load_folder, semantic_metadata

CLASSES = ("background", "nucleus")
LABEL_MAP = {"1-65535": 1}  # instance ids
SPLITS = ("train", "val")


def register(root: Path) -> None:
    """Register dsb2018_sem_seg_, dsb2018_instances_ and dsb2018_panoptic_ train and val.

    Layout of ``root/dsb2018``: ``{split}/images/ID.png`` (RGB), ``{split}/labels/ID.png`` (16 bit, 0 background, 1..N
    nuclei) and ``instances_{split}_rle.json`` (COCO, category 1, compressed RLE: INPUT.MASK_FORMAT bitmask). The
    panoptic sets read ``root/dsb2018_panoptic``. ``seg-ext data prepare dsb2018`` makes both from Kaggle's
    stage1_train (670 images of 256x256 to 1388x1040, no split of its own). CC0 (Broad Institute, BBBC038).
    """
    base = root / "dsb2018"
    hint = f"run `seg-ext data prepare dsb2018` or {root_hint(root, 'dsb2018')}"
    for split in SPLITS:
        name, images = f"dsb2018_sem_seg_{split}", base / split / "images"
        folders = images, base / split / "labels"
        load = partial(load_folder, name, *folders, hint=hint)
        catalog.register(name, load, label_map=LABEL_MAP, **semantic_metadata(CLASSES, folders=folders))
        register_coco_instances(
            f"dsb2018_instances_{split}",
            base / f"instances_{split}_rle.json",
            images,
            thing_classes=CLASSES[1:],
            thing_ids={1: 0},
            hint=hint,
        )
        derived = root / "dsb2018_panoptic"
        register_derived(f"dsb2018_panoptic_{split}", derived, split, thing_class=CLASSES[1], hint=hint)
