"""The built-in sets are looked at to the end, also where an image or a label map is missing and their loader stops."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seg_ext.data.check import check_data
from seg_ext.data.datasets import data_root, register_all

SIZE = (8, 10)
ADE = "ADEChallengeData2016"
TREES: dict[str, tuple[str, str, int]] = {  # set: image, label map, greatest stored id
    "camvid_train": ("camvid/train/{}.png", "camvid/trainannot/{}.png", 11),
    "ade20k_150_val": (f"{ADE}/images/validation/{{}}.jpg", f"{ADE}/annotations/validation/{{}}.png", 150),
    "isbi2012_train": ("isbi2012/train/images/{}.png", "isbi2012/train/labels/{}.png", 1),
    "nerve_train": ("nerve/train/{}.tif", "nerve/train/{}_mask.tif", 255),
    "voc_sem_seg_train": ("VOC2012/JPEGImages/{}.jpg", "VOC2012/SegmentationClass/{}.png", 20),
    "dsb2018_sem_seg_val": ("dsb2018/val/images/{}.png", "dsb2018/val/labels/{}.png", 9),
    "potsdam_train": ("potsdam/train/images/{}.png", "potsdam/train/labels/{}.png", 5),
    "aerial_dubai_val": ("aerial_dubai/val/images/{}.jpg", "aerial_dubai/val/labels/{}.png", 4),
    "coco_stuff_171_val": ("coco/val2017/{}.jpg", "coco/annotations/stuffthingmaps/val2017/{}.png", 181),
}
STEMS = {"isbi2012_train": list("abcdefg"), "nerve_train": ["1_1", "1_2", "2_1"]}  # of the images; a, b, c in others


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    register_all(tmp_path)
    yield tmp_path
    register_all(data_root())


@pytest.mark.parametrize("name", TREES)
def test_a_missing_label_map_does_not_hide_the_other_faults(name: str, root: Path) -> None:
    image, label, greatest = TREES[name]
    stems = STEMS.get(name, ["a", "b", "c"])
    for i, stem in enumerate(stems):
        for file, pixels in (
            (root / image.format(stem), np.random.default_rng(i).integers(0, 256, (*SIZE, 3), np.uint8)),
            (root / label.format(stem), np.resize(np.array([0, greatest], np.uint8), SIZE)),
        ):
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file)
    lists = root / "VOC2012/ImageSets/Segmentation"
    lists.mkdir(parents=True, exist_ok=True)
    (lists / "train.txt").write_text("\n".join(stems))
    (report,) = check_data([name], train=[name], test=[], num_workers=1)
    assert {fault.code for fault in report.faults} <= {"absent_class"}
    whole = report.statistics["images"]
    (root / label.format(stems[0])).unlink()
    Image.fromarray(np.zeros((3, 4), np.uint8)).save(root / label.format(stems[1]))
    (report,) = check_data([name], train=[name], test=[], num_workers=1)
    places = {fault.code: [Path(f.file).name for f in fault.findings] for fault in report.faults}
    expected = {"size_mismatch": [Path(label.format(stems[1])).name]}
    if name != "coco_stuff_171_val":  # which has the images that have a label map
        expected |= {"not_loaded": [name]}
        assert Path(places.pop("missing_label")[0]).stem.removesuffix("_mask") == stems[0]
    assert {code: files for code, files in places.items() if code not in ("absent_class", "all_ignored")} == expected
    assert report.statistics["images"] == whole - (name == "coco_stuff_171_val")
