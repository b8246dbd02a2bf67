"""Masks of instances: drawn near the polygons alone, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, BoxMode
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as mask_util

from seg_ext.data.instances import _draw, tight_boxes, to_instances

NUMBER = st.floats(-20, 60, allow_nan=False)
POLYGONS = st.lists(st.lists(st.tuples(NUMBER, NUMBER), min_size=3, max_size=9), min_size=1, max_size=3)


@given(polygons=POLYGONS, height=st.integers(1, 40), width=st.integers(1, 40))
@settings(max_examples=300, deadline=None)
def test_a_mask_drawn_near_its_polygons_is_the_one_drawn_over_the_whole_image(
    polygons: list[list[tuple[float, float]]], height: int, width: int
) -> None:
    flat = [np.array(polygon).reshape(-1) for polygon in polygons]
    mask = np.zeros((height, width), bool)
    _draw(mask, flat)
    rle = mask_util.merge(mask_util.frPyObjects([p.tolist() for p in flat], height, width))
    np.testing.assert_array_equal(mask, mask_util.decode(rle).astype(bool))


def test_tight_boxes_are_detectron2s() -> None:
    masks = np.random.default_rng(0).random((6, 9, 11)) > 0.97
    masks[2] = False
    expected = BitMasks(torch.from_numpy(masks)).get_bounding_boxes().tensor
    torch.testing.assert_close(tight_boxes(masks), expected)
    assert tight_boxes(np.zeros((0, 9, 11), bool)).shape == (0, 4)


@pytest.mark.parametrize("polygon", [[1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7], []])
@pytest.mark.parametrize("masks", ["bitmask", "polygon"])
def test_a_polygon_without_three_corners_is_refused(polygon: list[float], masks: str) -> None:
    annotation = {"bbox": [1, 1, 5, 5], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "segmentation": [polygon]}
    with pytest.raises(ValueError, match=f"a polygon of {len(polygon)} numbers; it has x and y of three corners"):
        to_instances([annotation], T.TransformList([]), source=(9, 9), size=(9, 9), masks=masks)
