"""COCO-Stuff: every pixel of COCO 2017, 80 classes of things and 91 of stuff (Caesar et al. 2018)."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

from seg_ext.data.datasets import catalog
from seg_ext.data.datasets.catalog import Records, require, root_hint
from seg_ext.data.datasets.folder import files_by_stem, semantic_metadata
from seg_ext.data.datasets.pairs import Pair, load_pairs

THINGS = {c["id"]: str(c["name"]) for c in COCO_CATEGORIES if c["isthing"]}  # 1..90, with gaps
STUFF = (  # 92..182
    *("banner", "blanket", "branch", "bridge", "building-other", "bush", "cabinet", "cage", "cardboard", "carpet"),
    *("ceiling-other", "ceiling-tile", "cloth", "clothes", "clouds", "counter", "cupboard", "curtain", "desk-stuff"),
    *("dirt", "door-stuff", "fence", "floor-marble", "floor-other", "floor-stone", "floor-tile", "floor-wood"),
    *("flower", "fog", "food-other", "fruit", "furniture-other", "grass", "gravel", "ground-other", "hill", "house"),
    *("leaves", "light", "mat", "metal", "mirror-stuff", "moss", "mountain", "mud", "napkin", "net", "paper"),
    *("pavement", "pillow", "plant-other", "plastic", "platform", "playingfield", "railing", "railroad", "river"),
    *("road", "rock", "roof", "rug", "salad", "sand", "sea", "shelf", "sky-other", "skyscraper", "snow"),
    *("solid-other", "stairs", "stone", "straw", "structural-other", "table", "tent", "textile-other", "towel"),
    *("tree", "vegetable", "wall-brick", "wall-concrete", "wall-other", "wall-panel", "wall-stone", "wall-tile"),
    *("wall-wood", "water-other", "waterdrops", "window-blind", "window-other", "wood"),
)
CATEGORIES = THINGS | dict(enumerate(STUFF, 92))
LABEL_MAP = dict.fromkeys(range(182), 255) | {category - 1: i for i, category in enumerate(CATEGORIES)}


def register(root: Path) -> None:
    """Register coco_stuff_171_train and coco_stuff_171_val under ``root/coco``.

    Layout: COCO's ``{train,val}2017/NAME.jpg`` and, unpacked from stuffthingmaps_trainval2017.zip,
    ``annotations/stuffthingmaps/{train,val}2017/NAME.png``: the category's id - 1 (0..89 things with COCO's gaps,
    91..181 stuff), 255 unlabelled. The 171 classes are numbered in the order of the ids. Images without a pixel map
    are left out. Annotations CC BY 4.0; the images are Flickr's, each with its own licence.
    """
    for split in ("train", "val"):
        name = f"coco_stuff_171_{split}"
        metadata = semantic_metadata(list(CATEGORIES.values())) | {"pairs": partial(_pairs, name, root, f"{split}2017")}
        catalog.register(name, partial(load, name, root, f"{split}2017"), label_map=LABEL_MAP, **metadata)


def load(name: str, root: Path, split: str) -> Records:
    """Records of ``train2017`` or ``val2017`` of the data set under ``root``."""
    return load_pairs(name, _pairs(name, root, split), hint="but the pixel maps have its labels")


def _pairs(name: str, root: Path, split: str) -> list[Pair]:
    hint = f"run `seg-ext data prepare coco_stuff` or {root_hint(root, 'coco')}"
    images = require(name, root / "coco" / split, hint)
    labels = require(name, root / "coco" / "annotations" / "stuffthingmaps" / split, hint)
    return [(stem, images / f"{stem}.jpg", file) for stem, file in files_by_stem(name, labels).items()]
