"""CamVid: street scenes from a car, 480x360, 11 classes (Brostow et al. 2008), as split for SegNet (2015)."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from seg_ext.data.datasets import catalog
from seg_ext.data.datasets.catalog import Records, root_hint
from seg_ext.data.datasets.folder import load_folder, semantic_metadata

CLASSES = {
    "sky": (128, 128, 128),
    "building": (128, 0, 0),
    "pole": (192, 192, 128),
    "road": (128, 64, 128),
    "pavement": (60, 40, 222),
    "tree": (128, 128, 0),
    "sign": (192, 128, 128),
    "fence": (64, 64, 128),
    "car": (64, 0, 128),
    "pedestrian": (64, 64, 0),
    "bicyclist": (0, 128, 192),
}
LABEL_MAP = {11: 255}
SPLITS = {
    "camvid_train": ("train",),
    "camvid_val": ("val",),
    "camvid_test": ("test",),
    "camvid_trainval": ("train", "val"),
}


def register(root: Path) -> None:
    """Register camvid_train, _val, _test and _trainval under ``root/camvid``.

    Layout: ``{train,val,test}/NAME.jpg`` or ``.png`` and ``{train,val,test}annot/NAME.png`` with ids 0..10, 11 void.
    """
    base = root / "camvid"
    for name, splits in SPLITS.items():
        folders = (base / splits[0], base / f"{splits[0]}annot") if len(splits) == 1 else None
        metadata = semantic_metadata(list(CLASSES), list(CLASSES.values()), folders=folders)
        catalog.register(name, partial(load, name, root, splits), label_map=LABEL_MAP, **metadata)


def load(name: str, root: Path, splits: tuple[str, ...]) -> Records:
    """Records of some splits of the data set under ``root``."""
    base, hint = root / "camvid", f"run `seg-ext data prepare camvid` or {root_hint(root, 'camvid')}"
    return [r for split in splits for r in load_folder(name, base / split, base / f"{split}annot", hint=hint)]
