"""The geometric transforms against Pillow and NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from seg_ext.data.transforms import QuarterTurns, WindowTransform

SIDE = st.integers(1, 40)


@st.composite
def windows(draw: st.DrawFn) -> WindowTransform:
    scaled = draw(st.tuples(SIDE, SIDE))
    offset = [draw(st.integers(0, side - 1)) for side in scaled]
    return WindowTransform(draw(st.tuples(SIDE, SIDE)), scaled, offset=offset, size=draw(st.tuples(SIDE, SIDE)))


@given(window=windows(), seed=st.integers(0, 9))
@example(window=WindowTransform((48, 64), (70, 90), offset=(3, 7), size=(40, 50)), seed=0)
@settings(max_examples=150, deadline=None)
def test_a_window_is_resize_then_crop_then_pad(window: WindowTransform, seed: int) -> None:
    generator = np.random.default_rng(seed)
    image = generator.integers(0, 256, (*window.source, 3), np.uint8)
    labels = generator.integers(0, 250, window.source).astype(np.uint8)
    (height, width), (top, left) = window.size, window.offset
    for method, source, fill in (("image", image, 0), ("segmentation", labels, 255)):
        filter_ = Image.Resampling.BILINEAR if method == "image" else Image.Resampling.NEAREST
        whole = np.asarray(Image.fromarray(source).resize(tuple(window.scaled[::-1].tolist()), filter_))
        padding = ((0, height), (0, width)) + ((0, 0),) * (source.ndim - 2)
        expected = np.pad(whole, padding, constant_values=fill)[top : top + height, left : left + width]
        got = getattr(window, f"apply_{method}")(source)
        assert got.shape == expected.shape and got.dtype == np.uint8
        if method == "image":
            assert np.abs(got.astype(int) - expected).max() <= 1
        else:
            halfway = np.logical_or.outer(*(halfway_between_pixels(window, axis) for axis in (0, 1)))
            assert ((got == expected) | halfway).all()


def halfway_between_pixels(window: WindowTransform, axis: int) -> np.ndarray:
    positions = window.offset[axis] + np.arange(window.size[axis])
    return (2 * positions + 1) * window.source[axis] % (2 * window.scaled[axis]) == 0


@pytest.mark.parametrize(("dtype", "fill"), [(bool, False), (np.int32, 7), (np.uint8, 7)])
def test_padding_of_masks_is_false_and_of_labels_ignored(dtype: type, fill: int) -> None:
    window = WindowTransform((2, 2), (2, 2), size=(3, 4), ignore=7, pad_value=[1.4, 2, 3])
    padded = window.apply_segmentation(np.ones((2, 2), dtype))
    expected = np.full((3, 4), fill, dtype)
    expected[:2, :2] = 1
    np.testing.assert_array_equal(padded, expected)
    image = window.apply_image(np.full((2, 2, 3), 9, np.uint8))
    assert image[2, 3].tolist() == [1, 2, 3] and image[1, 1].tolist() == [9, 9, 9]


def test_ids_above_255_are_not_mixed() -> None:
    labels = np.array([[300, 70000]], np.int32)
    np.testing.assert_array_equal(
        WindowTransform((1, 2), (2, 4)).apply_segmentation(labels), [[300, 300, 70000, 70000]] * 2
    )


@pytest.mark.parametrize("turns", range(4))
def test_coordinates_turn_with_the_pixels(turns: int) -> None:
    image = np.arange(15).reshape(3, 5)
    turn = QuarterTurns(3, 5, turns)
    turned = turn.apply_image(image)
    y, x = np.divmod(np.arange(15), 5)
    moved = turn.apply_coords(np.stack([x + 0.5, y + 0.5], axis=1))
    columns, rows = np.floor(moved).astype(int).T
    np.testing.assert_array_equal(turned[rows, columns], image.ravel())


@given(window=windows())
@settings(max_examples=50, deadline=None)
def test_coordinates_of_the_scaled_images_corners_are_its_window_corners(window: WindowTransform) -> None:
    corners = np.array([[0.0, 0.0], window.source[::-1]])
    expected = np.array([[0.0, 0.0], window.scaled[::-1]]) - window.offset[::-1]
    np.testing.assert_allclose(window.apply_coords(corners), expected, atol=1e-9)
