"""Whole networks of other libraries as ours: config, names, weights; one function a library."""

from collections.abc import Callable, Mapping

from torch import Tensor

from seg_ext.checkpoint.sources.detectron2 import import_detectron2
from seg_ext.checkpoint.sources.mmseg import import_mmseg
from seg_ext.checkpoint.sources.naming import Hints, Imported
from seg_ext.checkpoint.sources.smp import import_smp
from seg_ext.checkpoint.sources.timm import import_timm
from seg_ext.checkpoint.sources.torchvision import import_torchvision

SOURCES: dict[str, Callable[[Mapping[str, Tensor], Hints], Imported]] = {
    "torchvision": import_torchvision,
    "smp": import_smp,
    "timm": import_timm,
    "mmseg": import_mmseg,
    "detectron2": import_detectron2,
}

__all__ = ["SOURCES", "Hints", "Imported"]
