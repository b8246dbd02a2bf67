"""Data sets that can be fetched and brought into the layout that they are registered with."""

from __future__ import annotations

from collections.abc import Callable

from seg_ext.data.prepare import aerial_dubai, coco, dsb2018, isbi2012, nuclei, potsdam, voc
from seg_ext.data.prepare.report import Report

PREPARE: dict[str, Callable[..., Report]] = {  # (root, source, **options)
    "nuclei": nuclei.prepare,
    "isbi2012": isbi2012.prepare,
    "dsb2018": dsb2018.prepare,
    "potsdam": potsdam.prepare,
    "aerial_dubai": aerial_dubai.prepare,
    "voc": voc.prepare,
    "coco": coco.prepare,
}
