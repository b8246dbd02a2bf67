"""Data sets that can be fetched and brought into the layout that they are registered with."""

from __future__ import annotations

from collections.abc import Callable

from seg_ext.data.prepare import (
    ade20k,
    aerial_dubai,
    camvid,
    cityscapes,
    coco,
    coco_stuff,
    dsb2018,
    isbi2012,
    nerve,
    nuclei,
    potsdam,
    voc,
)
from seg_ext.data.prepare.report import Report

PREPARE: dict[str, Callable[..., Report]] = {  # (root, source, **options)
    "nuclei": nuclei.prepare,
    "camvid": camvid.prepare,
    "voc": voc.prepare,
    "isbi2012": isbi2012.prepare,
    "nerve": nerve.prepare,
    "dsb2018": dsb2018.prepare,
    "potsdam": potsdam.prepare,
    "aerial_dubai": aerial_dubai.prepare,
    "ade20k": ade20k.prepare,
    "coco": coco.prepare,
    "coco_stuff": coco_stuff.prepare,
    "cityscapes": cityscapes.prepare,
}
