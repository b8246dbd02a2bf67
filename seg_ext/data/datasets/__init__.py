"""The built-in data sets."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from seg_ext.data.datasets import camvid, nuclei, voc

DATASETS: dict[str, Callable[[Path], None]] = {
    "nuclei": nuclei.register,
    "camvid": camvid.register,
    "voc": voc.register,
}


def data_root() -> Path:
    """The folder of all data sets: the environment's DETECTRON2_DATASETS, or "datasets"."""
    return Path(os.environ.get("DETECTRON2_DATASETS") or "datasets").expanduser()


def register_all(root: str | Path) -> None:
    """Register every built-in data set under ``root``; a second call replaces the first."""
    for register in DATASETS.values():
        register(Path(root))
