"""The splits of a data.yaml are looked at as closely as registered sets are, also where their loader stops."""

from __future__ import annotations

import json
import os
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from seg_ext.data.check import Report, as_text, check_data
from seg_ext.data.datasets.own import read_data_file
from seg_ext.data.datasets.own_register import register_own

OWN = runpy.run_path(str(Path(__file__).parents[1] / "datasets" / "test_own.py"))
write_tree, derived_below_tmp = OWN["write_tree"], OWN["derived_below_tmp"]
KINDS = OWN["KINDS"]
Found = dict[str, list[tuple[str, str]]]


@pytest.fixture(autouse=True)
def below_tmp(derived_below_tmp: None) -> None:
    """No data set stays registered, and what is derived goes below tmp_path."""


def check(file: Path) -> list[Report]:
    names = register_own(read_data_file(file))
    return check_data(names, train=names[:1], test=names[1:], num_workers=1)


def found(report: Report) -> Found:
    """File names and details by code; each code is printed with its fix."""
    text = as_text(report)
    assert all(f"{f.kind.severity}: {f.code}: " in text and f"  fix: {f.kind.fix}" in text for f in report.faults)
    return {f.code: [(Path(place.file).name, place.detail) for place in f.findings] for f in report.faults}


def edit(file: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def plant(root: Path) -> None:
        content = json.loads((root / file).read_text())
        change(content)
        (root / file).write_text(json.dumps(content))

    return plant


def remove(*files: str) -> Callable[[Path], None]:
    return lambda root: [(root / file).unlink() for file in files] and None


def colored(root: Path) -> None:
    Image.fromarray(np.full((48, 56, 3), 7, np.uint8)).save(root / "masks/s0.png")


def more_labels(root: Path) -> None:
    shutil.copyfile(root / "masks/s0.png", root / "masks/s9.png")


def twice(root: Path) -> None:
    shutil.copyfile(root / "images/s0.png", root / "images/s3.png")


def first(kind: str, **values: Any) -> Callable[[Path], None]:
    return {
        "coco": edit("instances.json", lambda c: c["annotations"][0].update(values)),
        "panoptic": edit("panoptic.json", lambda c: c["annotations"][0]["segments_info"][0].update(values)),
        "labelme": edit("labelme/s0.json", lambda c: c["shapes"][0].update(values)),
    }[kind]


PLANTS: dict[tuple[str, str], tuple[Callable[[Path], Any], Found]] = {  # kind, case: what is done, found in train
    ("masks", "labels gone"): (
        remove("masks/s0.png", "masks/s2.png"),
        {"missing_label": [("s0.png", "nothing of this name"), ("s2.png", "nothing of this name")]},
    ),
    ("masks", "no image"): (more_labels, {"unused_label": [("s9.png", "")]}),
    ("masks", "image gone"): (remove("images/s1.png"), {"unused_label": [("s1.png", "")]}),
    ("masks", "colours"): (colored, {"label_is_rgb": [("s0.png", "RGB pixels")]}),
    ("colors", "colours"): (colored, {"unknown_color": [("s0.png", "(7, 7, 7) of 2688 pixels")]}),
    ("coco", "area"): (first("coco", area=3), {"wrong_area": [("s0.png", "annotation 1: area 3, mask 320")]}),
    ("coco", "twice"): (first("coco", id=2), {"duplicate_annotation_id": [("instances.json", "id 2: 2 times")]}),
    ("coco", "category"): (
        first("coco", category_id=6),
        {"unknown_category": [("instances.json", "annotation 1 of category 6")]},
    ),
    ("coco", "image gone"): (remove("images/s1.png"), {"missing_image": [("s1.png", "")]}),
    ("coco", "orphan"): (first("coco", image_id=77), {"orphan_annotation": [("instances.json", "1 of image 77")]}),
    ("panoptic", "area"): (first("panoptic", area=3), {"wrong_area": [("s0.png", "segment 70000: area 3")]}),
    ("panoptic", "segment"): (
        first("panoptic", id=5),
        {"segment_not_in_png": [("s0.png", "segment 5")], "segment_not_in_json": [("s0.png", "id 70000")]},
    ),
    ("panoptic", "png gone"): (remove("panoptic/s1.png"), {"missing_label": [("s1.png", "")]}),
    ("labelme", "label"): (first("labelme", label="tiel"), {"unknown_category": [("s0.json", "label 'tiel'")]}),
    ("labelme", "kind"): (first("labelme", shape_type="line"), {"bad_annotation": [("s0.json", "is a line")]}),
    ("labelme", "size"): (
        edit("labelme/s1.json", lambda c: c.update(imageWidth=57)),
        {"recorded_size": [("s1.json", "says its image is 57x48")]},
    ),
    ("labelme", "no json"): (lambda root: (root / "labelme/s1.json").write_text("{"), {"bad_json": [("s1.json", "")]}),
    ("labelme", "image gone"): (remove("images/s1.png"), {"missing_image": [("s1.json", "nothing of this name")]}),
    ("labelme", "image cut"): (
        lambda root: os.truncate(root / "images/s1.png", 40),
        {"unreadable_image": [("s1.png", "")]},
    ),
    ("labelme", "line"): (
        first("labelme", points=[[1, 1], [5, 1], [9, 1]]),
        {"degenerate_polygon": [("s0.png", "no area")], "empty_box": [("s0.png", "corners")]},
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_sound_data_have_no_faults_and_all_their_figures(kind: str, tmp_path: Path) -> None:
    for report, images in zip(check(write_tree(tmp_path, kind)), (3, 1), strict=True):
        assert report.looked_at and {f.code for f in report.faults} <= {"absent_class"}
        assert report.statistics["images"] == images and {"classes", "channels", "sizes"} <= report.statistics.keys()
        assert ("objects" in report.statistics) == (kind not in ("masks", "colors"))


@pytest.mark.parametrize(("kind", "case"), PLANTS)
def test_a_planted_fault_is_found_though_the_loader_stops(kind: str, case: str, tmp_path: Path) -> None:
    plant, expected = PLANTS[kind, case]
    file = write_tree(tmp_path, kind)
    plant(tmp_path)
    train, val = check(file)
    faults = found(train)
    assert faults.keys() - {"not_loaded", "absent_class"} == expected.keys()
    for code, places in expected.items():
        assert [name for name, _ in faults[code]] == [name for name, _ in places]
        assert all(part in detail for (_, detail), (_, part) in zip(faults[code], places, strict=True))
    kept = {"orphan_annotation", "duplicate_annotation_id", "unknown_category", "missing_image"}  # of a file of both
    assert val.looked_at and found(val).keys() <= {"absent_class", "not_loaded"} | kept & expected.keys()
    assert train.statistics["images"] + val.statistics["images"] >= 3


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_of_both_splits_is_a_leak(kind: str, tmp_path: Path) -> None:
    file = write_tree(tmp_path, kind)
    twice(tmp_path)
    train, val = check(file)
    assert "leaked_image" not in found(train)
    ((name, detail),) = found(val)["leaked_image"]
    assert name == "s3.png" and detail == f"is {tmp_path / 'images/s0.png'} of own_{kind}_train"


def test_lists_that_cannot_be_used_leave_nothing_to_look_at(tmp_path: Path) -> None:
    for kind in ("masks", "coco", "panoptic", "labelme"):
        file = write_tree(tmp_path / kind, kind)
        (tmp_path / kind / "train.txt").write_text("s0\nnone\n")
        train, val = check(file)
        assert found(train).keys() == {"not_loaded"} and not train.looked_at
        assert "train.txt, line 2: no image 'none'" in train.faults[0].findings[0].detail and val.looked_at
