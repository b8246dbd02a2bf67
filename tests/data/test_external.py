"""Augmentations from outside: a stand-in by albumentations' protocol, and the real one where it is installed."""

from __future__ import annotations

import pickle
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from pycocotools import mask as mask_util
from scipy import ndimage

from seg_ext.data.augmentation import Resize
from seg_ext.data.external import AlbumentationsAdapter, PixelMap
from seg_ext.data.instances import to_instances
from seg_ext.errors import UserError

SIZE = (40, 50)
BOXES = [(5, 6, 20, 30), (20, 10, 45, 22)]


def scene() -> tuple[np.ndarray, np.ndarray, list[dict[str, Any]]]:
    """Two rectangles: image, label map, annotations: one a polygon, one RLE."""
    image, label, annotations = np.zeros((*SIZE, 3), np.uint8), np.zeros(SIZE, np.int32), []
    for i, (x0, y0, x1, y1) in enumerate(BOXES):
        image[y0:y1, x0:x1], label[y0:y1, x0:x1] = 100 * (i + 1), 300 * i + 1
        annotations.append({"bbox": [x0, y0, x1, y1], "bbox_mode": BoxMode.XYXY_ABS, "category_id": i})
    annotations[0]["segmentation"] = [[5, 6, 20, 6, 20, 30, 5, 30]]
    annotations[1]["segmentation"] = mask_util.encode(np.asfortranarray(label == 301).astype(np.uint8))
    return image, label, annotations


def check(adapter: AlbumentationsAdapter, *others: T.Augmentation, trials: int = 12) -> int:
    """Everything stays together; returns in how many trials padding came in."""
    padded = 0
    for _ in range(trials):
        image, label, annotations = scene()
        data = T.AugInput(image, sem_seg=label)
        transforms = T.AugmentationList([*others, adapter])(data)
        size = data.image.shape[:2]
        for masks in ("bitmask", "polygon"):
            instances = to_instances(annotations, transforms, source=SIZE, size=size, masks=masks)
            assert {300 * c + 1 for c in instances.gt_classes.tolist()} == set(np.unique(data.sem_seg)) - {0, 255}
            for category, mask in zip(instances.gt_classes.tolist(), instances.gt_masks.tensor.numpy(), strict=True):
                np.testing.assert_array_equal(mask, data.sem_seg == 300 * category + 1)
                inner = ndimage.binary_erosion(mask, iterations=2)
                assert (np.abs(data.image[inner].astype(int) - 100 * (category + 1)) <= 1).all()
        boxes = to_instances(annotations, transforms, source=SIZE, size=size, masks="none")
        assert boxes.gt_classes.tolist() == instances.gt_classes.tolist()
        if not others:
            assert boxes.gt_boxes.tensor.tolist() == instances.gt_boxes.tensor.tolist()
        padded += (data.sem_seg == 255).any()
    return padded


def test_a_composes_image_labels_masks_and_boxes_stay_together(compose_stand_in: Any) -> None:
    np.random.seed(0)
    assert check(AlbumentationsAdapter(compose_stand_in(12))) > 6
    assert check(AlbumentationsAdapter("compose_stand_in:build", {"most": 12}), T.RandomFlip(), Resize([60, 70])) > 6


def test_padding_is_ignored_whatever_the_compose_pads_with() -> None:
    for fill in (0, 1, 255):

        def compose(*, image: np.ndarray, masks: list[np.ndarray], fill: int = fill, **_: Any) -> dict[str, Any]:
            wide = ((3, 0), (0, 2))
            padded = [np.pad(mask, wide, constant_values=fill) for mask in masks]
            return {"image": np.pad(image, (*wide, (0, 0))), "masks": padded}

        _, label, _ = scene()
        data = T.AugInput(scene()[0], sem_seg=label)
        transform = AlbumentationsAdapter(compose, ignore=77)(data)
        assert (data.sem_seg[:3] == 77).all() and (data.sem_seg[:, -2:] == 77).all()
        np.testing.assert_array_equal(data.sem_seg[3:, :-2], label)
        assert not transform.apply_segmentation(np.ones(SIZE, bool))[:3].any()


def test_the_compose_sees_the_label_map_and_gets_a_seed_of_numpys() -> None:
    class Seen:
        seeds: list[int] = []

        def set_random_seed(self, seed: int) -> None:
            self.seeds.append(seed)

        def __call__(self, **given: Any) -> dict[str, Any]:
            self.mask = given.get("mask")
            return given

    seen, (image, label, _) = Seen(), scene()
    for seed in (1, 1, 2):
        np.random.seed(seed)
        AlbumentationsAdapter(seen).get_transform(image, label)
    assert seen.seeds[0] == seen.seeds[1] != seen.seeds[2]
    np.testing.assert_array_equal(seen.mask, label)
    AlbumentationsAdapter(seen).get_transform(image, None)
    assert seen.mask is None


def test_a_compose_that_breaks_the_contract_is_named() -> None:
    def normalised(*, image: np.ndarray, masks: list[np.ndarray], **_: Any) -> dict[str, Any]:
        return {"image": image / 255, "masks": masks}

    def cropped(*, image: np.ndarray, masks: list[np.ndarray], **_: Any) -> dict[str, Any]:
        return {"image": image[5:], "masks": masks}

    image, label, _ = scene()
    with pytest.raises(UserError, match=r"function made float64 \(40, 50, 3\) of an image of uint8 .*must stay"):
        AlbumentationsAdapter(normalised).get_transform(image, label)
    with pytest.raises(UserError, match="function did not move the masks with the image"):
        AlbumentationsAdapter(cropped).get_transform(image, label)


def test_points_are_refused_by_a_map_of_pixels() -> None:
    image = scene()[0]
    rows, columns = np.indices(SIZE)
    with pytest.raises(TypeError, match="moves no points"):
        PixelMap(image, rows, columns, rows >= 0, ignore=255).apply_coords(np.zeros((1, 2)))


@pytest.mark.skipif(find_spec("albumentations") is None, reason="albumentations is not installed")
def test_albumentations_itself() -> None:
    import albumentations as A

    compose = A.Compose(
        [A.RandomCrop(30, 40), A.HorizontalFlip(p=0.5), A.Affine(rotate=(-30, 30), scale=(0.5, 1), p=1)]
    )
    np.random.seed(0)
    assert check(pickle.loads(pickle.dumps(AlbumentationsAdapter(compose)))) > 3
    image, label, _ = scene()
    results = []
    for seed in (1, 1, 2):
        np.random.seed(seed)
        results.append(AlbumentationsAdapter(compose).get_transform(image, label).image.tobytes())
    assert results[0] == results[1] != results[2]
