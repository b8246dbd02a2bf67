"""The table of augmentations, and building it from a config."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from detectron2.data import transforms as T
from scipy import ndimage

from seg_ext.data.augmentation import (
    AUGMENTATIONS,
    ColorJitter,
    GaussianBlur,
    GaussianNoise,
    RandomScaleCrop,
    ResizeShortestEdge,
    _jitter,
    build_augmentations,
)
from seg_ext.errors import UserError


def image(height: int = 20, width: int = 30) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"NAME": "RandomScaleCrap"}, r"\[1\]: NAME is 'RandomScaleCrap'; known: RandomScaleCrop, Resize, "),
        ({}, r"\[1\]: NAME is None; known"),
        ("RandomFlip", r"\[1\]: NAME is None; known"),
        ({"NAME": "Resize", "shape": [2, 2]}, r"\[1\]: Resize has no argument shape; known: size$"),
        ({"NAME": "Resize"}, "size"),
        ({"NAME": "RandomScaleCrop", "size": [2, 2], "ignore": 0}, "no argument ignore; known: size, scale, aspect, "),
        ({"NAME": "RandomScaleCrop", "size": [4, 4], "aspect": [0, 1]}, r"aspect is \[0, 1\]; it is above 0"),
        ({"NAME": "ColorJitter", "hue": -3}, "hue is -3; it is the greatest turn in degrees"),
        ({"NAME": "GaussianBlur", "sigma": 2}, r"sigma is 2; it is \[least, greatest\]"),
        ({"NAME": "GaussianNoise", "std": [-1, 2]}, r"std is \[-1, 2\]"),
        ({"NAME": "RandomFlip", "PROBABILITY": 2}, r"RandomFlip: PROBABILITY is 2; it lies in \[0, 1\]"),
        ({"NAME": "RandomFlip", "PROBABILITY": "often"}, "PROBABILITY is 'often'"),
        ({"NAME": "Albumentations", "compose": "no_such_package:build"}, "compose 'no_such_package:build': No module"),
        (
            {"NAME": "Albumentations", "compose": "json:no_such_function"},
            "compose 'json:no_such_function': module 'json'",
        ),
        ({"NAME": "Albumentations", "compose": "json"}, "compose is 'json'; it is package.module:function"),
        (
            {"NAME": "Albumentations", "compose": "json:dumps", "arguments": {"obj": 1}},
            "is a str; it takes image, mask",
        ),
        ({"NAME": "RandomRotate90", "angle": 4}, "no argument angle; known: none"),
        ({"NAME": "RandomScaleCrop", "size": [0, 4]}, r"size is \[0, 4\]; it is \[height, width\]"),
        ({"NAME": "RandomScaleCrop", "size": 4}, "size is 4"),
        ({"NAME": "RandomScaleCrop", "size": [4, 4.5]}, "size is"),
        ({"NAME": "RandomScaleCrop", "size": [4, 4], "scale": [2, 1]}, r"scale is \[2, 1\]; it is \[least, greatest\]"),
        ({"NAME": "RandomScaleCrop", "size": [4, 4], "scale": [0, 0]}, "scale is"),
        ({"NAME": "RandomScaleCrop", "size": [4, 4], "cat_max_ratio": 0}, "cat_max_ratio is 0"),
        ({"NAME": "ColorJitter", "gamma": [-1, 1]}, r"gamma is \[-1, 1\]"),
        ({"NAME": "ColorJitter", "gamma": ["a", "b"]}, "gamma is"),
        ({"NAME": "ResizeShortestEdge", "short_edge_length": 9}, "short_edge_length is 9; it is a list"),
        ({"NAME": "ResizeShortestEdge", "short_edge_length": [9], "sample_style": "any"}, "sample_style is 'any'"),
        ({"NAME": "ResizeShortestEdge", "short_edge_length": [9], "sample_style": "range"}, r"is \[9\]; it is \[least"),
        ({"NAME": "RandomFlip", "horizontal": True, "vertical": True}, "RandomFlip: Cannot do both"),
    ],
)
def test_a_bad_entry_is_one_line_that_says_where_and_what(entry: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        build_augmentations([{"NAME": "RandomFlip"}, entry], ignore=255)
    assert str(error.value).startswith("INPUT.AUGMENTATIONS[1]: ") and "\n" not in str(error.value)


def test_entries_become_augmentations_in_order_with_the_shared_values() -> None:
    entries = [{"NAME": "RandomScaleCrop", "size": [4, 5]}, {"NAME": "RandomFlip", "prob": 1.0}]
    crop, flip = build_augmentations(entries, ignore=9, pad_value=[1, 2, 3])
    assert isinstance(crop, RandomScaleCrop) and (crop.ignore, crop.pad_value, crop.size) == (9, [1, 2, 3], [4, 5])
    assert isinstance(flip, T.RandomFlip) and flip.prob == 1.0


def test_an_entrys_pad_value_wins() -> None:
    (crop,) = build_augmentations([{"NAME": "RandomScaleCrop", "size": [4, 5], "pad_value": 7}], ignore=9, pad_value=1)
    assert crop.pad_value == 7


def test_every_augmentation_repeats_with_numpys_seed() -> None:
    arguments = {
        "RandomScaleCrop": {"size": [8, 8], "scale": [0.5, 2]},
        "Resize": {"size": [8, 9]},
        "ResizeShortestEdge": {"short_edge_length": [5, 15], "sample_style": "range"},
        "RandomBrightness": {"intensity_min": 0.5, "intensity_max": 2},
        "RandomContrast": {"intensity_min": 0.5, "intensity_max": 2},
        "ColorJitter": {"brightness": [0.5, 2], "balance": [0.5, 2]},
        "Albumentations": {"compose": "compose_stand_in:build"},
    }
    for name in AUGMENTATIONS:
        results = []
        for seed in (3, 3, *range(10)):
            np.random.seed(seed)
            data = T.AugInput(image(), sem_seg=np.zeros((20, 30), np.int32))
            build_augmentations([{"NAME": name, **arguments.get(name, {})}], ignore=255)[0](data)
            results.append(data.image.tobytes())
        assert results[0] == results[1], name
        assert len(set(results)) > 1 or name == "Resize", name


def test_scale_is_drawn_over_its_whole_range_and_windows_lie_everywhere() -> None:
    crop = RandomScaleCrop([10, 10], [0.5, 2.0])
    drawn = [crop.get_transform(image(), None) for _ in range(300)]
    heights = [t.scaled[0] for t in drawn]
    assert min(heights) == 10 and max(heights) == 40 and 24 < np.mean(heights) < 26
    wide = [t.offset[1] / (t.scaled[1] - 10) for t in drawn if t.scaled[1] > 30]
    assert min(wide) == 0 and max(wide) == 1 and 0.4 < np.mean(wide) < 0.6


def test_fit_makes_scale_one_the_size_at_which_the_image_just_fits() -> None:
    window = RandomScaleCrop([40, 40], fit=True).get_transform(image(20, 30), None)
    assert window.scaled.tolist() == [27, 40]


def test_cat_max_ratio_avoids_windows_of_one_class() -> None:
    labels = np.zeros((60, 60), np.int32)
    labels[:, 30:] = 1
    labels[:5] = 255
    np.random.seed(0)
    for limit, least in ((1.0, 0), (0.75, 0.95)):
        crop = RandomScaleCrop([20, 20], cat_max_ratio=limit)
        mixed = 0
        for _ in range(100):
            window = crop.get_transform(image(60, 60), labels).apply_segmentation(labels)
            counts = np.bincount(window[window != 255])
            mixed += counts.max() <= 0.75 * counts.sum()
        assert mixed < 50 if limit == 1.0 else mixed >= least * 100


def test_cat_max_ratio_without_labels_is_an_error() -> None:
    with pytest.raises(UserError, match="cat_max_ratio needs data with semantic labels"):
        T.AugmentationList([RandomScaleCrop([4, 4], cat_max_ratio=0.5)])(T.AugInput(image()))


@pytest.mark.parametrize("length", [0, 7, 25])
def test_shortest_edge_gives_detectron2s_sizes(length: int) -> None:
    ours = ResizeShortestEdge([length], 33).get_transform(image()).apply_image(image())
    theirs = T.ResizeShortestEdge([length], 33, "choice").get_transform(image()).apply_image(image())
    assert ours.shape == theirs.shape and np.abs(ours.astype(int) - theirs).max() <= 1


def jitter(pixels: np.ndarray, **factors: list[float]) -> np.ndarray:
    return ColorJitter(**factors).get_transform(pixels).apply_image(pixels)


def test_colour_jitter_of_one_changes_nothing() -> None:
    np.testing.assert_array_equal(jitter(image()), image())


def test_each_factor_of_colour_jitter_does_what_it_says() -> None:
    pixels = image() // 4 + 60
    np.testing.assert_allclose(jitter(pixels, brightness=[1.5, 1.5]), pixels * 1.5, atol=0.51)
    np.testing.assert_allclose(jitter(pixels, gamma=[2, 2]), 255 * (pixels / 255) ** 2, atol=0.51)
    contrast = pixels.mean() + (pixels - pixels.mean()) * 1.3
    np.testing.assert_allclose(jitter(pixels, contrast=[1.3, 1.3]), contrast, atol=0.51)
    grey = jitter(pixels, saturation=[0, 1e-9])
    np.testing.assert_allclose(grey, np.repeat(pixels.mean(axis=2, keepdims=True), 3, axis=2), atol=0.51)
    ratio = jitter(pixels, balance=[0.8, 1.2]).reshape(-1, 3).mean(axis=0) / pixels.reshape(-1, 3).mean(axis=0)
    assert np.ptp(ratio) > 0.01 and (abs(ratio - 1) < 0.21).all()


def test_colour_jitter_treats_channel_orders_alike() -> None:
    factors = {"brightness": [1.2, 1.2], "contrast": [0.7, 0.7], "saturation": [1.4, 1.4], "gamma": [0.8, 0.8]}
    difference = jitter(image()[..., ::-1], **factors)[..., ::-1].astype(int) - jitter(image(), **factors)
    assert np.abs(difference).max() <= 1


def test_hue_turns_colours_about_grey_and_keeps_their_order() -> None:
    red = np.full((2, 2, 3), [150, 60, 60], np.uint8)
    np.random.seed(1)
    turned = [jitter(red, hue=120.0)[0, 0].astype(float) for _ in range(200)]
    assert all(abs(color.sum() - 270) <= 2 for color in turned)
    assert {int(color.argmax()) for color in turned} == {0, 1, 2}
    third = _jitter(red, factors=np.ones(4), balance=np.ones(3), turn=2 * np.pi / 3)
    np.testing.assert_array_equal(third, np.roll(red, 1, axis=2))
    grey = np.repeat(image()[..., :1], 3, axis=2)
    np.testing.assert_array_equal(jitter(grey, hue=180.0), grey)


def test_blur_is_a_gaussian_of_the_drawn_width() -> None:
    dot = np.zeros((41, 41, 3), np.float32)
    dot[20, 20] = 1
    blurred = GaussianBlur([2, 2]).get_transform(dot).apply_image(dot)[..., 0]
    expected = ndimage.gaussian_filter(dot[..., 0], 2)
    assert blurred.sum() == pytest.approx(1, abs=1e-3) and np.abs(blurred - expected).max() < 1e-3
    np.testing.assert_array_equal(GaussianBlur([0, 1e-9]).get_transform(image()).apply_image(image()), image())


def test_noise_has_the_drawn_strength_and_is_its_own_for_every_value() -> None:
    flat = np.full((80, 90, 3), 120, np.uint8)
    transform = GaussianNoise([6, 6]).get_transform(flat)
    noise = transform.apply_image(flat).astype(float) - 120
    assert noise.std() == pytest.approx(6, rel=0.05) and abs(noise.mean()) < 0.2
    assert abs(np.corrcoef(noise[..., 0].ravel(), noise[..., 1].ravel())[0, 1]) < 0.05
    np.testing.assert_array_equal(transform.apply_image(flat), noise + 120)


def test_probability_is_how_often_an_entry_is_applied() -> None:
    entry = {"NAME": "RandomBrightness", "intensity_min": 0.5, "intensity_max": 0.5, "PROBABILITY": 0.3}
    (augmentation,) = build_augmentations([entry], ignore=255)
    np.random.seed(0)
    changed = 0
    for _ in range(300):
        data = T.AugInput(image())
        augmentation(data)
        changed += (data.image != image()).any()
    assert 60 < changed < 120


def test_aspect_keeps_the_area_and_is_as_often_narrow_as_wide() -> None:
    crop = RandomScaleCrop([10, 10], aspect=[0.25, 4])
    np.random.seed(0)
    scaled = np.array([crop.get_transform(image(200, 300), None).scaled for _ in range(300)])
    np.testing.assert_allclose(scaled.prod(axis=1), 60000, rtol=0.01)
    ratio = scaled[:, 1] / scaled[:, 0] / 1.5
    assert ratio.min() < 0.27 and ratio.max() > 3.7 and 0.4 < (ratio > 1).mean() < 0.6


def test_a_513_crop_of_a_small_image_is_padded_with_mean_and_ignore() -> None:
    crop = RandomScaleCrop([513, 513], [0.5, 2.0], pad_value=[103.5, 116.3, 123.7], ignore=255)
    data = T.AugInput(np.full((100, 120, 3), 9, np.uint8), sem_seg=np.full((100, 120), 4, np.int32))
    crop(data)
    outside = data.sem_seg == 255
    assert data.image.shape == (513, 513, 3) and set(np.unique(data.sem_seg)) == {4, 255}
    assert (data.image[outside] == [104, 116, 124]).all() and (data.image[~outside] == 9).all()
