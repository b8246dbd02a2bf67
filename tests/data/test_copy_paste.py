"""Copy-paste: image, label map, targets, boxes and masks get the pasted objects together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances
from PIL import Image
from pycocotools import mask as mask_util

from seg_ext.config import get_cfg
from seg_ext.data.copy_paste import CopyPaste, Sample
from seg_ext.data.label_io import write_label
from seg_ext.data.mapper import SegMapper
from seg_ext.errors import UserError


def sample(size: tuple[int, int], color: int, *boxes: tuple[int, int, int, int], **fields: Any) -> Sample:
    """Objects of one colour on black; their label is their class + 1, which is ``color`` + their number."""
    masks = np.zeros((len(boxes), *size), bool)
    image, label = np.zeros((*size, 3), np.uint8), np.zeros(size, np.int32)
    for i, (x0, y0, x1, y1) in enumerate(boxes):
        masks[i, y0:y1, x0:x1] = True
        image[masks[i]], label[masks[i]] = color + i, color + i + 1
    classes = torch.arange(color, color + len(boxes))
    instances = Instances(size, gt_classes=classes, gt_masks=BitMasks(torch.from_numpy(masks)))
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    return Sample(**{"image": image, "label": label, "instances": instances} | fields)


def test_what_is_pasted_covers_what_was_there() -> None:
    below = sample((20, 30), 10, (2, 2, 12, 12), (20, 10, 28, 18), (13, 0, 15, 3))
    above = sample((20, 30), 50, (7, 0, 16, 16))
    joined = CopyPaste(1.0)(below, lambda: above)
    classes, boxes = joined.instances.gt_classes.tolist(), joined.instances.gt_boxes.tensor.tolist()
    assert classes == [10, 11, 50]  # the third of below is gone
    assert boxes == [[2, 2, 7, 12], [20, 10, 28, 18], [7, 0, 16, 16]]
    for number, mask in zip(classes, joined.instances.gt_masks.tensor.numpy(), strict=True):
        np.testing.assert_array_equal(joined.label == number + 1, mask)
        np.testing.assert_array_equal((joined.image == number).all(axis=2), mask)
    assert (below.image < 50).all() and len(below.instances) == 3 and (below.label < 50).all()


@pytest.mark.parametrize(("least", "left"), [(0.0, [10, 50]), (0.2, [10, 50]), (0.21, [50]), (1.0, [50])])
def test_an_instance_with_too_little_left_is_dropped(least: float, left: list[int]) -> None:
    below, above = sample((20, 30), 10, (0, 0, 10, 10)), sample((20, 30), 50, (2, 0, 30, 20))
    joined = CopyPaste(1.0, min_visible=least)(below, lambda: above)
    assert joined.instances.gt_classes.tolist() == left
    assert (joined.label == 11).sum() == 20  # still what can be seen there


@pytest.mark.parametrize("size", [(10, 60), (40, 12)])
def test_samples_of_other_sizes_share_the_upper_left_corner(size: tuple[int, int]) -> None:
    below = sample((20, 30), 10)
    above = sample(size, 50, (2, 3, 9, 9), (size[1] - 4, size[0] - 4, size[1], size[0]))
    np.random.seed(0)
    seen = {}
    for _ in range(20):
        joined = CopyPaste(1.0)(below, lambda: above)
        assert joined.image.shape == (20, 30, 3) and joined.instances.image_size == (20, 30)
        seen |= dict(zip(joined.instances.gt_classes.tolist(), joined.instances.gt_boxes.tensor.tolist(), strict=True))
    assert seen == {50: [2, 3, 9, 9]}  # the other one lies outside


def test_how_many_and_which_objects_come_is_drawn() -> None:
    boxes = [(3 * i, 0, 3 * i + 2, 2) for i in range(8)]
    above = sample((4, 30), 50, *boxes)
    np.random.seed(0)
    drawn = [CopyPaste(1.0, max_objects=3)(sample((4, 30), 10), lambda: above) for _ in range(300)]
    counts = np.bincount([len(joined.instances) for joined in drawn])
    assert counts[0] == 0 and len(counts) == 4 and counts[1:].min() > 70
    classes = np.bincount([c for joined in drawn for c in joined.instances.gt_classes.tolist()])[50:]
    assert len(classes) == 8 and classes.min() > 45
    some = [CopyPaste(0.25)(sample((4, 30), 10), lambda: above) for _ in range(300)]
    assert 50 < sum(len(joined.instances) > 0 for joined in some) < 100


def test_without_objects_or_ground_truth_nothing_is_pasted() -> None:
    below, above = sample((20, 30), 10, (0, 0, 5, 5)), sample((20, 30), 50, (2, 0, 30, 20))
    for one, other in (
        (below, sample((20, 30), 50)),
        (below, sample((20, 30), 50, (0, 0, 9, 9), instances=None)),
        (sample((20, 30), 10, instances=None), above),
    ):
        assert CopyPaste(1.0)(one, lambda other=other: other) is one


def test_pasted_pixels_without_labels_are_ignored_and_weigh_what_they_did() -> None:
    weights = np.full((20, 30), 2, np.float32)
    below = sample((20, 30), 10, (0, 0, 5, 5), targets={"weight": weights})
    pasted = np.s_[0:20, 2:30]
    joined = CopyPaste(1.0, ignore=9)(below, lambda: sample((20, 30), 50, (2, 0, 30, 20), label=None))
    assert (joined.label[pasted] == 9).all() and (joined.targets["weight"][pasted] == 0).all()
    own = {"weight": np.full((20, 30), 3, np.float32)}
    joined = CopyPaste(1.0)(below, lambda: sample((20, 30), 50, (2, 0, 30, 20), targets=own))
    assert (joined.targets["weight"][pasted] == 3).all() and (joined.targets["weight"][:, :2] == 2).all()
    assert (weights == 2).all()


def test_eight_and_sixteen_bit_images_mix_without_loss() -> None:
    deep = sample((20, 30), 50, (2, 0, 30, 20))
    joined = CopyPaste(1.0)(
        sample((20, 30), 10), lambda: Sample(deep.image + np.float32(0.25), deep.label, deep.instances)
    )
    assert joined.image.dtype == np.float32 and (joined.image[:, 2:] == 50.25).all()


@pytest.mark.parametrize("values", [{"probability": 2}, {"min_visible": -1}, {"max_objects": 0}])
def test_wrong_values_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="probability .*, min_visible .*, max_objects .*: they are in"):
        CopyPaste(**values)


@pytest.fixture
def record(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """A record with one object of a class, whose grey is 40 x (class + 1) and whose label is class + 1."""

    def make(category: int, x0: int, y0: int, x1: int, y1: int) -> dict[str, Any]:
        labels = np.zeros((32, 48), np.uint8)
        labels[y0:y1, x0:x1] = category + 1
        Image.fromarray(np.repeat(labels[..., None] * 40, 3, axis=2)).save(tmp_path / f"{category}.png")
        write_label(tmp_path / f"{category}_label.png", labels)
        rle = mask_util.encode(np.asfortranarray(labels > 0).astype(np.uint8))
        annotation = {"bbox": [x0, y0, x1, y1], "bbox_mode": BoxMode.XYXY_ABS, "category_id": category}
        return {
            "file_name": str(tmp_path / f"{category}.png"),
            "sem_seg_file_name": str(tmp_path / f"{category}_label.png"),
            "annotations": [annotation | {"segmentation": rle}],
        }

    return make


def config(**keys: Any) -> Any:
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.MASK_ON, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = "PanopticSegmentor", True, 4
    cfg.INPUT.MASK_FORMAT, cfg.INPUT.COPY_PASTE.PROBABILITY = "bitmask", 1.0
    cfg.INPUT.AUGMENTATIONS = [{"NAME": "RandomScaleCrop", "size": [40, 56], "scale": [0.6, 2]}, {"NAME": "RandomFlip"}]
    cfg.merge_from_list([x for key, value in keys.items() for x in (key.replace("__", "."), value)])
    return cfg


def test_the_mapper_pastes_augmented_objects_and_keeps_everything_together(record: Any) -> None:
    records = [record(0, 2, 2, 30, 30), record(1, 10, 8, 40, 28)]
    mapper, both = SegMapper(config(), is_train=True), 0
    for seed in range(40):
        np.random.seed(seed)
        mapped = mapper(records[0], records)
        instances, label, image = mapped["instances"], mapped["sem_seg"], mapped["image"]
        assert mapped["file_name"] == records[0]["file_name"] and image.dtype == torch.uint8
        objects = [(label == c + 1) for c in range(2)]
        for category in set(instances.gt_classes.tolist()):
            mine = [i for i, c in enumerate(instances.gt_classes.tolist()) if c == category]
            union = instances.gt_masks.tensor[mine].any(dim=0)
            assert (objects[category] | ~union).all()
            for i in mine:
                rows, columns = np.nonzero(instances.gt_masks.tensor[i].numpy())
                box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                assert instances.gt_boxes.tensor[i].tolist() == box
        assert (image[0][label == 2].float() - 80).abs().median() <= 1 if (label == 2).any() else True
        both += len(set(instances.gt_classes.tolist())) == 2
        np.random.seed(seed)
        assert torch.equal(mapper(records[0], records)["image"], image)
    assert both > 5


def test_the_mapper_says_what_copy_paste_needs(record: Any) -> None:
    with pytest.raises(UserError, match=r"INPUT\.COPY_PASTE draws from the data set: hand its records"):
        SegMapper(config(), is_train=True)(record(0, 2, 2, 9, 9))
    for key, value in (("INPUT__MASK_FORMAT", "polygon"), ("MODEL__MASK_ON", False), ("MODEL__ROI_HEADS__NAME", "")):
        with pytest.raises(
            UserError, match=r"INPUT\.COPY_PASTE needs instances with MODEL\.MASK_ON and INPUT\.MASK_FO"
        ):
            SegMapper(config(**{key: value}), is_train=True)
    with pytest.raises(UserError, match=r"INPUT\.COPY_PASTE: probability 2\.0, min_visible"):
        SegMapper(config(INPUT__COPY_PASTE__PROBABILITY=2.0), is_train=True)
    assert SegMapper(config(), is_train=False)(record(0, 2, 2, 9, 9))["image"].shape[0] == 3
