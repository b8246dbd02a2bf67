"""Panoptic data sets in COCO's format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOPanopticEvaluator
from pycocotools import mask as mask_util

from seg_ext.data.datasets.coco_panoptic import register_coco_panoptic, register_derived
from seg_ext.data.derive import derive_coco
from seg_ext.data.label_io import read_label, read_panoptic_ids
from seg_ext.errors import UserError

NAME = "toy_cells"


@pytest.fixture
def tree(instance_tree: Path) -> Path:
    derive_coco(instance_tree, "train", thing_class="cell")
    register_derived(NAME, instance_tree, "train", thing_class="cell")
    return instance_tree


def test_every_part_of_a_record_says_the_same(tree: Path) -> None:
    first, second = DatasetCatalog.get(NAME)
    assert (first["height"], first["width"], second["annotations"]) == (12, 16, [])
    labels = read_label(tree / "train/labels/a.png")
    np.testing.assert_array_equal(read_label(first["sem_seg_file_name"], num_classes=2), labels > 0)
    masks = [mask_util.decode(a["segmentation"]) for a in first["annotations"]]
    np.testing.assert_array_equal(masks, [labels == i for i in (1, 2, 7)])
    ids = read_panoptic_ids(first["pan_seg_file_name"])
    for info in first["segments_info"]:
        inside = read_label(first["sem_seg_file_name"])[ids == info["id"]]
        semantic = MetadataCatalog.get(NAME).thing_sem_seg_ids[0] if info["isthing"] else info["category_id"]
        assert (inside == semantic).all() and inside.size == info["area"]
    things = [info for info in first["segments_info"] if info["isthing"]]
    assert {t["category_id"] for t in things} == {a["category_id"] for a in first["annotations"]} == {0}


def test_metadata_name_all_files_and_translate_both_ways(tree: Path) -> None:
    metadata = MetadataCatalog.get(NAME)
    DatasetCatalog.get(NAME)  # detectron2's loader checks the classes it finds against the metadata
    assert metadata.evaluator_type == "coco_panoptic_seg"
    assert (metadata.thing_classes, metadata.stuff_classes) == (["cell"], ["background", "cell"])
    assert (len(metadata.thing_colors), len(metadata.stuff_colors)) == (1, 2)
    assert metadata.thing_colors[0] == metadata.stuff_colors[1]
    assert (metadata.thing_sem_seg_ids, metadata.ignore_label) == ((1,), 255)
    for key in ("json_file", "panoptic_json", "panoptic_root", "sem_seg_root", "image_root"):
        assert Path(getattr(metadata, key)).exists()
    evaluator = COCOPanopticEvaluator(NAME)
    on_file = json.loads((tree / "panoptic_train.json").read_text())["annotations"][0]["segments_info"]
    for info, stored in zip(DatasetCatalog.get(NAME)[0]["segments_info"], on_file, strict=True):
        assert evaluator._convert_category_id(dict(info))["category_id"] == stored["category_id"]


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("panoptic_train.json", r"panoptic_train\.json not found"),
        ("instances_train.json", r"instances_train\.json not found"),
        ("train/semantic/b.png", r"semantic/b\.png not found"),
        ("train/images/a.png", r"images/a\.png not found"),
        ("panoptic_train/a.png", r"panoptic_train/a\.png not found"),
    ],
)
def test_a_missing_file_is_named(tree: Path, missing: str, message: str) -> None:
    (tree / missing).unlink()
    with pytest.raises(UserError, match=rf"^data set {NAME}: .*{message}; check the folder"):
        DatasetCatalog.get(NAME)


@pytest.mark.parametrize("name", ["instances_train.json", "panoptic_train.json"])
@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"annotations": [{"image_id": 1}], "images": []}'])
def test_a_file_of_another_format_is_named(tree: Path, name: str, content: str) -> None:
    (tree / name).write_text(content)
    with pytest.raises(UserError, match=rf"^data set {NAME}: .*{name} is no COCO"):
        DatasetCatalog.get(NAME)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("instances_train", r"instances_train\.json: annotation 2: category_id 7 is unknown; known are 1$"),
        ("panoptic_train", r"panoptic_train\.json: image 1: category_id 7 is unknown; known are 1-2$"),
    ],
)
def test_a_category_outside_the_map_is_named_with_file_and_known_ids(tree: Path, file: str, message: str) -> None:
    content = json.loads((tree / f"{file}.json").read_text())
    annotations = content["annotations"]
    (annotations[0]["segments_info"] if file == "panoptic_train" else annotations)[1]["category_id"] = 7
    (tree / f"{file}.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        DatasetCatalog.get(NAME)


def test_an_image_without_panoptic_annotation_is_named(tree: Path) -> None:
    content = json.loads((tree / "panoptic_train.json").read_text())
    content["annotations"].pop()
    (tree / "panoptic_train.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"has no annotation of b\.png \(id 2\)"):
        DatasetCatalog.get(NAME)


def test_classes_that_the_files_contradict_are_an_error(tree: Path) -> None:
    register_derived(NAME, tree, "train", thing_class="nucleus")
    with pytest.raises(UserError, match=r"instances_train\.json is no COCO instances file.*nucleus"):
        DatasetCatalog.get(NAME)


def test_several_classes_and_their_colours_are_registered_as_given(tree: Path) -> None:
    options: dict[str, Any] = {
        "thing_classes": ["cell"],
        "stuff_classes": ["background", "cell"],
        "thing_ids": {1: 0},
        "stuff_ids": {2: 0, 1: 1},
        "thing_sem_seg_ids": [1],
        "thing_colors": [[9, 9, 9]],
        "stuff_colors": [[1, 1, 1], [2, 2, 2]],
    }
    register_coco_panoptic(NAME, tree, "train", **options)
    metadata = MetadataCatalog.get(NAME)
    assert (metadata.thing_colors, metadata.stuff_colors) == ([(9, 9, 9)], [(1, 1, 1), (2, 2, 2)])
    assert len(DatasetCatalog.get(NAME)) == 2
