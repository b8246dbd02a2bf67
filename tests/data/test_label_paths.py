"""Ids of every kind of label file reach training and the evaluator as they were written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from seg_ext.data.datasets import catalog
from seg_ext.data.label_io import read_label, write_label
from seg_ext.data.mapper import SegMapper
from seg_ext.data.palette import palette
from seg_ext.errors import UserError
from seg_ext.evaluation import SemanticEvaluator
from seg_ext.visualize import scene_from_record

NAME = "label_paths"
SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=7)
COLORS = [(i % 256, i // 256, 255 - i % 7) for i in range(400)]
VOID = (224, 224, 192)

Rules = dict[str, Any]


def through(kind: type) -> Callable[[Path, np.ndarray, int], tuple[Path, Rules]]:
    """A TIFF of this type."""

    def write(folder: Path, ids: np.ndarray, ignore: int) -> tuple[Path, Rules]:
        tifffile.imwrite(folder / "a.tif", ids.astype(kind))
        return folder / "a.tif", {}

    return write


def grey(folder: Path, ids: np.ndarray, ignore: int) -> tuple[Path, Rules]:
    write_label(folder / "a.png", ids)
    return folder / "a.png", {}


def indexed(folder: Path, ids: np.ndarray, ignore: int) -> tuple[Path, Rules]:
    write_label(folder / "a.png", ids, palette(256)[::-1])
    return folder / "a.png", {}


def sixteen(folder: Path, ids: np.ndarray, ignore: int) -> tuple[Path, Rules]:
    Image.fromarray(ids.astype(np.uint16)).save(folder / "a.png")
    return folder / "a.png", {}


def array(folder: Path, ids: np.ndarray, ignore: int) -> tuple[Path, Rules]:
    np.save(folder / "a.npy", ids)
    return folder / "a.npy", {}


def colored(folder: Path, ids: np.ndarray, ignore: int) -> tuple[Path, Rules]:
    table = {color: i for i, color in enumerate(COLORS)} | {VOID: ignore}
    lookup = np.array([*COLORS, VOID], np.uint8)
    Image.fromarray(lookup[np.where(ids == ignore, len(COLORS), ids)]).save(folder / "a.png")
    return folder / "a.png", {"label_colors": table}


def stacked(folder: Path, ids: np.ndarray, ignore: int) -> tuple[Path, Rules]:
    np.save(folder / "a.npy", ids == np.arange(21 if ignore == 255 else 400)[:, None, None])
    return folder / "a.npy", {"label_map": {-1: ignore}}


def instances(folder: Path, ids: np.ndarray, ignore: int) -> tuple[Path, Rules]:
    """Ids from 1000 on, hundreds to a class."""
    np.save(folder / "a.npy", np.where(ids == ignore, 0, 1000 * (ids + 1) + ids % 7))
    classes = {f"{1000 * (i + 1)}-{1000 * (i + 1) + 999}": i for i in range(400)}
    return folder / "a.npy", {"label_map": {0: ignore, **classes}}


EIGHT_BITS = (grey, indexed, through(np.uint8))
WIDE = (sixteen, through(np.uint16), through(np.int32), through(np.uint32), through(np.int64), array, colored)
WIDE += (stacked, instances)
ROWS = [(write, 21, 255) for write in (*EIGHT_BITS, *WIDE)] + [(write, 400, 65535) for write in WIDE]


@pytest.mark.parametrize(("write", "classes", "ignore"), ROWS)
@given(data=st.data())
@settings(max_examples=8, deadline=None)
def test_ids_reach_training_evaluator_and_gallery_unchanged(
    tmp_path_factory: pytest.TempPathFactory, write: Any, classes: int, ignore: int, data: st.DataObject
) -> None:
    some = [i for i in (0, 1, 2, 15, 20, 254, 255, 256, 300, 399) if i < classes]
    elements = st.sampled_from([*some, ignore]) | st.integers(0, classes - 1)
    ids = data.draw(hnp.arrays(np.int64, SHAPES, elements=elements))
    folder = tmp_path_factory.mktemp("labels")
    label, rules = write(folder, ids, ignore)
    Image.new("RGB", ids.shape[::-1]).save(folder / "image.png")
    files = {"file_name": str(folder / "image.png"), "sem_seg_file_name": str(label)}
    names = [str(i) for i in range(classes)]
    catalog.register(NAME, lambda: [files], stuff_classes=names, ignore_label=ignore, **rules)
    try:
        (record,) = DatasetCatalog.get(NAME)
        mapped = SegMapper(True, augmentations=[], num_classes=classes, ignore=ignore)(record)
        np.testing.assert_array_equal(mapped["sem_seg"], ids)
        evaluator = SemanticEvaluator(NAME)
        guess = torch.from_numpy(np.where(ids == ignore, 0, ids))
        evaluator.process([{"file_name": files["file_name"]}], [{"sem_seg_labels": guess}])
        counts = np.bincount(ids[ids != ignore], minlength=classes)
        np.testing.assert_array_equal(evaluator._counts["confusion"][:, :classes], np.diag(counts))
        np.testing.assert_array_equal(scene_from_record(record, MetadataCatalog.get(NAME)).semantic, ids)
        np.testing.assert_array_equal(scene_from_record(files, MetadataCatalog.get(NAME)).semantic, ids)
    finally:
        DatasetCatalog.remove(NAME)
        MetadataCatalog.remove(NAME)


def test_one_bit_labels_are_zero_and_one(tmp_path: Path) -> None:
    ids = np.array([[0, 1, 1], [1, 0, 0]])
    for suffix in ("png", "tif"):
        Image.fromarray(ids.astype(bool)).save(tmp_path / f"a.{suffix}")
        np.testing.assert_array_equal(read_label(tmp_path / f"a.{suffix}", num_classes=2), ids)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"label_map": {"x": 1}}, "data set label_paths: label_map has 'x'"),
        ({"label_colors": [(1, 2)]}, r"data set label_paths: label_colors has \(1, 2\)"),
    ],
)
def test_rules_that_say_nothing_are_refused_at_registration(rules: Rules, message: str) -> None:
    with pytest.raises(UserError, match=message):
        catalog.register(NAME, list, **rules)
    assert NAME not in DatasetCatalog


def test_a_range_stays_one_entry_of_the_record() -> None:
    catalog.register(NAME, lambda: [{"file_name": "a"}, {"file_name": "b"}], label_map={"1-65535": 1})
    try:
        first, second = DatasetCatalog.get(NAME)
        assert first["sem_seg_label_map"] == {"1-65535": 1} == MetadataCatalog.get(NAME).label_map
        assert first["sem_seg_label_map"] is second["sem_seg_label_map"]
    finally:
        DatasetCatalog.remove(NAME)
        MetadataCatalog.remove(NAME)
