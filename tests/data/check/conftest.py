"""Small sound data sets of each kind, to plant faults in."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from PIL import Image
from pycocotools import mask as mask_util

from seg_ext.data.check import Report, check_data
from seg_ext.data.datasets.coco_panoptic import register_derived
from seg_ext.data.datasets.folder import register_folder
from seg_ext.data.derive import derive_coco

SIZE = (24, 32)  # height, width


class SemanticSet:
    """Four images with labels of ids 0, 1, 2."""

    name = "check_semantic_train"

    def __init__(self, root: Path) -> None:
        self.images, self.labels = root / "images", root / "labels"
        rng = np.random.default_rng(0)
        for folder in (self.images, self.labels):
            folder.mkdir()
        for i in range(4):
            self.write_image(i, rng.integers(0, 255, (*SIZE, 3), np.uint8))
            self.write_label(i, np.arange(SIZE[0] * SIZE[1]).reshape(SIZE) % 3)

    def write_image(self, i: int, pixels: np.ndarray) -> None:
        Image.fromarray(pixels).save(self.images / f"{i}.png")

    def write_label(self, i: int, ids: np.ndarray, type: Any = np.uint8) -> None:
        Image.fromarray(ids.astype(type)).save(self.labels / f"{i}.png")

    def check(self, **options: Any) -> Report:
        given: dict[str, Any] = {"classes": ["a", "b", "c"], **options}
        register_folder(self.name, self.images, self.labels, **given)
        return check_data([self.name], train=[self.name], test=[], num_workers=2)[0]


class InstanceSet:
    """Two images in a COCO file: polygons, an RLE and a crowd."""

    name = "check_instances_train"

    def __init__(self, root: Path) -> None:
        self.root, self.file = root, root / "instances.json"
        (root / "images").mkdir()
        rng = np.random.default_rng(1)
        for i in (1, 2):
            Image.fromarray(rng.integers(0, 255, (*SIZE, 3), np.uint8)).save(root / "images" / f"{i}.png")
        self.images = [{"id": i, "file_name": f"{i}.png", "height": SIZE[0], "width": SIZE[1]} for i in (1, 2)]
        self.categories = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
        self.annotations = [polygon(1, 1, 3, 3, 2, 12, 10), rle(2, 1, 7, 14, 4, 26, 16), polygon(3, 2, 7, 5, 5, 20, 20)]
        self.annotations.append(rle(4, 2, 3, 22, 1, 30, 9) | {"iscrowd": 1})

    def write(self) -> None:
        content = {"images": self.images, "annotations": self.annotations, "categories": self.categories}
        self.file.write_text(json.dumps(content))

    def check(self, **metadata: Any) -> Report:
        self.write()
        register_coco_instances(self.name, metadata, str(self.file), str(self.root / "images"))
        return check_data([self.name], train=[self.name], test=[], num_workers=1)[0]


def polygon(id: int, image: int, category: int, x0: int, y0: int, x1: int, y1: int) -> dict[str, Any]:
    """A rectangle as an annotation."""
    area = (x1 - x0) * (y1 - y0)
    shared = {"id": id, "image_id": image, "category_id": category, "bbox": [x0, y0, x1 - x0, y1 - y0], "iscrowd": 0}
    return shared | {"segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]], "area": area}


def rle(id: int, image: int, category: int, x0: int, y0: int, x1: int, y1: int) -> dict[str, Any]:
    """The same as a compressed RLE."""
    mask = np.zeros(SIZE, np.uint8, order="F")
    mask[y0:y1, x0:x1] = 1
    encoded = mask_util.encode(mask)
    encoded["counts"] = encoded["counts"].decode()
    return polygon(id, image, category, x0, y0, x1, y1) | {"segmentation": encoded}


class PanopticSet:
    """One image with two instances, semantic labels and a panoptic PNG."""

    name = "check_panoptic_train"

    def __init__(self, root: Path) -> None:
        self.root = root
        labels = np.zeros(SIZE, np.uint8)
        labels[2:8, 2:9], labels[10:20, 12:30] = 1, 2
        for folder, pixels in (("images", np.stack([labels * 50] * 3, 2)), ("labels", labels)):
            (root / "train" / folder).mkdir(parents=True)
            Image.fromarray(pixels).save(root / "train" / folder / "a.png")
        derive_coco(root, "train", thing_class="cell")
        self.json, self.png = root / "panoptic_train.json", root / "panoptic_train" / "a.png"

    def edit(self, change: Callable[[dict[str, Any]], Any]) -> None:
        content = json.loads(self.json.read_text())
        change(content)
        self.json.write_text(json.dumps(content))

    def check(self) -> Report:
        register_derived(self.name, self.root, "train", thing_class="cell")
        return check_data([self.name], train=[self.name], test=[], num_workers=1)[0]


@pytest.fixture
def known() -> Iterator[None]:
    """The data sets of the test are forgotten afterwards."""
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.pop(name)
        MetadataCatalog.pop(name, None)


@pytest.fixture
def semantic(tmp_path: Path, known: None) -> SemanticSet:
    return SemanticSet(tmp_path)


@pytest.fixture
def instances(tmp_path: Path, known: None) -> InstanceSet:
    return InstanceSet(tmp_path)


@pytest.fixture
def panoptic(tmp_path: Path, known: None) -> PanopticSet:
    return PanopticSet(tmp_path)
