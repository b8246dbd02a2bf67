"""Semantic records from pairs of an image and its label map, wherever they lie."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from seg_ext.data.datasets.catalog import Records
from seg_ext.data.label_io import image_size
from seg_ext.errors import UserError

Pair = tuple[str, Path, Path]  # image_id, image, label map


def load_pairs(name: str, pairs: Iterable[Pair], *, hint: str) -> Records:
    """Records of these pairs, in their order.

    Args:
        name: of the data set, for errors.
        pairs: image_id, image and label map of each record.
        hint: ends the error about a missing file: why it is looked for, or what to do.

    Raises:
        UserError: a file is missing, or an image cannot be read.
    """
    records = []
    for image_id, image, label in pairs:
        for file in (image, label):
            if not file.is_file():
                raise UserError(f"data set {name}: {file} not found, {hint}")
        height, width = image_size(image)
        paths = {"file_name": str(image), "sem_seg_file_name": str(label)}
        records.append({**paths, "image_id": image_id, "height": height, "width": width})
    return records


def every_fifth(index: int) -> bool:
    """Whether the entry of this index, counted from 0 in sorted order, is held out: the 5th, the 10th, ..."""
    return index % 5 == 4
