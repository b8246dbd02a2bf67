"""Class weights that a config names instead of numbers, from the pixels of the training data."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from numpy.typing import NDArray
from tqdm import tqdm

from seg_ext.data.label_io import read_record_label
from seg_ext.engine.setup import interactive
from seg_ext.errors import UserError
from seg_ext.evaluation.output_files import replacing
from seg_ext.losses.class_weights import effective_number, inverse_frequency, median_frequency

logger = logging.getLogger(__name__)
Counts = NDArray[np.int64]
Record = dict[str, Any]


class ClassCounts(NamedTuple):
    """Of each class, (K,) each.

    Attributes:
        pixels: labelled so.
        image_pixels: of the images that contain it, ignored ones too.
        images: that contain it.
    """

    pixels: Counts
    image_pixels: Counts
    images: Counts


CLASS_WEIGHTS: dict[str, Callable[[ClassCounts], NDArray[np.float64]]] = {
    "median_frequency": lambda counts: median_frequency(counts.pixels, counts.image_pixels),
    "inverse_frequency": lambda counts: inverse_frequency(counts.pixels),
    "effective_number": lambda counts: effective_number(counts.images),  # pixels are no independent samples
}


def resolve_class_weights(cfg: CfgNode, *, training: bool = True) -> None:
    """Replace each name of CLASS_WEIGHTS in ``class_weights`` of MODEL.SEM_SEG_HEAD.LOSSES by its numbers, in place.

    The pixels of DATASETS.TRAIN are counted, or taken from ``class_counts.json`` in OUTPUT_DIR where that is of the
    same files. There are K numbers, two where NUM_CLASSES is 1; a class that does not occur weighs 0. Where nothing
    is trained, ``training`` being False, the names are taken out instead: losses then play no part.

    Raises:
        UserError: an unknown name; no label maps; a label map that cannot be read.
    """
    head = cfg.MODEL.SEM_SEG_HEAD
    entries = [entry for entry in head.LOSSES if isinstance(entry, dict)]  # the head refuses all else
    named = [entry for entry in entries if isinstance(entry.get("class_weights"), str)]
    for entry in named:
        if entry["class_weights"] not in CLASS_WEIGHTS:
            known = ", ".join(CLASS_WEIGHTS)
            raise UserError(
                f"MODEL.SEM_SEG_HEAD.LOSSES {entry.get('NAME')}: class_weights {entry['class_weights']!r} takes numbers"
                f" or one of {known}"
            )
    if not named:
        return
    if not training:
        for entry in named:
            del entry["class_weights"]
        return
    classes = max(head.NUM_CLASSES, 2)
    counts = _counts(cfg.DATASETS.TRAIN, Path(cfg.OUTPUT_DIR) / "class_counts.json", classes, head.IGNORE_VALUE)
    if not counts.pixels.any():
        raise UserError(f"DATASETS.TRAIN {', '.join(cfg.DATASETS.TRAIN)}: every pixel is ignored; no class weights")
    for entry in named:
        name = entry["class_weights"]
        entry["class_weights"] = [float(f"{weight:.6g}") for weight in CLASS_WEIGHTS[name](counts)]
        logger.info("class weights by %s: %s", name, entry["class_weights"])


def count_classes(records: Sequence[Record], *, num_classes: int, ignore: int) -> ClassCounts:
    """Count the label maps of data set records, in threads, with a progress bar on a terminal.

    Raises:
        UserError: as :func:`seg_ext.data.label_io.read_record_label`.
    """
    total = ClassCounts(*np.zeros((3, num_classes), np.int64))
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        each = pool.map(partial(_count, num_classes=num_classes, ignore=ignore), records)
        for one in tqdm(each, "count classes", len(records), unit="img", disable=not interactive(), leave=False):
            for sums, numbers in zip(total, one, strict=True):
                sums += numbers
    finally:
        pool.shutdown(cancel_futures=True)
    return total


def _count(record: Record, *, num_classes: int, ignore: int) -> ClassCounts:
    labels = read_record_label(record, num_classes=num_classes, ignore=ignore)
    pixels = np.bincount(labels[labels != ignore], minlength=num_classes)
    there = (pixels > 0).astype(np.int64)
    return ClassCounts(pixels, there * labels.size, there)


def _counts(names: Sequence[str], file: Path, num_classes: int, ignore: int) -> ClassCounts:
    """Those of the training sets, from ``file`` or into it."""
    records = [record for name in names for record in DatasetCatalog.get(name) if "sem_seg_file_name" in record]
    if not records:
        raise UserError(f"DATASETS.TRAIN {', '.join(names)}: no label maps to take class weights from")
    key = _content(names, records, num_classes, ignore)
    stored = _stored(file, key)
    if stored is not None:
        return stored
    counts = count_classes(records, num_classes=num_classes, ignore=ignore)
    data = {"content": key, **{field: numbers.tolist() for field, numbers in counts._asdict().items()}}
    with replacing(file) as path:  # several processes may count at once
        path.write_text(json.dumps(data, indent=1) + "\n")
    return counts


def _stored(file: Path, key: str) -> ClassCounts | None:
    """The counts of an earlier run over the same files; None where there is none, or half of one."""
    try:
        stored = json.loads(file.read_text())
        fields = (np.array(stored[field], np.int64) for field in ClassCounts._fields)
        return ClassCounts(*fields) if stored["content"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _content(names: Sequence[str], records: Sequence[Record], num_classes: int, ignore: int) -> str:
    """A digest of the sets' names, their label maps' names, sizes and times, and how these are read."""
    digest = hashlib.sha256(repr((list(names), num_classes, ignore, len(records))).encode())
    for record in records:
        path = record["sem_seg_file_name"]
        try:
            stat = os.stat(path)
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from error
        rules = [record.get(f"sem_seg_{rule}") for rule in ("label_map", "label_colors")]
        digest.update(repr((str(path), stat.st_size, stat.st_mtime_ns, rules)).encode())
    return digest.hexdigest()
