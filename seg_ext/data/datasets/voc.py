"""PASCAL VOC 2012 segmentation: 20 object classes and background (Everingham et al. 2010)."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from seg_ext.data.datasets import catalog
from seg_ext.data.datasets.catalog import Records, require, root_hint
from seg_ext.data.datasets.coco_instances import register_coco_instances
from seg_ext.data.datasets.coco_panoptic import register_files
from seg_ext.data.datasets.folder import semantic_metadata
from seg_ext.data.datasets.pairs import Pair, load_pairs

CLASSES = [
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
]
THING_IDS = {i: i - 1 for i in range(1, len(CLASSES))}  # category id -> instance class
BACKGROUND = len(CLASSES)  # its category id in the panoptic files, where 0 is none
SPLITS = {
    **dict.fromkeys(("train", "val", "trainval"), "SegmentationClass"),
    "trainaug": "SegmentationClassAug",
}


def register(root: Path) -> None:
    """Register voc_sem_seg_train, _val, _trainval, _trainaug, voc_instances_ and voc_panoptic_train, _val.

    They lie under ``root/VOC2012``.

    Layout: ``JPEGImages/NAME.jpg``, ``SegmentationClass/NAME.png`` with palette ids 0..20 and 255 void,
    ``ImageSets/Segmentation/{train,val,trainval,trainaug}.txt`` with a name a line. The official sets have 1,464,
    1,449 and 2,913 images. trainaug (10,582) adds the Semantic Boundaries Dataset (Hariharan et al. 2011), less VOC's
    validation images, with labels in ``SegmentationClassAug/NAME.png``; the instances (Hariharan et al. 2014) are in
    ``instances_{train,val}.json``, and ``panoptic_{train,val}.json`` beside its folder of PNGs has them as things on
    the background as the only stuff. ``seg-ext data prepare voc`` makes all of these. The images are Flickr's, under
    its terms.
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
            thing_ids=THING_IDS,
            hint=hint,
        )
        files = {
            "image_root": base / "JPEGImages",
            "sem_seg_root": base / "SegmentationClass",
            "json_file": base / f"instances_{split}.json",
            "panoptic_root": base / f"panoptic_{split}",
            "panoptic_json": base / f"panoptic_{split}.json",
        }
        things = {"classes": CLASSES[1:], "ids": THING_IDS}
        stuff = {"classes": CLASSES, "ids": {BACKGROUND: 0} | {i: i for i in THING_IDS}}
        register_files(f"voc_panoptic_{split}", files, things, stuff, thing_sem_seg_ids=tuple(THING_IDS), hint=hint)


def load(
    name: str, base: Path, split: str, folder: str = "SegmentationClass", *, hint: str = "it is not in place"
) -> Records:
    """Records of the images that a list of ``base``, VOC2012, names, with label maps of one of its folders."""
    return load_pairs(name, _pairs(name, base, split, folder, hint), hint=f"but {split}.txt lists it")


def _pairs(name: str, base: Path, split: str, folder: str, hint: str) -> list[Pair]:
    stems = require(name, base / "ImageSets" / "Segmentation" / f"{split}.txt", hint).read_text().split()
    return [(stem, base / "JPEGImages" / f"{stem}.jpg", base / folder / f"{stem}.png") for stem in stems]
