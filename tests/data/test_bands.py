"""Images of one and of five bands, from the file to a trained model, its scores, gallery and predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
import torch

from seg_ext import Predictor, UserError
from seg_ext.cli.main import main
from seg_ext.config import get_cfg, load_config
from seg_ext.data.augmentation import AUGMENTATIONS, build_augmentations
from seg_ext.data.datasets.folder import register_from_config_list
from seg_ext.data.image_io import read_picture
from seg_ext.data.mapper import SegMapper

AUGMENTED = [
    {"NAME": "RandomRotate90"},
    {"NAME": "RandomFlip"},
    {
        "NAME": "ColorJitter",
        "brightness": [0.8, 1.2],
        "contrast": [0.8, 1.2],
        "balance": [0.9, 1.1],
        "gamma": [0.7, 1.3],
    },
    {"NAME": "RandomScaleCrop", "size": [40, 48], "scale": [0.5, 2.0]},
]
SCENES: dict[str, tuple[str, list[float], list[float]]] = {  # by kind of file: INPUT.FORMAT, PIXEL_MEAN, PIXEL_STD
    "float": ("BANDS", [400.0, 400.0, 0.4, -7.0, 1e4], [200.0, 200.0, 0.2, 1.0, 1e4]),
    "grey16": ("L", [60.0], [60.0]),
}


def write_scene(kind: str, source: Path, target: Path) -> None:
    pixels = cv2.imread(str(source)).astype(np.float32)
    if kind == "grey16":
        tifffile.imwrite(target, (pixels[..., 0] * 257).astype(np.uint16))
    else:
        bands = [
            pixels[..., 0] * 5,
            pixels[..., 1] * 5,
            pixels[..., 2] / 255,
            pixels[..., 0] * 0 - 7,
            pixels[..., 1] * 100,
        ]
        tifffile.imwrite(target, np.stack(bands), photometric="minisblack", planarconfig="separate")


@pytest.mark.parametrize("kind", SCENES)
def test_a_model_trains_is_scored_shown_and_predicts(
    kind: str, toy_config: Path, toy_folder: Path, tmp_path: Path
) -> None:
    format, mean, std = SCENES[kind]
    (tmp_path / "scenes").mkdir()
    for file in (toy_folder / "images").iterdir():
        write_scene(kind, file, tmp_path / "scenes" / f"{file.stem}.tif")
    toy_config.write_text(toy_config.read_text().replace(f"{toy_folder}/images", f"{tmp_path}/scenes"))
    keys: list[Any] = ["INPUT.FORMAT", format, "MODEL.PIXEL_MEAN", str(mean), "MODEL.PIXEL_STD", str(std)]
    keys += ["INPUT.AUGMENTATIONS", str(AUGMENTED), "TEST.GALLERY", "2"]
    assert main(["train", "--config-file", str(toy_config), *keys]) == 0
    # the two worst images and the best one
    pictures = list((tmp_path / "run" / "gallery" / "pictures").glob("*_image.png"))
    shown = cv2.imread(str(pictures[0]))
    assert len(pictures) == 3 and shown.std() > 20 and shown.max() > 200

    weights, scene = str(tmp_path / "run" / "model_final.pth"), tmp_path / "scenes" / "1.tif"
    cfg = load_config(toy_config, [*keys, "MODEL.WEIGHTS", weights])
    register_from_config_list(cfg.DATASETS.FOLDERS)
    predictor = Predictor(cfg)
    assert predictor.model.backbone.stem.conv1.in_channels == len(mean)
    scores = predictor(scene)["sem_seg"]
    assert scores.shape == (2, 48, 40)
    stored = tifffile.imread(scene).astype(np.float32)
    array = stored.transpose(1, 2, 0) if stored.ndim == 3 else stored[..., None] / 257
    torch.testing.assert_close(predictor(array)["sem_seg"], scores)
    with pytest.raises(UserError, match=rf"image: 2 bands, but MODEL.PIXEL_MEAN has {len(mean)} values"):
        predictor(np.zeros((9, 9, 2), np.float32))

    out = tmp_path / "out"
    arguments = ["--input", str(scene), "--weights", weights, "--output", str(out)]
    assert main(["predict", "--config-file", str(toy_config), *arguments, *keys]) == 0
    overlay = cv2.imread(str(out / "overlay" / "1_semantic.png"))
    assert overlay.shape[1] % 40 == 0 and overlay.std() > 10
    assert read_picture(scene).shape == (48, 40, 3)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["INPUT.FORMAT", "L"], "MODEL.PIXEL_MEAN has 3 values for 1 channels of INPUT.FORMAT L"),
        (["MODEL.PIXEL_MEAN", "[1.0]"], "MODEL.PIXEL_MEAN has 1 values for 3 channels of INPUT.FORMAT BGR"),
        (["INPUT.FORMAT", "BANDS", "MODEL.PIXEL_MEAN", "[1.0]"], "MODEL.PIXEL_STD has 3 values for 1 channels"),
        (["INPUT.FORMAT", "YUV"], "INPUT.FORMAT is 'YUV'; it must be one of BGR, RGB, L, BANDS"),
    ],
)
def test_channels_that_do_not_agree_are_refused(keys: list[str], message: str) -> None:
    cfg = get_cfg()
    cfg.merge_from_list(keys)
    for is_train in (True, False):
        with pytest.raises(UserError, match=message):
            SegMapper(cfg, is_train=is_train)


@pytest.mark.parametrize("array", [np.zeros((4, 5), np.uint8), np.zeros((4, 5, 3)), np.zeros((4, 5, 3), np.uint16)])
def test_an_array_of_another_shape_or_type_is_refused(array: np.ndarray) -> None:
    with pytest.raises(UserError, match=r"an image of \w+ and shape .* takes \(H, W, C\) uint8 or float32"):
        SegMapper(False, augmentations=[]).map_image(array)


ARGUMENTS: dict[str, dict[str, Any]] = {
    "RandomScaleCrop": {"size": [17, 33], "scale": [1.5, 1.5]},
    "Resize": {"size": [17, 33]},
    "ResizeShortestEdge": {"short_edge_length": [15]},
    "RandomFlip": {"prob": 1.0},
    "RandomBrightness": {"intensity_min": 0.5, "intensity_max": 0.9},
    "RandomContrast": {"intensity_min": 0.5, "intensity_max": 0.9},
    "ColorJitter": {"brightness": [0.5, 0.9], "contrast": [0.5, 0.9], "gamma": [0.5, 0.9]},
    "GaussianBlur": {"sigma": [1.0, 2.0]},
    "Albumentations": {"compose": "compose_stand_in:build"},
}


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("bands", [1, 2, 4, 5, 7])
def test_every_augmentation_takes_any_bands_and_changes_each_as_it_does_alone(
    name: str, dtype: type, bands: int
) -> None:
    image = np.random.default_rng(0).uniform(10, 240, (20, 30, bands)).astype(dtype)

    def augmented(pixels: np.ndarray) -> np.ndarray:
        np.random.seed(3)
        (augmentation,) = build_augmentations([{"NAME": name, **ARGUMENTS.get(name, {})}], ignore=255)
        arguments = (pixels, None) if name in ("RandomScaleCrop", "Albumentations") else (pixels,)
        return augmentation.get_transform(*arguments).apply_image(pixels)

    whole = augmented(image)
    assert whole.dtype == dtype and whole.shape[2] == bands
    if name not in ("RandomContrast", "GaussianNoise"):
        alone = np.concatenate([augmented(image[..., [band]]) for band in range(bands)], axis=2)
        np.testing.assert_allclose(whole.astype(float), alone, atol=1 if dtype == np.uint8 else 1e-3)


def test_padding_of_bands_is_the_mean_of_each() -> None:
    entry = {"NAME": "RandomScaleCrop", "size": [9, 9]}
    for dtype, expected in ((np.float32, [0.25, -7, 1e4, 1, 2]), (np.uint8, [0, 3, 200, 1, 2])):
        (crop,) = build_augmentations([entry], ignore=255, pad_value=expected)
        image = np.zeros((4, 4, 5), dtype)
        assert crop.get_transform(image, None).apply_image(image)[8, 8].tolist() == expected
    with pytest.raises(UserError, match="RandomScaleCrop's pad_value is .* for 2 channels"):
        crop.get_transform(np.zeros((4, 4, 2), np.uint8), None)


def test_float_images_are_resampled_without_rounding_and_jittered_without_clipping() -> None:
    image = np.random.default_rng(0).normal(0, 1e-3, (20, 30, 5)).astype(np.float32)
    (resize,) = build_augmentations([{"NAME": "Resize", "size": [40, 60]}], ignore=255)
    assert len(np.unique(resize.get_transform(image).apply_image(image))) > 5000
    (jitter,) = build_augmentations([{"NAME": "ColorJitter", "brightness": [3, 3]}], ignore=255)
    np.testing.assert_allclose(jitter.get_transform(image).apply_image(image), 3 * image, atol=1e-8)
    (gamma,) = build_augmentations([{"NAME": "ColorJitter", "gamma": [2, 2]}], ignore=255)
    low, high = image.min((0, 1)), image.max((0, 1))
    expected = low + (high - low) * ((image - low) / (high - low)) ** 2
    np.testing.assert_allclose(gamma.get_transform(image).apply_image(image), expected, atol=1e-8)


def test_saturation_needs_colours() -> None:
    (jitter,) = build_augmentations([{"NAME": "ColorJitter", "saturation": [0.5, 1]}], ignore=255)
    with pytest.raises(UserError, match="ColorJitter's saturation takes 3 channels, not 5"):
        jitter.get_transform(np.zeros((4, 4, 5), np.uint8))
