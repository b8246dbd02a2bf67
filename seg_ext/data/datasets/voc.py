"""PASCAL VOC 2012 semantic segmentation: 20 object classes and background (Everingham et al. 2010)."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from seg_ext.data.datasets import catalog
from seg_ext.data.datasets.catalog import Records, require, root_hint
from seg_ext.data.datasets.folder import semantic_metadata
from seg_ext.data.label_io import image_size
from seg_ext.errors import UserError

CLASSES = [
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
]
SPLITS = ("train", "val", "trainval")


def register(root: Path) -> None:
    """Register voc_sem_seg_train, _val and _trainval under ``root/VOC2012``.

    Layout: ``JPEGImages/NAME.jpg``, ``SegmentationClass/NAME.png`` with palette ids 0..20 and 255 void,
    ``ImageSets/Segmentation/{train,val,trainval}.txt`` with a name a line.
    """
    for split in SPLITS:
        name = f"voc_sem_seg_{split}"
        catalog.register(name, partial(_load, name, root, split), **semantic_metadata(CLASSES))


def _load(name: str, root: Path, split: str) -> Records:
    base, hint = root / "VOC2012", root_hint(root, "VOC2012")
    names = require(name, base / "ImageSets" / "Segmentation" / f"{split}.txt", hint).read_text().split()
    records = []
    for stem in names:
        image, label = base / "JPEGImages" / f"{stem}.jpg", base / "SegmentationClass" / f"{stem}.png"
        for file in (image, label):
            if not file.is_file():
                raise UserError(f"data set {name}: {file} not found, but {split}.txt lists it")
        height, width = image_size(image)
        paths = {"file_name": str(image), "sem_seg_file_name": str(label)}
        records.append({**paths, "image_id": stem, "height": height, "width": width})
    return records
