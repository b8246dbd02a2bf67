"""Every fault of instances and segments is found where it was planted, and a sound set has none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image
from pycocotools import mask as mask_util

from seg_ext.data.check import Report, as_text, check_data
from seg_ext.data.check.objects import check_annotations, count_ids
from seg_ext.data.label_io import read_panoptic_ids


def found(report: Report) -> dict[str, list[str]]:
    """Details by code; each code is printed with its fix."""
    text = as_text(report)
    assert all(f"{f.kind.severity}: {f.code}: " in text and f"  fix: {f.kind.fix}" in text for f in report.faults)
    return {fault.code: [f.detail for f in fault.findings] for fault in report.faults}


def change(index: int, **values: Any) -> Callable[[Any], None]:
    return lambda data: data.annotations[index].update(values)


def add(index: int, **values: Any) -> Callable[[Any], None]:
    return lambda data: data.annotations.append(data.annotations[index] | values)


PLANTS: dict[str, tuple[Callable[[Any], Any], str]] = {  # code: what is done, the detail
    "wrong_area polygon": (change(0, area=95.0), "annotation 1: area 95, mask 72"),
    "wrong_area rle": (change(1, area=145), "annotation 2: area 145, mask 144"),
    "duplicate_annotation_id": (
        add(2, id=1, bbox=[1, 1, 9, 9], segmentation=[[1, 1, 10, 1, 10, 10, 1, 10]], area=81),
        "",
    ),
    "duplicate_image_id": (lambda data: data.images.append(data.images[0]), "id 1: 2 times"),
    "duplicate_category_id": (lambda data: data.categories.append(data.categories[0]), "id 3: 2 times"),
    "orphan_annotation": (change(2, image_id=5), "annotation 3 of image 5"),
    "unknown_category": (change(2, category_id=4), "annotation 3 of category 4"),
    "empty_box": (change(0, bbox=[3, 2, 0, 8]), "annotation 1: corners 3, 2, 3, 10"),
    "box_outside": (change(0, bbox=[3, 2, 40, 8]), "annotation 1: corners 3, 2, 43, 10, image 32x24"),
    "loose_box": (change(0, bbox=[3, 2, 13, 8]), "annotation 1: corners 3, 2, 16, 10, mask 3, 2, 12, 10"),
    "degenerate_polygon short": (change(0, segmentation=[[3, 2, 12, 10]]), "annotation 1: 1 of 1 parts, 4 coordinates"),
    "degenerate_polygon none": (change(0, segmentation=[]), "annotation 1: 0 of 0 parts, 0 coordinates"),
    "degenerate_polygon line": (change(0, segmentation=[[3, 2, 8, 2, 12, 2]]), "annotation 1: no area"),
    "empty_mask": (change(1, segmentation={"size": [24, 32], "counts": [768]}), "annotation 2: RLE"),
    "size_mismatch": (
        change(1, segmentation={"size": [32, 24], "counts": [700, 68]}),
        "annotation 2: a mask of (32, 24)",
    ),
    "crowd_without_rle": (change(2, iscrowd=1), "annotation 3: polygons"),
    "bad_annotation rle": (change(1, segmentation={"size": [24, 32], "counts": [700, 1]}), "annotation 2: ValueError"),
    "bad_annotation box": (change(2, bbox=[1, 2]), "annotation 3: ValueError: bbox [1, 2]"),
    "overlapping_masks": (add(0, id=9), "annotation 1 (cat) and annotation 9 (cat): IoU 1.00"),
    "absent_class": (lambda data: data.annotations.__delitem__(slice(1, 3)), "dog: no object"),
    "missing_image": (lambda data: (data.root / "images/2.png").unlink(), ""),
    "recorded_size": (lambda data: data.images[1].update(width=30), "recorded 30x24, file 32x24"),
    "bad_json id": (lambda data: data.images.append({"id": [1], "file_name": "3.png"}), "TypeError: unhashable"),
    "bad_json": (lambda data: data.annotations.append("text"), "no list of objects 'annotations' at the top"),
}


def test_a_sound_set_has_no_faults(instances: Any) -> None:
    report = instances.check()
    assert report.faults == []
    objects = report.statistics["objects"]
    assert objects["count"] == 3 and objects["sizes"] == {"small": 3, "medium": 0, "large": 0}
    assert [(row["name"], row["count"], row["images"]) for row in objects["rows"]] == [("cat", 1, 1), ("dog", 2, 2)]


@pytest.mark.parametrize("case", PLANTS)
def test_a_planted_fault_is_found_and_nothing_else(instances: Any, case: str) -> None:
    plant, detail = PLANTS[case]
    plant(instances)
    faults = found(instances.check())
    code = case.split()[0]
    counted = {"absent_class"} if code in ("orphan_annotation", "unknown_category", "bad_json") else set()
    assert faults.keys() - {"not_loaded"} - counted == {code}
    assert len(faults[code]) == 1 and detail in faults[code][0]


def test_a_crowd_is_not_compared_with_its_area_and_box(instances: Any) -> None:
    change(3, area=5, bbox=[1, 1, 30, 20])(instances)
    assert instances.check().faults == []


@pytest.mark.parametrize("table", [{3: 0, 7: 2}, {3: 0, 7: 0}, {3: 0, 7: 5}])
def test_categories_that_do_not_map_to_classes_in_a_row_are_found(instances: Any, table: dict[int, int]) -> None:
    DatasetCatalog.register("check_map", lambda: [{"file_name": str(instances.root / "images/1.png")}])
    MetadataCatalog.get("check_map").set(thing_classes=["a", "b", "c"], thing_dataset_id_to_contiguous_id=table)
    assert found(check_data(["check_map"], train=[], test=[])[0]).keys() == {"category_gap"}


def test_records_without_a_json_file_are_looked_at_too(instances: Any) -> None:
    box = {"bbox": [3, 2, 12, 10], "bbox_mode": BoxMode.XYXY_ABS, "segmentation": [[3, 2, 12, 2, 12, 10, 3, 10]]}
    objects = [box | {"category_id": 0}, box | {"category_id": 2, "bbox": [3, 2, 12, 40]}]
    record = {"file_name": str(instances.root / "images/1.png"), "annotations": objects}
    DatasetCatalog.register("check_records", lambda: [record])
    MetadataCatalog.get("check_records").set(thing_classes=["a"])
    faults = found(check_data(["check_records"], train=[], test=[])[0])
    assert faults.keys() == {"box_outside", "unknown_category", "overlapping_masks"}
    assert faults["unknown_category"] == ["annotation 1: category 2 of 0..0"]


def test_overlap_is_what_is_covered_again() -> None:
    size, rng = (20, 30), np.random.default_rng(0)
    masks = np.zeros((300, *size), np.uint8)
    for mask in masks:
        y, x = rng.integers(0, 12, 2)
        mask[y : y + rng.integers(1, 8), x : x + rng.integers(1, 8)] = 1
    annotations = [
        {"bbox": mask_util.toBbox(rle).tolist(), "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "segmentation": rle}
        for rle in mask_util.encode(np.asfortranarray(masks.transpose(1, 2, 0)))
    ]
    _, objects = check_annotations(annotations, size, ["a"])
    assert objects.covered == masks.any(0).sum()
    assert objects.again == masks.sum() - masks.any(0).sum()
    assert objects.areas.tolist() == masks.sum((1, 2)).tolist()


def test_ids_are_counted_as_numpy_counts_them() -> None:
    ids = np.random.default_rng(0).integers(0, 2**24, (9, 11)) // 2**21
    values, counts = np.unique(ids, return_counts=True)
    assert count_ids(ids) == dict(zip(values.tolist(), counts.tolist(), strict=True))


def test_a_sound_panoptic_set_has_no_faults(panoptic: Any) -> None:
    report = panoptic.check()
    assert report.faults == [] and {"classes", "objects"} <= report.statistics.keys()


def segments(content: dict[str, Any]) -> list[dict[str, Any]]:
    return content["annotations"][0]["segments_info"]


PANOPTIC: dict[str, tuple[Callable[[Any], Any], str]] = {
    "wrong_area": (lambda data: data.edit(lambda c: segments(c)[0].update(area=41)), "segment 1: area 41, mask 42"),
    "segment_not_in_json": (lambda data: data.edit(lambda c: segments(c).pop(0)), "id 1 (42 pixels)"),
    "segment_not_in_png": (
        lambda data: data.edit(lambda c: segments(c).append({**segments(c)[0], "id": 9})),
        "segment 9",
    ),
    "duplicate_segment_id": (
        lambda data: data.edit(lambda c: segments(c).append(segments(c)[0])),
        "segment 1: 2 times",
    ),
    "unknown_category": (
        lambda data: data.edit(lambda c: segments(c)[0].update(category_id=77)),
        "segment 1 of a.png: category 77",
    ),
    "missing_label": (lambda data: data.png.unlink(), ""),
    "unreadable_label": (lambda data: Image.open(data.png).convert("L").save(data.png), "a panoptic PNG is RGB"),
    "size_mismatch": (lambda data: None, "31x24, its image 32x24"),
    "all_ignored": (
        lambda data: (Image.new("RGB", (32, 24)).save(data.png), data.edit(lambda c: segments(c).clear())),
        "",
    ),
}


@pytest.mark.parametrize("code", PANOPTIC)
def test_a_planted_panoptic_fault_is_found_and_nothing_else(panoptic: Any, code: str) -> None:
    plant, detail = PANOPTIC[code]
    plant(panoptic)
    expected = {code}
    if code == "size_mismatch":
        Image.open(panoptic.png).crop((0, 0, 31, 24)).save(panoptic.png)
        expected |= {"wrong_area"}
    faults = found(panoptic.check())
    assert faults.keys() - {"not_loaded"} == expected
    assert len(faults[code]) == 1 and detail in faults[code][0]


def test_a_panoptic_png_alone_gives_class_frequencies(panoptic: Any) -> None:
    panoptic.check()
    record = {
        k: v for k, v in DatasetCatalog.get(panoptic.name)[0].items() if k not in ("sem_seg_file_name", "annotations")
    }
    DatasetCatalog.register("check_png", lambda: [record])
    MetadataCatalog.get("check_png").set(thing_classes=["cell"], stuff_classes=["background", "cell"])
    statistics = check_data(["check_png"], train=[], test=[])[0].statistics
    pixels = np.bincount(read_panoptic_ids(panoptic.png).ravel())
    assert [row["pixels"] for row in statistics["classes"]["rows"]] == [pixels[3], pixels[1] + pixels[2]]
    assert statistics["objects"]["count"] == 2
