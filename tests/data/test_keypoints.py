"""Keypoints of persons: they follow the image as detectron2's do, and mirroring alone exchanges left and right."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from detectron2.data.detection_utils import create_keypoint_hflip_indices, transform_keypoint_annotations
from detectron2.modeling import build_model
from detectron2.structures import BoxMode
from detectron2.utils.events import EventStorage
from PIL import Image

import seg_ext.modeling  # noqa: F401  registers models
from seg_ext.config import load_config
from seg_ext.data.augmentation import build_augmentations
from seg_ext.data.instances import to_instances
from seg_ext.data.keypoints import mirrored_keypoints
from seg_ext.data.mapper import SegMapper
from seg_ext.errors import UserError

COCO = "keypoints_coco_2017_train"
SIZE = (48, 64)
FLIP = {"NAME": "RandomFlip", "prob": 1.0}
SMALL = [
    *("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.RESNETS.NORM", "GN"),
    *("MODEL.FPN.OUT_CHANNELS", 16, "MODEL.ROI_BOX_HEAD.FC_DIM", 16, "MODEL.ROI_MASK_HEAD.CONV_DIM", 16),
    *("MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", [16], "MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE", 1),
    *("MODEL.RPN.POST_NMS_TOPK_TRAIN", 50, "MODEL.BACKBONE.FREEZE_AT", 0, "MODEL.DEVICE", "cpu"),
    *("INPUT.MASK_FORMAT", "bitmask"),
]


@pytest.fixture(autouse=True)
def no_toy_left() -> Iterator[None]:
    yield
    for name in ("persons", "pairs", "maps"):
        MetadataCatalog.pop(name, None)


def annotation(seed: int = 0, points: int = 17) -> dict[str, Any]:
    """A person that fills the image, some of its points out of sight."""
    draw = np.random.default_rng(seed)
    found = np.column_stack([draw.uniform(0, SIZE[1], points), draw.uniform(0, SIZE[0], points)])
    keypoints = np.column_stack([found, draw.integers(0, 3, points)]).ravel().tolist()
    corners = [0, 0, SIZE[1], 0, SIZE[1], SIZE[0], 0, SIZE[0]]
    box = {"bbox": [0, 0, SIZE[1], SIZE[0]], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "iscrowd": 0}
    return box | {"keypoints": keypoints, "segmentation": [corners]}


def transformed(*entries: dict[str, Any]) -> tuple[T.TransformList, tuple[int, int]]:
    data = T.AugInput(np.zeros((*SIZE, 3), np.uint8))
    transforms = T.AugmentationList(build_augmentations(list(entries), ignore=255, pad_value=(0, 0, 0)))(data)
    return transforms, data.image.shape[:2]


def moved(*entries: dict[str, Any], masks: str = "none") -> torch.Tensor:
    transforms, size = transformed(*entries)
    found = to_instances(
        [annotation()], transforms, source=SIZE, size=size, masks=masks, mirrored=mirrored_keypoints([COCO])
    )
    return found.gt_keypoints.tensor[0]


@pytest.mark.parametrize("masks", ["none", "bitmask", "polygon"])
@pytest.mark.parametrize(
    "entries", [[], [FLIP], [{"NAME": "RandomScaleCrop", "size": [40, 56], "scale": [1.2, 2.0]}, FLIP], [FLIP, FLIP]]
)
def test_they_move_as_detectron2s(entries: list[dict[str, Any]], masks: str) -> None:
    np.random.seed(3)
    transforms, size = transformed(*entries)
    np.random.seed(3)
    flips = create_keypoint_hflip_indices([COCO])
    expected = transform_keypoint_annotations(annotation()["keypoints"], transforms, size, flips)
    np.testing.assert_allclose(moved(*entries, masks=masks), expected.astype(np.float32), atol=1e-5)
    assert (expected[:, 2] > 0).any() and (expected[:, 2] == 0).any()


def test_an_upside_down_image_is_mirrored_and_one_turned_round_is_not() -> None:
    order, plain = list(mirrored_keypoints([COCO])), moved()
    assert order[1] == 2 and sorted(order) == list(range(17))
    downwards = moved({"NAME": "RandomFlip", "prob": 1.0, "horizontal": False, "vertical": True})
    assert torch.equal(downwards[:, 2], plain[order, 2])
    turned = moved(FLIP, {"NAME": "RandomFlip", "prob": 1.0, "horizontal": False, "vertical": True})
    assert torch.equal(turned[:, 2], plain[:, 2])
    shown = plain[:, 2] > 0
    torch.testing.assert_close(turned[shown, :2], plain.new_tensor([SIZE[1], SIZE[0]]) - plain[shown, :2])


def record(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8)).save(tmp_path / "a.png")
    common = {"file_name": str(tmp_path / "a.png"), "image_id": 1, "height": SIZE[0], "width": SIZE[1]}
    return common | {"annotations": [annotation() | changes]}


def test_a_keypoint_head_beside_masks_trains_on_what_the_mapper_reads(tmp_path: Path) -> None:
    cfg = load_config("coco/keypoint_mask_rcnn_R_50_FPN_1x.yaml", SMALL)
    cfg.INPUT.AUGMENTATIONS = [FLIP]
    mapped = SegMapper(cfg, is_train=True)(record(tmp_path))
    outside = mapped | {"instances": mapped["instances"][:0]}
    assert mapped["instances"].gt_keypoints.tensor.shape == (1, 17, 3) and outside["instances"].has("gt_keypoints")
    model = build_model(cfg).train()
    with EventStorage():
        losses = model([mapped, outside])
    assert losses["loss_keypoint"] > 0 and all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    assert model.roi_heads.keypoint_head.score_lowres.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keypoints": [1, 2, 2]}, r"a\.png: keypoints of 3 numbers; takes x, y and visibility of 17 points"),
        ({"keypoints": None}, r"a\.png: an annotation lacks keypoints"),
    ],
)
def test_annotations_that_do_not_fit_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    bad = record(tmp_path, **changes)
    if changes["keypoints"] is None:
        del bad["annotations"][0]["keypoints"]
    mapper = SegMapper(load_config("coco/keypoint_rcnn_R_50_FPN_1x.yaml"), is_train=True)
    with pytest.raises(UserError, match=message):
        mapper(bad)


def test_what_moves_pixels_alone_or_pastes_objects_moves_no_keypoints(tmp_path: Path) -> None:
    cfg = load_config("coco/keypoint_mask_rcnn_R_50_FPN_1x.yaml", SMALL)
    cfg.INPUT.AUGMENTATIONS = [{"NAME": "Albumentations", "compose": "compose_stand_in:build"}]
    with pytest.raises(UserError, match=r"a\.png: keypoints cannot follow an augmentation that moves pixels alone"):
        SegMapper(cfg, is_train=True)(record(tmp_path))
    cfg.INPUT.COPY_PASTE.PROBABILITY = 0.5
    with pytest.raises(UserError, match=r"INPUT\.COPY_PASTE moves no keypoints"):
        SegMapper(cfg, is_train=True)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "data set persons has no keypoint_names in its metadata"),
        ({"keypoint_names": ["a", "b"]}, "persons has no keypoint_flip_map"),
        ({"keypoint_names": ["a", "b"], "keypoint_flip_map": [("a", "c")]}, "keypoint_flip_map has 'c'"),
        ({"keypoint_names": ["a", "b"], "keypoint_flip_map": [("a", "b")]}, "NUM_KEYPOINTS is 17; .* persons has 2"),
    ],
)
def test_metadata_that_do_not_fit_are_named(metadata: dict[str, Any], message: str) -> None:
    MetadataCatalog.get("persons").set(thing_classes=["person"], **metadata)
    cfg = load_config("coco/keypoint_rcnn_R_50_FPN_1x.yaml")
    cfg.DATASETS.TRAIN = ("persons",)
    with pytest.raises(UserError, match=message):
        SegMapper(cfg, is_train=True)


def test_sets_of_label_maps_are_passed_over_and_sets_of_other_keypoints_refused() -> None:
    MetadataCatalog.get("maps").set(stuff_classes=["ground"])
    MetadataCatalog.get("pairs").set(
        thing_classes=["person"], keypoint_names=["a", "b"], keypoint_flip_map=[("a", "b")]
    )
    assert mirrored_keypoints(["maps", "pairs"]) == (1, 0)
    with pytest.raises(UserError, match="takes sets with the same keypoints"):
        mirrored_keypoints([COCO, "pairs"])
