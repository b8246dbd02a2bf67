"""detectron2's own COCO and Cityscapes sets go through our mapper and evaluators as they are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES, _get_builtin_metadata
from detectron2.data.datasets.cityscapes import load_cityscapes_semantic
from detectron2.data.datasets.coco_panoptic import register_coco_panoptic_separated
from detectron2.structures import Boxes, Instances
from PIL import Image

from seg_ext.config import get_cfg
from seg_ext.data.datasets import data_root
from seg_ext.data.label_io import read_label, read_panoptic_ids
from seg_ext.data.mapper import SegMapper
from seg_ext.data.prepare import coco
from seg_ext.engine.checks import thing_sem_seg_ids
from seg_ext.engine.evaluate import build_evaluators

REAL = data_root().absolute() / "coco"
NAME = "toy_coco_panoptic"
SETS = (f"{NAME}_separated", f"{NAME}_stuffonly")


def register_like_builtin(root: Path, instances: Path) -> None:
    """As detectron2 registers coco_2017_val_panoptic_separated and _stuffonly, of another root."""
    base = root / "coco"
    places = ("val2017", "panoptic_val2017", "annotations/panoptic_val2017.json", "panoptic_stuff_val2017")
    metadata = _get_builtin_metadata("coco_panoptic_separated")
    register_coco_panoptic_separated(NAME, metadata, *(str(base / p) for p in places), str(instances))


@pytest.fixture(autouse=True)
def no_toy_left() -> Iterator[None]:
    yield
    for name in (*SETS, "toy_cityscapes"):
        if name in DatasetCatalog.list():
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


@pytest.fixture
def toy_root(tmp_path: Path) -> Path:
    """Two images of a person (category 1), a kite (38), sky (187) and void."""
    base = tmp_path / "coco"
    for folder in ("val2017", "panoptic_val2017", "annotations"):
        (base / folder).mkdir(parents=True)
    ids = np.zeros((32, 40), int)
    ids[2:], ids[8:20, 4:12], ids[10:14, 20:30] = 300, 70000, 9
    rgb = (ids[..., None] >> np.array([0, 8, 16]) & 255).astype(np.uint8)
    images, instances, panoptic = [], [], []
    for k in (1, 2):
        stem = f"{k:012d}"
        Image.fromarray(rgb).save(base / "val2017" / f"{stem}.jpg")
        Image.fromarray(rgb).save(base / "panoptic_val2017" / f"{stem}.png")
        images.append({"id": k, "file_name": f"{stem}.jpg", "height": 32, "width": 40})
        segments = [(70000, 1, [4, 8, 8, 12]), (9, 38, [20, 10, 10, 4]), (300, 187, [0, 2, 40, 30])]
        infos = [
            {"id": i, "category_id": c, "bbox": box, "area": int((ids == i).sum()), "iscrowd": 0}
            for i, c, box in segments
        ]
        panoptic.append({"image_id": k, "file_name": f"{stem}.png", "segments_info": infos})
        for number, info in enumerate(infos[:2]):
            x, y, w, h = info["bbox"]
            polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
            instances.append(info | {"id": 10 * k + number, "image_id": k, "segmentation": [polygon]})
    categories = [{k: c[k] for k in ("id", "name", "isthing")} for c in COCO_CATEGORIES]
    content = {"images": images, "annotations": panoptic, "categories": categories}
    (base / "annotations/panoptic_val2017.json").write_text(json.dumps(content))
    things = [c for c in categories if c["isthing"]]
    content = {"images": images, "annotations": instances, "categories": things}
    (base / "annotations/instances_val2017.json").write_text(json.dumps(content))
    coco.prepare(tmp_path)
    register_like_builtin(tmp_path, base / "annotations/instances_val2017.json")
    return tmp_path


def perfect(record: dict[str, Any], metadata: Any) -> dict[str, Any]:
    """The ground truth of a record as a model would give it: its panoptic PNG and its stuff map."""
    stuff = read_label(record["sem_seg_file_name"], num_classes=54)
    semantic = torch.from_numpy(np.where(stuff == 255, 0, stuff)).long()
    ids = read_panoptic_ids(Path(metadata.panoptic_root) / f"{Path(record['file_name']).stem}.png")
    listed = json.loads(Path(metadata.panoptic_json).read_text())["annotations"]
    infos = next(a for a in listed if a["image_id"] == record["image_id"])["segments_info"]
    things, kinds = metadata.thing_dataset_id_to_contiguous_id, metadata.stuff_dataset_id_to_contiguous_id
    segments = [
        {"id": s["id"], "isthing": s["category_id"] in things, "category_id": (things | kinds)[s["category_id"]]}
        for s in infos
    ]
    found = Instances(ids.shape)
    found.pred_masks = torch.tensor(np.array([ids == s["id"] for s in segments if s["isthing"]]))
    found.pred_boxes = Boxes(torch.tensor([_box(mask) for mask in found.pred_masks.numpy()], dtype=torch.float32))
    found.pred_classes = torch.tensor([s["category_id"] for s in segments if s["isthing"]])
    found.scores = torch.ones(len(found.pred_classes))
    sem_seg = torch.nn.functional.one_hot(semantic, 54).permute(2, 0, 1).float()
    return {"sem_seg": sem_seg, "instances": found, "panoptic_seg": (torch.from_numpy(ids), segments)}


def _box(mask: np.ndarray) -> list[int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


def scores_of_the_truth(name: str) -> dict[str, dict[str, float]]:
    config = get_cfg()
    config.MODEL.META_ARCHITECTURE, config.MODEL.MASK_ON = "PanopticSegmentor", True
    config.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 54
    results: dict[str, dict[str, float]] = {}
    records, metadata = DatasetCatalog.get(name), MetadataCatalog.get(name)
    for evaluator in build_evaluators(config, name):
        evaluator.reset()
        for record in records:
            evaluator.process([record], [perfect(record, metadata)])
        results |= evaluator.evaluate() or {}
    return results


def test_cocos_separated_panoptic_set_maps_and_scores_the_truth_as_perfect(toy_root: Path) -> None:
    records = DatasetCatalog.get(SETS[0])
    mapped = SegMapper(True, augmentations=[], num_classes=54, masks="polygon")(records[0])
    metadata = MetadataCatalog.get(SETS[0])
    sky = metadata.stuff_classes.index("sky")
    assert set(mapped["sem_seg"].unique().tolist()) == {0, sky, 255}
    assert [metadata.thing_classes[i] for i in mapped["instances"].gt_classes] == ["person", "kite"]
    assert thing_sem_seg_ids(metadata) == (0,)
    results = scores_of_the_truth(SETS[0])
    assert results["panoptic_seg"]["PQ"] == results["sem_seg"]["mIoU"] == 100
    assert results["segm"]["AP"] == pytest.approx(100) and results["bbox"]["AP"] == pytest.approx(100)


def test_cocos_stuff_set_needs_no_instances(toy_root: Path) -> None:
    (record, _) = DatasetCatalog.get(SETS[1])
    mapped = SegMapper(True, augmentations=[], num_classes=54)(record)
    assert mapped["sem_seg"].shape == (32, 40) and "instances" not in mapped
    assert MetadataCatalog.get(SETS[1]).evaluator_type == "sem_seg"


@pytest.mark.skipif(not REAL.is_dir(), reason=f"{REAL} is not there (DETECTRON2_DATASETS)")
def test_genuine_panoptic_images_convert_map_and_score_the_truth_as_perfect(tmp_path: Path) -> None:
    base = tmp_path / "coco"
    (base / "val2017").mkdir(parents=True)
    listed = json.loads((REAL / "annotations/instances_val2017_panoptic_images.json").read_text())
    for image in listed["images"]:
        (base / "val2017" / image["file_name"]).symlink_to(REAL / "val2017" / image["file_name"])
    for name in ("panoptic_val2017", "annotations"):
        (base / name).symlink_to(REAL / name)
    coco.prepare(tmp_path)
    register_like_builtin(tmp_path, REAL / "annotations/instances_val2017_panoptic_images.json")
    records = DatasetCatalog.get(SETS[0])
    assert len(records) == len(listed["images"]) == 2
    for record in records:
        mapped = SegMapper(True, augmentations=[], num_classes=54, masks="bitmask")(record)
        assert len(mapped["instances"]) > 0 and mapped["sem_seg"].max() in (*range(54), 255)
    results = scores_of_the_truth(SETS[0])
    assert results["panoptic_seg"]["PQ"] == pytest.approx(100) and results["sem_seg"]["mIoU"] == pytest.approx(100)


def test_cityscapes_semantic_set_maps_and_evaluates_without_its_scripts(tmp_path: Path) -> None:
    images, truth = tmp_path / "leftImg8bit/val", tmp_path / "gtFine/val"
    for folder in (images, truth):
        (folder / "town").mkdir(parents=True)
    ids = np.resize(np.array([*range(19), 255], np.uint8), (20, 40))
    Image.fromarray(np.zeros((20, 40, 3), np.uint8)).save(images / "town/town_0_leftImg8bit.png")
    for kind in ("instanceIds", "labelIds", "labelTrainIds"):
        Image.fromarray(ids).save(truth / f"town/town_0_gtFine_{kind}.png")
    (truth / "town/town_0_gtFine_polygons.json").write_text('{"imgHeight": 20, "imgWidth": 40, "objects": []}')
    name = "toy_cityscapes"
    DatasetCatalog.register(name, lambda: load_cityscapes_semantic(str(images), str(truth)))
    kind = MetadataCatalog.get("cityscapes_fine_sem_seg_val").evaluator_type
    MetadataCatalog.get(name).set(evaluator_type=kind, ignore_label=255, **_get_builtin_metadata("cityscapes"))
    (record,) = DatasetCatalog.get(name)
    mapped = SegMapper(True, augmentations=[], num_classes=19)(record)
    assert np.array_equal(mapped["sem_seg"].numpy(), ids)
    config = get_cfg()
    config.MODEL.META_ARCHITECTURE, config.MODEL.SEM_SEG_HEAD.NUM_CLASSES = "SemanticSegmentor", 19
    (evaluator,) = build_evaluators(config, name)
    evaluator.process([record], [{"sem_seg_labels": mapped["sem_seg"] * (mapped["sem_seg"] < 19)}])
    assert evaluator.evaluate()["sem_seg"]["mIoU"] == 100
