"""The boundary band of masks: against its definition, pixel by pixel."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from seg_ext.metrics.boundary_masks import boundary_band, boundary_width

stacks = hnp.arrays(bool, st.tuples(st.integers(0, 3), st.integers(1, 7), st.integers(1, 7)))


def near_outside(mask, row, column, distance):
    """Whether a pixel that is not in the mask, or beyond the image, lies within a distance along both axes."""
    steps = range(-distance, distance + 1)
    height, width = mask.shape
    return any(
        not (0 <= row + i < height and 0 <= column + j < width) or not mask[row + i, column + j]
        for i in steps
        for j in steps
    )


@settings(max_examples=60)
@given(stacks, st.integers(1, 4))
def test_equals_the_definition(masks, distance):
    dense = np.where(np.arange(masks[0].size).reshape(masks.shape[1:]) % 5, True, masks) if len(masks) else masks
    for stack in (masks, dense):
        expected = np.zeros(stack.shape, np.uint8)
        for n, row, column in np.argwhere(stack):
            expected[n, row, column] = near_outside(stack[n], row, column, distance)
        np.testing.assert_array_equal(boundary_band(stack, distance), expected)


def test_masks_do_not_touch_each_other():
    full = np.ones((2, 9, 9), bool)
    alone = boundary_band(full[:1], 2)
    assert alone.sum() == 81 - 25
    np.testing.assert_array_equal(boundary_band(full, 2), np.concatenate([alone, alone]))


def test_the_width_is_a_fiftieth_of_the_diagonal():
    assert boundary_width(480, 640) == 16 and boundary_width(3, 4) == 1
    with pytest.raises(ValueError, match="distance 0"):
        boundary_band(np.ones((1, 2, 2)), 0)
