"""VOC 2012: palette labels arrive as their ids, lists name their missing files."""

from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from seg_ext.data.datasets import data_root, voc
from seg_ext.data.label_io import read_label, write_label
from seg_ext.data.palette import palette
from seg_ext.errors import UserError


@pytest.fixture
def tree(tmp_path: Path):
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (tmp_path / "VOC2012" / folder).mkdir(parents=True)
    base = tmp_path / "VOC2012"
    Image.fromarray(np.zeros((6, 9, 3), np.uint8)).save(base / "JPEGImages" / "a.jpg")
    ids = np.array([0, 1, 2, 15, 20, 255] * 9).reshape(6, 9)
    write_label(base / "SegmentationClass" / "a.png", ids, palette(256))
    (base / "ImageSets" / "Segmentation" / "train.txt").write_text("a\n")
    (base / "ImageSets" / "Segmentation" / "val.txt").write_text("a\nb\n")
    voc.register(tmp_path)
    yield ids
    voc.register(data_root())


def test_records_have_size_and_raw_ids(tree: np.ndarray) -> None:
    (record,) = DatasetCatalog.get("voc_sem_seg_train")
    assert (record["height"], record["width"], record["image_id"]) == (6, 9, "a")
    labels = read_label(record["sem_seg_file_name"], num_classes=21)
    assert np.array_equal(labels, tree)


def test_classes_and_colours_are_vocs() -> None:
    metadata = MetadataCatalog.get("voc_sem_seg_val")
    assert len(metadata.stuff_classes) == 21 and metadata.stuff_classes[15] == "person"
    assert metadata.stuff_colors[1] == (128, 0, 0) and metadata.stuff_colors[15] == (192, 128, 128)


def test_a_listed_file_that_is_not_there_is_named(tree: np.ndarray) -> None:
    with pytest.raises(UserError, match=r"b\.jpg not found, but val\.txt lists it"):
        DatasetCatalog.get("voc_sem_seg_val")


def test_a_missing_root_is_named(tree: np.ndarray) -> None:
    with pytest.raises(UserError, match=r"trainval\.txt not found; run .* or set DETECTRON2_DATASETS"):
        DatasetCatalog.get("voc_sem_seg_trainval")
