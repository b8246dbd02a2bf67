"""The mapper: what it gives, and that image, label map, boxes and masks stay together."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, BoxMode, PolygonMasks
from PIL import Image
from pycocotools import mask as mask_util
from scipy import ndimage

from seg_ext.config import get_cfg, load_config
from seg_ext.data import mapper as mapper_module
from seg_ext.data.augmentation import AUGMENTATIONS
from seg_ext.data.label_io import write_label
from seg_ext.data.mapper import SegMapper
from seg_ext.errors import UserError

HEIGHT, WIDTH = 48, 64
RECTANGLES = {  # semantic id: (x0, y0, x1, y1), RGB
    1: ((4, 6, 24, 30), (250, 40, 40)),
    2: ((24, 10, 50, 22), (40, 250, 40)),  # touches the first
    3: ((36, 30, 64, 48), (40, 40, 250)),  # in the corner
}
GEOMETRIC: dict[str, dict[str, Any]] = {
    "RandomScaleCrop": {"size": [40, 56], "scale": [0.6, 2.0]},
    "Resize": {"size": [70, 50]},
    "ResizeShortestEdge": {"short_edge_length": [30, 80], "sample_style": "range"},
    "RandomFlip": {"prob": 1.0},
    "RandomRotate90": {},
    "RandomRotation": {"angle": [-25, 25]},
    "ElasticDeformation": {"std": 3},
    "Albumentations": {"compose": "compose_stand_in:build", "arguments": {"most": 9}},
}
PHOTOMETRIC: dict[str, dict[str, Any]] = {
    "RandomBrightness": {"intensity_min": 0.5, "intensity_max": 0.9},
    "RandomContrast": {"intensity_min": 0.5, "intensity_max": 0.9},
    "ColorJitter": {"brightness": [0.5, 0.9], "saturation": [0.5, 0.9], "gamma": [0.5, 0.9], "balance": [0.8, 1.2]},
    "GaussianBlur": {"sigma": [1.0, 2.0]},
    "GaussianNoise": {"std": [5.0, 10.0]},
}
COMBINED = [
    {"NAME": "RandomRotate90"},
    {"NAME": "RandomFlip", "prob": 0.5, "horizontal": False, "vertical": True},
    {"NAME": "RandomScaleCrop", "size": [40, 56], "scale": [0.6, 2.0], "aspect": [0.7, 1.4]},
    {"NAME": "RandomFlip", "PROBABILITY": 0.5},
    {"NAME": "Albumentations", "PROBABILITY": 0.5, **GEOMETRIC["Albumentations"]},
]


def config(*augmentations: dict[str, Any], **keys: Any) -> Any:
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "PanopticSegmentor"
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 4
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.MASK_FORMAT = "bitmask"
    cfg.INPUT.AUGMENTATIONS = list(augmentations)
    cfg.merge_from_list([x for pair in keys.items() for x in (pair[0].replace("__", "."), pair[1])])
    return cfg


@pytest.fixture
def record(tmp_path: Path) -> dict[str, Any]:
    """Three rectangles, each with its colour, its label id and one annotation of category id - 1."""
    image, labels = np.zeros((HEIGHT, WIDTH, 3), np.uint8), np.zeros((HEIGHT, WIDTH), np.uint8)
    annotations = []
    for i, ((x0, y0, x1, y1), color) in RECTANGLES.items():
        image[y0:y1, x0:x1], labels[y0:y1, x0:x1] = color, i
        rle = mask_util.encode(np.asfortranarray((labels == i).astype(np.uint8)))
        annotation = {"bbox": [x0, y0, x1 - x0, y1 - y0], "bbox_mode": BoxMode.XYWH_ABS, "category_id": i - 1}
        annotations.append(annotation | {"segmentation": rle, "iscrowd": 0})
    Image.fromarray(image).save(tmp_path / "image.png")
    write_label(tmp_path / "label.png", labels)
    return {
        "file_name": str(tmp_path / "image.png"),
        "sem_seg_file_name": str(tmp_path / "label.png"),
        "annotations": annotations,
        "image_id": 7,
        "height": HEIGHT,
        "width": WIDTH,
    }


def with_polygons(record: dict[str, Any]) -> dict[str, Any]:
    record = copy.deepcopy(record)
    for annotation, ((x0, y0, x1, y1), _) in zip(record["annotations"], RECTANGLES.values(), strict=True):
        annotation["segmentation"] = [[x0, y0, x1, y0, x1, y1, x0, y1]]
    return record


def tight_box(mask: np.ndarray) -> list[int]:
    rows, columns = np.nonzero(mask)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_every_augmentation_of_the_table_is_tested_here() -> None:
    assert set(GEOMETRIC) | set(PHOTOMETRIC) == set(AUGMENTATIONS)


@pytest.mark.parametrize("entries", [*([{"NAME": n, **a}] for n, a in GEOMETRIC.items()), COMBINED])
def test_image_label_boxes_and_masks_move_together(record: dict[str, Any], entries: list[dict[str, Any]]) -> None:
    mapper = SegMapper(config(*entries), is_train=True)
    seen = 0
    for seed in range(25):
        np.random.seed(seed)
        mapped = mapper(record)
        image, label, instances = mapped["image"].permute(1, 2, 0).numpy(), mapped["sem_seg"], mapped["instances"]
        assert image.shape[:2] == tuple(label.shape) == instances.image_size == tuple(instances.gt_masks.image_size)
        assert {i + 1 for i in instances.gt_classes.tolist()} == set(label.unique().tolist()) - {0, 255}
        for category, mask, box in zip(
            instances.gt_classes.tolist(), instances.gt_masks, instances.gt_boxes.tensor.tolist(), strict=True
        ):
            np.testing.assert_array_equal(mask.numpy(), label == category + 1)
            assert box == tight_box(mask.numpy())
            inner = ndimage.binary_erosion(mask.numpy(), iterations=3)
            color = np.array(RECTANGLES[category + 1][1])
            assert (np.abs(image[inner] - color.astype(int)) <= 1).all()
            seen += inner.any()
        far = ~ndimage.binary_dilation(np.isin(label.numpy(), list(RECTANGLES)), iterations=3) & (label.numpy() == 0)
        assert (image[1:-1, 1:-1][far[1:-1, 1:-1]] <= 1).all()  # at the rim, what lies outside may shine in
    assert seen > 25


@pytest.mark.parametrize("entries", [*([{"NAME": n, **a}] for n, a in GEOMETRIC.items()), COMBINED])
@pytest.mark.parametrize("mask_format", ["bitmask", "polygon"])
def test_polygons_move_as_the_label_does(
    record: dict[str, Any], entries: list[dict[str, Any]], mask_format: str
) -> None:
    mapper = SegMapper(config(*entries, INPUT__MASK_FORMAT=mask_format), is_train=True)
    for seed in range(10):
        np.random.seed(seed)
        mapped = mapper(with_polygons(record))
        instances, size = mapped["instances"], tuple(mapped["sem_seg"].shape)
        kinds = [BitMasks] * (mask_format == "bitmask" or entries[-1]["NAME"] == "Albumentations")
        kinds += [PolygonMasks] * (mask_format == "polygon" and entries[-1].get("PROBABILITY", 0) < 1)
        assert isinstance(instances.gt_masks, tuple(kinds))
        for k, category in enumerate(instances.gt_classes.tolist()):
            labelled = (mapped["sem_seg"] == category + 1).numpy()
            if isinstance(instances.gt_masks, BitMasks):
                mask = instances.gt_masks.tensor[k].numpy()
            else:
                polygons = [p.tolist() for p in instances.gt_masks.polygons[k]]
                mask = mask_util.decode(mask_util.merge(mask_util.frPyObjects(polygons, *size))).astype(bool)
            rim = ndimage.binary_dilation(labelled) ^ ndimage.binary_erosion(labelled, border_value=1)
            assert not (mask ^ labelled)[~rim].any()
            assert np.abs(np.array(tight_box(mask)) - instances.gt_boxes.tensor[k].numpy()).max() <= 1


@pytest.mark.parametrize("name", PHOTOMETRIC)
def test_colour_changes_leave_labels_and_masks_alone(record: dict[str, Any], name: str) -> None:
    mapped = SegMapper(config({"NAME": name, **PHOTOMETRIC[name]}), is_train=True)(record)
    stored = np.asarray(Image.open(record["file_name"]))
    assert (mapped["image"].permute(1, 2, 0).numpy() != stored).any()
    np.testing.assert_array_equal(mapped["sem_seg"], np.asarray(Image.open(record["sem_seg_file_name"])))
    boxes = [list(map(float, box)) for box, _ in RECTANGLES.values()]
    assert mapped["instances"].gt_boxes.tensor.tolist() == boxes


def test_training_gives_detectron2s_types_and_the_stored_size(record: dict[str, Any]) -> None:
    mapped = SegMapper(config({"NAME": "Resize", "size": [20, 30]}), is_train=True)(record)
    assert mapped.keys() == {"image", "sem_seg", "instances", "height", "width", "file_name", "image_id"}
    assert mapped["image"].dtype == torch.uint8 and mapped["image"].shape == (3, 20, 30)
    assert mapped["image"].is_contiguous() and mapped["sem_seg"].is_contiguous()
    assert mapped["sem_seg"].dtype == torch.int64 and mapped["sem_seg"].shape == (20, 30)
    assert (mapped["height"], mapped["width"], mapped["image_id"]) == (HEIGHT, WIDTH, 7)
    assert mapped["instances"].gt_masks.tensor.dtype == torch.bool


def test_the_record_is_not_changed_and_the_mapper_travels_to_workers(record: dict[str, Any]) -> None:
    before = copy.deepcopy(record)
    mapper = pickle.loads(pickle.dumps(SegMapper(config(*COMBINED), is_train=True)))
    np.random.seed(0)
    first = mapper(record)
    assert record == before
    np.random.seed(0)
    assert torch.equal(first["image"], mapper(record)["image"])


@pytest.mark.parametrize("ignore", [1, -1, 300])
def test_padding_is_ignored_in_labels_absent_from_masks_and_the_mean_in_images(
    record: dict[str, Any], ignore: int
) -> None:
    crop = {"NAME": "RandomScaleCrop", "size": [60, 80]}
    cfg = config(crop, MODEL__PIXEL_MEAN=[10.0, 20.0, 30.0], MODEL__SEM_SEG_HEAD__IGNORE_VALUE=ignore)
    mapped = SegMapper(cfg, is_train=True)(record)
    outside = torch.ones(60, 80, dtype=torch.bool)
    outside[:HEIGHT, :WIDTH] = False
    assert (mapped["sem_seg"][outside] == ignore).all()
    assert not mapped["instances"].gt_masks.tensor[:, outside].any()
    assert mapped["image"][:, -1, -1].tolist() == [10, 20, 30]


def test_a_window_beside_all_objects_gives_empty_instances_with_every_field(record: dict[str, Any]) -> None:
    for fields in ({"annotations": []}, {"annotations": record["annotations"][:1]}):
        for mask_format in ("bitmask", "polygon"):
            cfg = config({"NAME": "RandomScaleCrop", "size": [4, 4]}, INPUT__MASK_FORMAT=mask_format)
            np.random.seed(3)
            instances = SegMapper(cfg, is_train=True)(with_polygons(record) | fields)["instances"]
            assert len(instances) == 0 and instances.gt_boxes.tensor.shape == (0, 4)
            assert len(instances.gt_masks) == 0 and instances.gt_classes.dtype == torch.int64


def test_an_instance_whose_box_stays_but_whose_pixels_leave_is_dropped(record: dict[str, Any]) -> None:
    corners = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    corners[0, 0] = corners[-1, -1] = 1
    annotation = {"bbox": [0, 0, WIDTH, HEIGHT], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    record["annotations"] = [annotation | {"segmentation": mask_util.encode(corners)}]
    np.random.seed(0)
    mapper = SegMapper(config({"NAME": "RandomScaleCrop", "size": [40, 40]}), is_train=True)
    counts = [len(mapper(record)["instances"]) for _ in range(20)]
    assert 0 in counts


def test_crowds_are_dropped_and_uncompressed_rle_is_read(record: dict[str, Any]) -> None:
    record["annotations"][0]["iscrowd"] = 1
    x0, y0, x1, y1 = RECTANGLES[2][0]
    column = [y1 - y0, HEIGHT - (y1 - y0)] * (x1 - x0)
    column[-1] = HEIGHT * WIDTH - sum(column[:-1]) - (x0 * HEIGHT + y0)
    record["annotations"][1]["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": [x0 * HEIGHT + y0, *column]}
    instances = SegMapper(config({"NAME": "RandomFlip", "prob": 0.0}), is_train=True)(record)["instances"]
    assert instances.gt_classes.tolist() == [1, 2]
    assert instances.gt_boxes.tensor[0].tolist() == [x0, y0, x1, y1]


def test_rle_makes_bitmasks_under_the_polygon_format_too(record: dict[str, Any]) -> None:
    cfg = config({"NAME": "RandomFlip"}, INPUT__MASK_FORMAT="polygon")
    assert isinstance(SegMapper(cfg, is_train=True)(record)["instances"].gt_masks, BitMasks)


def test_without_masks_boxes_are_clipped_and_those_outside_dropped(record: dict[str, Any]) -> None:
    for annotation in record["annotations"]:
        del annotation["segmentation"]
    np.random.seed(0)
    mapper = SegMapper(config({"NAME": "RandomScaleCrop", "size": [24, 24]}, MODEL__MASK_ON=False), is_train=True)
    for _ in range(20):
        mapped = mapper(record)
        assert not mapped["instances"].has("gt_masks")
        for box, category in zip(mapped["instances"].gt_boxes, mapped["instances"].gt_classes.tolist(), strict=True):
            assert box.tolist() == tight_box((mapped["sem_seg"] == category + 1).numpy())


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"MODEL__SEM_SEG_HEAD__NAME": ""}, {"instances"}),
        ({"MODEL__ROI_HEADS__NAME": ""}, {"sem_seg"}),
        ({"MODEL__META_ARCHITECTURE": "SemanticSegmentor"}, {"sem_seg"}),
        ({"MODEL__META_ARCHITECTURE": "GeneralizedRCNN"}, {"instances"}),
        ({}, {"sem_seg", "instances"}),
    ],
)
def test_the_heads_decide_the_ground_truth(record: dict[str, Any], keys: dict[str, Any], expected: set[str]) -> None:
    mapped = SegMapper(config({"NAME": "RandomFlip"}, **keys), is_train=True)(record)
    assert mapped.keys() & {"sem_seg", "instances"} == expected


def test_records_without_a_ground_truth_are_mapped_without_it(record: dict[str, Any]) -> None:
    mapper = SegMapper(config({"NAME": "RandomFlip"}), is_train=True)
    del record["annotations"]
    assert "instances" not in mapper(record) and "sem_seg" in mapper(record)
    del record["sem_seg_file_name"]
    assert "sem_seg" not in mapper(record)


def test_label_maps_come_from_the_record(record: dict[str, Any]) -> None:
    mapper = SegMapper(config({"NAME": "RandomFlip"}), is_train=True)
    mapped = mapper(record | {"sem_seg_label_map": {3: 255, 2: 1}})
    assert mapped["sem_seg"].unique().tolist() == [0, 1, 255]
    assert mapper(record)["sem_seg"].unique().tolist() == [0, 1, 2, 3]


def test_one_class_means_ids_zero_and_one(record: dict[str, Any]) -> None:
    mapper = SegMapper(config({"NAME": "RandomFlip"}, MODEL__SEM_SEG_HEAD__NUM_CLASSES=1), is_train=True)
    assert mapper(record | {"sem_seg_label_map": {2: 1, 3: 1}})["sem_seg"].unique().tolist() == [0, 1]
    with pytest.raises(UserError, match=r"label\.png: label ids 2, 3 are neither in 0\.\.1"):
        mapper(record)


def test_test_time_never_reads_labels_and_only_resizes(record: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a label was read")

    monkeypatch.setattr(mapper_module, "read_record_label", refuse)
    monkeypatch.setattr(mapper_module, "to_instances", refuse)
    cfg = config(*COMBINED, INPUT__MIN_SIZE_TEST=24, INPUT__MAX_SIZE_TEST=1000)
    record["sem_seg_file_name"] = "none.png"
    mapped = SegMapper(cfg, is_train=False)(record)
    assert mapped.keys() == {"image", "height", "width", "file_name", "image_id"}
    assert mapped["image"].shape == (3, 24, 32) and (mapped["height"], mapped["width"]) == (HEIGHT, WIDTH)


def test_an_image_in_memory_is_mapped_like_its_file(record: dict[str, Any]) -> None:
    mapper = SegMapper(config(INPUT__MIN_SIZE_TEST=30, INPUT__FORMAT="BGR"), is_train=False)
    rgb = np.asarray(Image.open(record["file_name"]))
    from_memory, from_file = mapper.map_image(rgb[..., ::-1]), mapper(record)
    assert from_memory.keys() == {"image", "height", "width"}
    assert all(torch.equal(torch.as_tensor(from_memory[k]), torch.as_tensor(from_file[k])) for k in from_memory)


def test_no_test_resize_keeps_every_pixel(record: dict[str, Any]) -> None:
    image = SegMapper(config(INPUT__MIN_SIZE_TEST=0), is_train=False)(record)["image"]
    np.testing.assert_array_equal(image.permute(1, 2, 0), np.asarray(Image.open(record["file_name"])))


def test_an_empty_list_means_detectron2s_defaults(record: dict[str, Any]) -> None:
    cfg = config(INPUT__MIN_SIZE_TRAIN=(24, 36), INPUT__MAX_SIZE_TRAIN=1000, INPUT__RANDOM_FLIP="vertical")
    np.random.seed(0)
    mapped = [SegMapper(cfg, is_train=True)(record) for _ in range(20)]
    assert {tuple(m["image"].shape) for m in mapped} == {(3, 24, 32), (3, 36, 48)}
    tops = [m["instances"].gt_boxes.tensor[0, 1].item() / m["image"].shape[1] for m in mapped]
    lefts = {m["instances"].gt_boxes.tensor[0, 0].item() / m["image"].shape[2] for m in mapped}
    assert min(tops) < 0.2 < max(tops) and lefts == {4 / 64}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"INPUT__CROP__ENABLED": True}, r"INPUT\.CROP\.ENABLED is not used; list RandomScaleCrop"),
        ({"INPUT__RANDOM_FLIP": "both"}, r"INPUT\.RANDOM_FLIP is 'both'"),
        ({"INPUT__MASK_FORMAT": "rle"}, r"INPUT\.MASK_FORMAT is 'rle'"),
        ({"INPUT__MIN_SIZE_TRAIN_SAMPLING": "range"}, r"INPUT\.MIN_SIZE_TRAIN.*least, greatest"),
    ],
)
def test_a_config_that_cannot_be_followed_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SegMapper(config(**keys), is_train=True)


def test_sizes_that_differ_are_named_with_their_files(record: dict[str, Any], tmp_path: Path) -> None:
    mapper = SegMapper(config({"NAME": "RandomFlip"}), is_train=True)
    with pytest.raises(UserError, match=r"image\.png is 64x48, but its annotations say 64x99"):
        mapper(record | {"height": 99})
    small = {"size": [3, 3], "counts": [0, 9]}
    with pytest.raises(UserError, match=r"image\.png: a mask of \(height, width\) \(3, 3\) on an image of \(48, 64\)"):
        mapper(record | {"annotations": [record["annotations"][0] | {"segmentation": small}]})
    write_label(tmp_path / "label.png", np.zeros((5, 6), np.uint8))
    with pytest.raises(UserError, match=r"label\.png is 6x5, but its image .*image\.png is 64x48"):
        mapper(record)


@pytest.mark.parametrize("key", ["bbox", "category_id", "segmentation"])
def test_an_incomplete_annotation_is_named(record: dict[str, Any], key: str) -> None:
    del record["annotations"][1][key]
    with pytest.raises(UserError, match=rf"image\.png: an annotation lacks {key}"):
        SegMapper(config({"NAME": "RandomFlip"}), is_train=True)(record)


def test_test_images_may_have_one_fixed_size() -> None:
    cfg = load_config("Base-Semantic.yaml")
    cfg.INPUT.AUGMENTATIONS_TEST = [{"NAME": "Resize", "size": [24, 32]}]
    mapped = SegMapper(cfg, is_train=False).map_image(np.zeros((50, 40, 3), np.uint8))
    assert mapped["image"].shape == (3, 24, 32) and (mapped["height"], mapped["width"]) == (50, 40)


def test_random_test_augmentations_are_refused() -> None:
    cfg = load_config("Base-Semantic.yaml")
    cfg.INPUT.AUGMENTATIONS_TEST = [{"NAME": "RandomFlip"}]
    with pytest.raises(UserError, match="INPUT.AUGMENTATIONS_TEST: RandomFlip; takes Resize and ResizeShortestEdge"):
        SegMapper(cfg, is_train=False)
