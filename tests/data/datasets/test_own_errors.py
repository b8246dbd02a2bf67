"""A data.yaml and data that do not fit are named in one line."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from detectron2.data import DatasetCatalog

from seg_ext.data.datasets.own import read_data_file
from seg_ext.data.datasets.own_register import register_own
from seg_ext.errors import UserError

OWN = runpy.run_path(str(Path(__file__).with_name("test_own.py")))
write_tree, derived_below_tmp = OWN["write_tree"], OWN["derived_below_tmp"]
PNG = OWN["mask_png"](np.ones((5, 5), bool))


def refusal(file: Path, load: str = "") -> str:
    """The one line that reading the file, or then loading a split, ends with."""
    with pytest.raises(UserError) as caught:
        register_own(read_data_file(file))
        assert load, "the file was accepted"
        DatasetCatalog.get(load)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("data set own_" if load else str(file))
    return str(caught.value)


@pytest.mark.parametrize(
    ("kind", "keys", "message"),
    [
        ("masks", {"clases": ["a"]}, "unknown key clases; did you mean classes?"),
        ("masks", {"coco": "x.json"}, "masks and coco; it takes exactly one of masks, coco, panoptic, labelme"),
        ("masks", {"masks": None}, "no annotation; it takes exactly one of"),
        ("masks", {"masks": "nowhere"}, "masks: folder "),
        ("masks", {"images": "train.txt"}, "train.txt is a file; it takes a folder"),
        ("coco", {"coco": "images"}, "images is a folder; it takes a file"),
        ("masks", {"images": 3}, "images is 3; it is a path"),
        ("masks", {"name": None}, "name is missing"),
        ("masks", {"name": "a b"}, "name is 'a b'; it is letters"),
        ("masks", {"classes": None}, "classes is missing"),
        ("masks", {"classes": ["a", "a"]}, "two classes have the same name in a, a"),
        ("masks", {"colors": [[0, 0, 0]]}, "1 colours for 3 classes"),
        ("masks", {"label_map": {7: 9}}, "label_map maps to 9; takes 0..2 and 255"),
        ("masks", {"panoptic_png": "images"}, "panoptic_png goes with panoptic, not with masks"),
        ("coco", {"classes": ["box"]}, "classes goes with masks or labelme, not with coco"),
        ("masks", {"split": None}, "split is missing; it is {train: LIST.txt, val: LIST.txt} or {val: 0.2"),
        ("masks", {"split": {"train": "none.txt"}}, "none.txt of train not found"),
        ("masks", {"split": {"training": "train.txt"}}, "split is {'training'"),
        ("masks", {"split": {"val": 1.5}}, "shares between 0 and 1"),
        ("masks", {"split": {"val": 0.5, "test": 0.5}}, "shares between 0 and 1"),
        ("masks", {"split": {"val": 0.5, "seed": "x"}}, "split is"),
        ("masks", {"split": {"train": 0.5, "val": 0.5}}, "split is"),
        ("masks", {"split": {"train": "train.txt", "val": 0.2}}, "split is"),
        ("masks", {"images": {"train": "images"}}, "images have a path for each split already"),
        (
            "masks",
            {"images": {"train": "images"}, "masks": {"val": "masks"}, "split": None},
            "splits differ: images has",
        ),
        ("masks", {"images": {"training": "images"}, "split": None}, "images is {'training'"),
        ("coco", {"coco": "train.txt"}, "not JSON"),
        ("panoptic", {"panoptic_png": "nowhere"}, "panoptic_png: folder"),
    ],
)
def test_what_does_not_fit_is_named_with_the_file(
    kind: str, keys: dict[str, Any], message: str, tmp_path: Path
) -> None:
    assert message in refusal(write_tree(tmp_path, kind, **keys))


@pytest.mark.parametrize(
    ("text", "message"), [("a: [", "not plain yaml"), ("- 1", "holds no keys"), ("", "holds no keys")]
)
def test_a_file_that_is_no_mapping_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text(text)
    assert message in refusal(tmp_path / "data.yaml")
    assert "cannot be read: No such file" in refusal(tmp_path / "none.yaml")


def test_a_json_of_the_other_kind_says_which_it_is(tmp_path: Path) -> None:
    write_tree(tmp_path / "p", "panoptic")
    text = refusal(write_tree(tmp_path / "c", "coco", coco="../p/panoptic.json"))
    assert "panoptic.json is a COCO panoptic file, not a COCO instances one; give it as panoptic" in text
    keys = {"panoptic": "../c/instances.json", "panoptic_png": "../p/panoptic"}
    text = refusal(write_tree(tmp_path / "q", "panoptic", **keys))
    assert "instances.json is a COCO instances file, not a COCO panoptic one; give it as coco" in text
    write_tree(tmp_path / "l", "labelme")
    text = refusal(write_tree(tmp_path / "d", "coco", coco="../l/labelme/s0.json"))
    assert "no list 'images'; it is a LabelMe file: give its folder as labelme" in text


def edited(file: Path, change: Callable[[Any], Any]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["categories"].clear(), "instances.json has no categories"),
        (lambda c: c["categories"][0].pop("name"), "lacks name"),
        (lambda c: c["categories"].append({"id": 5, "name": "more"}), "2 categories have the id 5"),
        (lambda c: c["categories"].append({"id": 6, "name": "box"}), "2 categories have the name 'box'"),
        (lambda c: c.pop("annotations"), "no list 'annotations'"),
    ],
)
def test_bad_categories_are_named(change: Callable[[Any], Any], message: str, tmp_path: Path) -> None:
    file = write_tree(tmp_path, "coco")
    edited(tmp_path / "instances.json", change)
    assert message in refusal(file)


def test_splits_with_different_categories_are_refused(tmp_path: Path) -> None:
    file = write_tree(tmp_path, "coco", coco={"train": "instances.json", "val": "v.json"}, split=None)
    content = json.loads((tmp_path / "instances.json").read_text())
    (tmp_path / "v.json").write_text(json.dumps(content | {"categories": content["categories"][:1]}))
    assert "v.json have different categories" in refusal(file)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("coco", lambda c: c["annotations"][0].update(category_id=4), "json: category_id 4 is unknown; known are"),
        ("coco", lambda c: c["annotations"][0].pop("segmentation"), "an annotation has no segmentation"),
        (
            "coco",
            lambda c: c["annotations"][0].update(segmentation={"size": [9, 9], "counts": [81]}),
            "a mask of (9, 9) on an image of (48, 56)",
        ),
        (
            "panoptic",
            lambda c: c["annotations"][0]["segments_info"][0].update(category_id=4),
            "category_id 4 is unknown; known are",
        ),
        ("panoptic", lambda c: c["annotations"].pop(0), "has no annotation of s0.png"),
        ("panoptic", lambda c: c["annotations"][0]["segments_info"][1].update(id=77), "no pixel of segment 77"),
    ],
)
def test_bad_annotations_are_named_when_they_are_read(
    kind: str, change: Callable[[Any], Any], message: str, tmp_path: Path
) -> None:
    file = write_tree(tmp_path, kind)
    edited(tmp_path / {"coco": "instances.json", "panoptic": "panoptic.json"}[kind], change)
    with pytest.raises(UserError) as caught:
        register_own(read_data_file(file))
        DatasetCatalog.get(f"own_{kind}_train")
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["masks", "coco", "panoptic", "labelme"])
def test_an_image_that_is_listed_but_not_there_is_named(kind: str, tmp_path: Path) -> None:
    file = write_tree(tmp_path, kind)
    (tmp_path / "images/s1.png").unlink()
    assert "s1" in refusal(file, load=f"own_{kind}_train")


def test_a_label_map_and_a_panoptic_png_that_are_not_there_are_named(tmp_path: Path) -> None:
    file = write_tree(tmp_path / "m", "masks")
    (tmp_path / "m/masks/s1.png").unlink()
    assert "no label map in" in refusal(file, load="own_masks_train")
    file = write_tree(tmp_path / "p", "panoptic")
    (tmp_path / "p/panoptic/s1.png").unlink()
    assert "panoptic/s1.png not found; check" in refusal(file, load="own_panoptic_train")


def test_a_cache_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    file = write_tree(tmp_path, "labelme", cache="train.txt/below")
    register_own(read_data_file(file))
    with pytest.raises(UserError, match="cannot be made: Not a directory; name a folder for it with 'cache'"):
        DatasetCatalog.get("own_labelme_train")


def test_an_unknown_label_is_named_with_file_and_count(tmp_path: Path) -> None:
    file = write_tree(tmp_path, "labelme")
    for i in (0, 1):
        edited(tmp_path / f"labelme/s{i}.json", lambda c: c["shapes"][1].update(label="tiel"))
    text = refusal(file, load="own_labelme_train")
    assert "labelme/s0.json: label 'tiel' is not in classes (shapes: 2, files: 2); did you mean 'tile'?" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape_type": "line"}, "shape 0 (box) is a line, which has no mask here; takes polygon, rectangle, circle"),
        ({"shape_type": "circle"}, "shape 0 (box) is a circle of 4 points; it takes 2 points"),
        ({"points": [[1, 2], [3, 4]]}, "is a polygon of 2 points; it takes at least 3 points"),
        ({"points": [[1, 2], [3, 4], [5, float("nan")]]}, "all finite"),
        ({"points": [1, 2, 3]}, "its points are not a list of [x, y]"),
        ({"label": 3}, "shape 0 has no label"),
        ({"shape_type": ["line"]}, "is a ['line'], which has no mask here"),
        ({"shape_type": "mask"}, "is a mask of 4 points; it takes 2 points, the corners of its PNG"),
        ({"shape_type": "mask", "points": [[0, 0], [4, 3]]}, "its mask is no PNG in base64"),
        ({"shape_type": "mask", "points": [[0, 0], [4, 3]], "mask": "cat"}, "its mask is no PNG in base64"),
        ({"shape_type": "mask", "points": [[0, 0], [4, 3]], "mask": PNG}, "its mask is 5x5, but its points say 5x4"),
        ({"shape_type": "mask", "points": [[70, 60], [74, 64]], "mask": PNG}, "no pixel in the image of 56x48"),
    ],
)
def test_bad_shapes_are_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = write_tree(tmp_path, "labelme")
    edited(tmp_path / "labelme/s0.json", lambda c: c["shapes"][0].update(change))
    register_own(read_data_file(file))
    with pytest.raises(UserError) as caught:
        DatasetCatalog.get("own_labelme_train")
    assert message in str(caught.value) and "labelme/s0.json" in str(caught.value)


def test_labelme_files_that_are_none_or_of_another_size_are_named(tmp_path: Path) -> None:
    file = write_tree(tmp_path, "labelme")
    for change, message in (
        (lambda c: c.update(imageWidth=57), "says its image is 57x48, but it is 56x48"),
        (lambda c: c.pop("shapes"), "no LabelMe file: it has no list 'shapes'"),
    ):
        edited(tmp_path / "labelme/s0.json", change)
        register_own(read_data_file(file))
        with pytest.raises(UserError, match=message):
            DatasetCatalog.get("own_labelme_train")
    for json_file in (tmp_path / "labelme").glob("*.json"):
        json_file.unlink()
    assert "holds no JSON file" in refusal(file, load="own_labelme_train")


def test_all_of_a_files_keys_are_documented_by_their_errors(tmp_path: Path) -> None:
    file = write_tree(tmp_path, "masks", zzz=1)
    text = refusal(file)
    assert all(key in text for key in yaml.safe_load(file.read_text()) if key != "zzz")
