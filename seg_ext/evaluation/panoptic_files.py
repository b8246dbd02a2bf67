"""Panoptic quality of PNG files through hotcoco, which decodes and matches many at once."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from seg_ext.data.files import naming, opened
from seg_ext.metrics import PanopticStat

_PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
_RGB = b"\x08\x02"  # bits a sample, kind of colour: after the size
_HEAD = 26  # bytes up to there


class SegmentFile(NamedTuple):
    """A panoptic PNG and what is listed of it."""

    path: Path
    classes: Mapping[int, int]  # segment id -> class 0..K-1
    crowd: Collection[int] = ()  # segment ids


def count_files(truth: Sequence[SegmentFile], found: Sequence[SegmentFile], num_classes: int) -> PanopticStat:
    """:func:`seg_ext.metrics.panoptic_quality` over pairs of files, the same but for the rounding of IoU's sum.

    hotcoco knows one crowd region of a class in an image, as panopticapi does: images with more are not for it.

    Args:
        truth: of n images, at least one.
        found: of the same images.
        num_classes: K.

    Raises:
        ValueError: segments of a file that are not listed, listed ones that it lacks, a file that is none or no PNG of
            8 bit RGB, or another size.
    """
    from hotcoco.panoptic import PanopticEval

    other = next((file.path for file in chain(truth, found) if not _is_rgb(file.path)), None)
    if other is not None:
        raise ValueError(f"{other}: no PNG of 8 bit RGB")
    with TemporaryDirectory() as folder:
        expected, void = [_listed(file) for file in truth], [_listed(_void(folder, file.path)) for file in truth]
        content = {  # the truth once more as predictions, on nothing: of these alone are lists and files compared
            "images": [{"id": i} for i in range(2 * len(truth))],
            "categories": [{"id": k, "name": str(k), "isthing": 0} for k in range(num_classes)],
            "annotations": _numbered([*expected, *void]),
        }
        guessed = _numbered([*map(_listed, found), *expected])
        engine = PanopticEval(content, {"annotations": guessed}, gt_folder="/", pred_folder="/")
        engine.evaluate()
    rows = engine.results()["per_class"]
    tp, fp, fn, iou_sum = (np.array([rows[k][key] for k in range(num_classes)]) for key in ("tp", "fp", "fn", "iou"))
    return PanopticStat(tp, fp, fn, iou_sum)


def png_size(path: Path) -> tuple[int, int]:
    """Height and width, from the header alone.

    Raises:
        UserError: no such file, or no image.
    """
    with naming(path):
        head = _head(path)
        if head.startswith(_PNG) and len(head) == _HEAD:
            return int.from_bytes(head[20:24], "big"), int.from_bytes(head[16:20], "big")
        with opened(path) as image:
            return image.height, image.width


def _is_rgb(path: Path) -> bool:
    head = _head(path)
    return head.startswith(_PNG) and head[24:] == _RGB


def _head(path: Path) -> bytes:
    """A PNG's first bytes: what it is, width, height, bits and kind of colour."""
    with open(path, "rb") as file:
        return file.read(_HEAD)


def _listed(file: SegmentFile) -> dict[str, Any]:
    """COCO's panoptic format without areas, which hotcoco then counts itself, and without the id of void."""
    segments = [{"id": i, "category_id": k, "iscrowd": int(i in file.crowd)} for i, k in file.classes.items() if i]
    return {"file_name": os.path.abspath(file.path), "segments_info": segments}


def _numbered(annotations: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{"image_id": i, **annotation} for i, annotation in enumerate(annotations)]


def _void(folder: str, like: Path) -> SegmentFile:
    """A PNG of the size of another, without a segment."""
    height, width = png_size(like)
    path = Path(folder, f"{height}x{width}.png")
    if not path.exists():
        Image.new("RGB", (width, height)).save(path, compress_level=1)
    return SegmentFile(path, {})
