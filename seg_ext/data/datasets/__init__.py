"""The built-in data sets."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from seg_ext.data.datasets import (
    ade20k,
    aerial_dubai,
    camvid,
    coco_stuff,
    dsb2018,
    isbi2012,
    nerve,
    nuclei,
    potsdam,
    voc,
)

DATASETS: dict[str, Callable[[Path], None]] = {
    "nuclei": nuclei.register,
    "camvid": camvid.register,
    "voc": voc.register,
    "isbi2012": isbi2012.register,
    "nerve": nerve.register,
    "dsb2018": dsb2018.register,
    "potsdam": potsdam.register,
    "aerial_dubai": aerial_dubai.register,
    "ade20k": ade20k.register,
    "coco_stuff": coco_stuff.register,
}


def data_root() -> Path:
    """The folder of all data sets: the environment's DETECTRON2_DATASETS, or "datasets"."""
    return Path(os.environ.get("DETECTRON2_DATASETS") or "datasets").expanduser()


def register_all(root: str | Path) -> None:
    """Register every built-in data set under ``root``; a second call replaces the first."""
    for register in DATASETS.values():
        register(Path(root))
