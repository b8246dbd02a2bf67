"""PASCAL VOC 2012 segmentation: 20 object classes and background (Everingham et al. 2010)."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from seg_ext.data.datasets import catalog
from seg_ext.data.datasets.catalog import Records, require, root_hint
from seg_ext.data.datasets.coco_instances import register_coco_instances
from seg_ext.data.datasets.folder import semantic_metadata
from seg_ext.data.datasets.pairs import Pair, load_pairs

CLASSES = [
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
]
SPLITS = {
    **dict.fromkeys(("train", "val", "trainval"), "SegmentationClass"),
    "trainaug": "SegmentationClassAug",
}


def register(root: Path) -> None:
    """Register voc_sem_seg_train, _val, _trainval, _trainaug and voc_instances_train, _val under ``root/VOC2012``.

    Layout: ``JPEGImages/NAME.jpg``, ``SegmentationClass/NAME.png`` with palette ids 0..20 and 255 void,
    ``ImageSets/Segmentation/{train,val,trainval,trainaug}.txt`` with a name a line. The official sets have 1,464,
    1,449 and 2,913 images. trainaug (10,582) adds the Semantic Boundaries Dataset (Hariharan et al. 2011), less VOC's
    validation images, with labels in ``SegmentationClassAug/NAME.png``; the instances (Hariharan et al. 2014) are in
    ``instances_{train,val}.json``. ``seg-ext data prepare voc`` makes both. The images are Flickr's, under its terms.
    """
    base = root / "VOC2012"
    hint = f"run `seg-ext data prepare voc` or {root_hint(root, 'VOC2012')}"
    for split, folder in SPLITS.items():
        name = f"voc_sem_seg_{split}"
        metadata = semantic_metadata(CLASSES) | {"pairs": partial(_pairs, name, base, split, folder, hint)}
        catalog.register(name, partial(load, name, base, split, folder, hint=hint), **metadata)
    for split in ("train", "val"):
        register_coco_instances(
            f"voc_instances_{split}",
            base / f"instances_{split}.json",
            base / "JPEGImages",
            thing_classes=CLASSES[1:],
            thing_ids={i + 1: i for i in range(20)},
            hint=hint,
        )


def load(
    name: str, base: Path, split: str, folder: str = "SegmentationClass", *, hint: str = "it is not in place"
) -> Records:
    """Records of the images that a list of ``base``, VOC2012, names, with label maps of one of its folders."""
    return load_pairs(name, _pairs(name, base, split, folder, hint), hint=f"but {split}.txt lists it")


def _pairs(name: str, base: Path, split: str, folder: str, hint: str) -> list[Pair]:
    stems = require(name, base / "ImageSets" / "Segmentation" / f"{split}.txt", hint).read_text().split()
    return [(stem, base / "JPEGImages" / f"{stem}.jpg", base / folder / f"{stem}.png") for stem in stems]
