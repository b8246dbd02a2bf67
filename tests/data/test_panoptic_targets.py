"""Numbers of instances from panoptic maps, through the mapper's augmentations."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from detectron2.data import transforms as T

from seg_ext.data.mapper import SegMapper
from seg_ext.data.targets import build_targets
from seg_ext.errors import UserError

IDS = np.array([[0, 7, 7, 300], [9, 9, 70000, 300]])  # void, a thing, stuff, a crowd, another thing
SEGMENTS = [
    {"id": 7, "isthing": True, "category_id": 0, "iscrowd": 0},
    {"id": 9, "isthing": False, "category_id": 0, "iscrowd": 0},
    {"id": 300, "isthing": True, "category_id": 0, "iscrowd": 1},
    {"id": 70000, "isthing": True, "category_id": 0},
    {"id": 1 << 24, "isthing": False, "category_id": 0},  # no PNG holds it
]


@pytest.fixture
def record(tmp_path: Path) -> dict[str, Any]:
    rgb = np.stack([IDS & 255, IDS >> 8 & 255, IDS >> 16], axis=2).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "p.png"), rgb[..., ::-1])
    cv2.imwrite(str(tmp_path / "i.png"), np.zeros((2, 4, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "s.png"), np.zeros((2, 4), np.uint8))
    files = {"file_name": "i.png", "sem_seg_file_name": "s.png", "pan_seg_file_name": "p.png"}
    return {key: str(tmp_path / name) for key, name in files.items()} | {"segments_info": SEGMENTS}


def test_void_and_crowds_are_0_stuff_1_and_instances_follow(record: dict[str, Any]) -> None:
    (target,) = build_targets([{"NAME": "panoptic_ids"}])
    mapper = SegMapper(True, augmentations=[T.HFlipTransform(4)], num_classes=2, targets=[target])
    assert mapper(record)["panoptic_ids"].tolist() == [[0, 2, 2, 0], [0, 3, 1, 1]]


def test_a_record_without_a_panoptic_map_is_named(record: dict[str, Any]) -> None:
    (target,) = build_targets([{"NAME": "panoptic_ids"}])
    del record["pan_seg_file_name"]
    with pytest.raises(UserError, match="i.png: INPUT.TARGETS panoptic_ids needs a panoptic data set"):
        target(record, np.zeros((2, 4), np.int32))
    with pytest.raises(UserError, match=r"p.png is \(2, 4\), but its label map \(3, 4\)"):
        target(record | {"pan_seg_file_name": str(Path(record["file_name"]).with_name("p.png"))}, np.zeros((3, 4)))
