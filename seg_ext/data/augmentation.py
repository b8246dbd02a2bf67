"""Augmentations for images, label maps and masks together, and the table that a config names them by."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import cv2
import numpy as np
from detectron2.data import transforms as T
from numpy.typing import NDArray

from seg_ext.data.external import AlbumentationsAdapter
from seg_ext.data.transforms import QuarterTurns, WindowTransform
from seg_ext.data.warps import ElasticDeformation, RandomRotation
from seg_ext.errors import UserError

Array = NDArray[Any]
Range = Sequence[float]


class RandomScaleCrop(T.Augmentation):
    """Scale by a random factor and take a random window of fixed size, in one resampling.

    Where the scaled image is smaller than the window, the right and lower rest is padding.
    """

    def __init__(
        self,
        size: Sequence[int],
        scale: Range = (1.0, 1.0),
        *,
        aspect: Range = (1.0, 1.0),
        fit: bool = False,
        cat_max_ratio: float = 1.0,
        pad_value: float | Sequence[float] = 0,
        ignore: int = 255,
    ) -> None:
        """Set the ranges.

        Args:
            size: height and width of the result, pixels.
            scale: least and greatest factor, drawn uniformly.
            aspect: least and greatest factor of width over height at equal area, drawn log-uniformly.
            fit: factors relative to the one at which the image just fits into ``size`` (large-scale jitter), instead
                of to the image as stored.
            cat_max_ratio: below 1, draw up to ten windows until no class covers more than this share of the labelled
                pixels.
            pad_value: of image pixels outside, one number or one a channel.
            ignore: of label pixels outside.
        """
        _check_size(size)
        _check_range("scale", scale)
        _check_range("aspect", aspect)
        if aspect[0] == 0:
            raise ValueError(f"aspect is {aspect!r}; it is above 0")
        if not 0 < cat_max_ratio <= 1:
            raise ValueError(f"cat_max_ratio is {cat_max_ratio}; it lies in (0, 1]")
        super().__init__()
        self._init(locals())

    def get_transform(self, image: Array, sem_seg: Array | None) -> WindowTransform:
        """Draw a factor and a window."""
        if self.cat_max_ratio < 1 and sem_seg is None:
            raise UserError("INPUT.AUGMENTATIONS: RandomScaleCrop's cat_max_ratio needs data with semantic labels")
        if np.size(self.pad_value) not in (1, image.shape[2]):
            raise UserError(
                f"INPUT.AUGMENTATIONS: RandomScaleCrop's pad_value is {self.pad_value} for {image.shape[2]} channels"
            )
        source, size = np.array(image.shape[:2]), np.array(self.size)
        factor = np.random.uniform(*self.scale) * ((size / source).min() if self.fit else 1)
        wider = np.exp(np.random.uniform(*np.log(self.aspect)) / 2)
        scaled = np.maximum(np.rint(source * factor * (1 / wider, wider)), 1).astype(int)
        for _ in range(10):
            offset = np.random.randint(np.maximum(scaled - size, 0) + 1)
            window = WindowTransform(
                source, scaled, offset=offset, size=size, pad_value=self.pad_value, ignore=self.ignore
            )
            if sem_seg is None or self.cat_max_ratio == 1 or self._varied(window.apply_segmentation(sem_seg)):
                break
        return window

    def _varied(self, labels: Array) -> bool:
        counts = np.bincount(labels[labels != self.ignore])
        return 0 < counts.max(initial=0) <= self.cat_max_ratio * counts.sum()


class Resize(T.Augmentation):
    """Resize to a fixed size, whatever the aspect ratio."""

    def __init__(self, size: Sequence[int]) -> None:
        """Set the result's height and width, pixels."""
        _check_size(size)
        super().__init__()
        self._init(locals())

    def get_transform(self, image: Array) -> WindowTransform:
        """The image at the set size."""
        return WindowTransform(image.shape[:2], self.size)


class ResizeShortestEdge(T.Augmentation):
    """detectron2's augmentation of this name, for label maps of any integer type."""

    def __init__(self, short_edge_length: Sequence[int], max_size: int = 1 << 30, sample_style: str = "choice") -> None:
        """Set the lengths.

        Args:
            short_edge_length: lengths of the shorter edge to choose from, or their least and greatest; 0 keeps the
                image as it is.
            max_size: limit of the longer edge, pixels.
            sample_style: "choice" or "range".
        """
        if sample_style not in ("choice", "range"):
            raise ValueError(f"sample_style is {sample_style!r}; it is choice or range")
        if not _numbers(short_edge_length, int) or min(short_edge_length) < 0:
            raise ValueError(f"short_edge_length is {short_edge_length!r}; it is a list of lengths in pixels")
        if sample_style == "range":
            _check_range("short_edge_length", short_edge_length)
        super().__init__()
        self._init(locals())

    def get_transform(self, image: Array) -> T.Transform:
        """Draw a length."""
        lengths = self.short_edge_length
        is_range = self.sample_style == "range"
        length = np.random.randint(lengths[0], lengths[1] + 1) if is_range else np.random.choice(lengths)
        if length == 0:
            return T.NoOpTransform()
        source = image.shape[:2]
        height, width = T.ResizeShortestEdge.get_output_shape(*source, length, self.max_size)
        return WindowTransform(source, (max(1, height), max(1, width)))  # a strip may be a thousand times as long


class RandomRotate90(T.Augmentation):
    """Rotate by 0, 90, 180 or 270 degrees, each as likely."""

    def get_transform(self, image: Array) -> QuarterTurns:
        """Draw a number of quarter turns."""
        return QuarterTurns(image.shape[0], image.shape[1], np.random.randint(4))


class ColorJitter(T.Augmentation):
    """Random brightness, contrast, saturation, hue, colour balance and gamma, in this order and in one rounding.

    Grey is the mean of the channels, so that the order of the channels does not matter. Bands that are no colours,
    more or fewer than three, are changed each by itself, and have neither saturation nor hue. Float images are not
    clipped; theirs is the range of values that is there.
    """

    def __init__(
        self,
        brightness: Range = (1.0, 1.0),
        contrast: Range = (1.0, 1.0),
        saturation: Range = (1.0, 1.0),
        balance: Range = (1.0, 1.0),
        gamma: Range = (1.0, 1.0),
        hue: float = 0.0,
    ) -> None:
        """Set the least and greatest factor of each, drawn uniformly; 1 changes nothing.

        Args:
            brightness: factor of all pixels.
            contrast: factor of the distance from the image's mean; from each band's where they are no colours.
            saturation: factor of the distance from the pixel's grey.
            balance: factor of each channel by itself.
            gamma: exponent of the values as parts of their range, which is 0..255 in 8 bit images.
            hue: greatest turn of the colours about the grey axis, degrees, drawn uniformly from both directions.
        """
        super().__init__()
        self._init(locals())
        for name in ("brightness", "contrast", "saturation", "balance", "gamma"):
            _check_range(name, getattr(self, name))
        if not isinstance(hue, int | float) or not 0 <= hue <= 180:
            raise ValueError(f"hue is {hue!r}; it is the greatest turn in degrees, 0 to 180")

    def get_transform(self, image: Array) -> T.ColorTransform:
        """Draw the factors."""
        if image.shape[2] != 3 and (tuple(self.saturation) != (1, 1) or self.hue):
            raise UserError(
                f"INPUT.AUGMENTATIONS: ColorJitter's saturation takes 3 channels, not {image.shape[2]}, and so does hue"
            )
        ranges = np.array([self.brightness, self.contrast, self.saturation, self.gamma])
        factors = np.random.uniform(ranges[:, 0], ranges[:, 1])
        balance = np.random.uniform(self.balance[0], self.balance[1], image.shape[2])
        turn = np.deg2rad(np.random.uniform(-self.hue, self.hue))
        return T.ColorTransform(partial(_jitter, factors=factors, balance=balance, turn=turn))


class GaussianBlur(T.Augmentation):
    """Blur by a Gaussian of random width."""

    def __init__(self, sigma: Range = (0.1, 2.0)) -> None:
        """Set the least and greatest standard deviation, pixels, drawn uniformly."""
        _check_range("sigma", sigma)
        super().__init__()
        self._init(locals())

    def get_transform(self, image: Array) -> T.ColorTransform:
        """Draw a width."""
        return T.ColorTransform(partial(_blurred, sigma=max(np.random.uniform(*self.sigma), 1e-3)))


class GaussianNoise(T.Augmentation):
    """Add normal noise of random strength to every value by itself."""

    def __init__(self, std: Range = (0.0, 10.0)) -> None:
        """Set the least and greatest standard deviation, in the image's unit, drawn uniformly."""
        _check_range("std", std)
        super().__init__()
        self._init(locals())

    def get_transform(self, image: Array) -> T.ColorTransform:
        """Draw a strength, and the seed of the noise."""
        std = np.random.uniform(*self.std)
        return T.ColorTransform(partial(_noisy, std=std, seed=np.random.randint(1 << 31)))


AUGMENTATIONS: dict[str, type[T.Augmentation]] = {
    "RandomScaleCrop": RandomScaleCrop,
    "Resize": Resize,
    "ResizeShortestEdge": ResizeShortestEdge,
    "RandomFlip": T.RandomFlip,
    "RandomRotate90": RandomRotate90,
    "RandomRotation": RandomRotation,
    "ElasticDeformation": ElasticDeformation,
    "RandomBrightness": T.RandomBrightness,
    "RandomContrast": T.RandomContrast,
    "ColorJitter": ColorJitter,
    "GaussianBlur": GaussianBlur,
    "GaussianNoise": GaussianNoise,
    "Albumentations": AlbumentationsAdapter,
}


def build_augmentations(
    entries: Sequence[Mapping[str, Any]],
    *,
    ignore: int,
    pad_value: float | Sequence[float] = 0,
    key: str = "INPUT.AUGMENTATIONS",
) -> list[T.Augmentation]:
    """Build the augmentations that a config lists.

    Args:
        entries: each has NAME, a name of :data:`AUGMENTATIONS`, the arguments of its constructor, and PROBABILITY
            where it is not always applied.
        ignore: label id of padding.
        pad_value: image value of padding, unless the entry gives one.
        key: of the list in the config, for errors.

    Raises:
        UserError: an unknown name or argument, with the known ones, or a value that the constructor refuses.
    """
    return [_build(f"{key}[{i}]", e, ignore=ignore, pad_value=pad_value) for i, e in enumerate(entries)]


def _build(key: str, entry: Mapping[str, Any], **shared: Any) -> T.Augmentation:
    name = entry.get("NAME") if isinstance(entry, Mapping) else None
    if name not in AUGMENTATIONS:
        raise UserError(f"{key}: NAME is {name!r}; known: {', '.join(AUGMENTATIONS)}")
    known = inspect.signature(AUGMENTATIONS[name]).parameters
    given = {argument: value for argument, value in entry.items() if argument not in ("NAME", "PROBABILITY")}
    probability = entry.get("PROBABILITY", 1)
    if not isinstance(probability, int | float) or not 0 <= probability <= 1:
        raise UserError(f"{key}: {name}: PROBABILITY is {probability!r}; it lies in [0, 1]")
    unknown = [argument for argument in given if argument not in known or argument == "ignore"]
    if unknown:
        listed = ", ".join(argument for argument in known if argument != "ignore") or "none"
        raise UserError(f"{key}: {name} has no argument {', '.join(unknown)}; known: {listed}")
    try:
        augmentation = AUGMENTATIONS[name](**{k: v for k, v in shared.items() if k in known} | given)
    except (TypeError, ValueError, AssertionError) as error:
        raise UserError(f"{key}: {name}: {error}") from error
    return augmentation if probability == 1 else T.RandomApply(augmentation, probability)


def _check_size(size: Any) -> None:
    if not _numbers(size, int) or len(size) != 2 or min(size) < 1:
        raise ValueError(f"size is {size!r}; it is [height, width] in pixels")


def _check_range(name: str, value: Any) -> None:
    if not _numbers(value, int | float) or len(value) != 2 or not 0 <= value[0] <= value[1] or value[1] == 0:
        raise ValueError(f"{name} is {value!r}; it is [least, greatest], not negative")


def _numbers(value: Any, kind: Any) -> bool:
    return isinstance(value, Sequence) and len(value) > 0 and all(isinstance(v, kind) for v in value)


def _blurred(image: Array, *, sigma: float) -> Array:
    """(H, W, C) -> the same shape and type."""
    return cv2.GaussianBlur(image, (0, 0), sigma).reshape(image.shape)


def _noisy(image: Array, *, std: float, seed: int) -> Array:
    """(H, W, C) -> the same shape and type."""
    noise = np.random.default_rng(seed).standard_normal(image.shape, np.float32) * np.float32(std)
    return np.rint(image + noise).clip(0, 255).astype(np.uint8) if image.dtype == np.uint8 else image + noise


def _jitter(image: Array, *, factors: Array, balance: Array, turn: float = 0.0) -> Array:
    """(H, W, C) -> the same shape and type."""
    brightness, contrast, saturation, gamma = factors.astype(np.float32)
    together = None if image.shape[2] == 3 else (0, 1)
    x = image.astype(np.float32) * brightness
    mean = x.mean(axis=together, keepdims=True)
    x = mean + (x - mean) * contrast
    if image.shape[2] == 3:
        grey = x.mean(axis=2, keepdims=True)
        x = grey + (x - grey) * saturation
    if turn:  # Rodrigues' rotation about (1, 1, 1)
        across = np.roll(np.eye(3), 1, axis=0) - np.roll(np.eye(3), 1, axis=1)
        matrix = np.cos(turn) * np.eye(3) + (1 - np.cos(turn)) / 3 + np.sin(turn) / np.sqrt(3) * across
        x = x @ matrix.T.astype(np.float32)
    x *= balance.astype(np.float32)
    if image.dtype == np.uint8:
        return np.rint(255 * (x / 255).clip(0, 1) ** gamma).astype(np.uint8)
    low, high = (f(x, axis=together, keepdims=True) for f in (np.min, np.max))
    span = np.where(high > low, high - low, 1)
    return low + span * ((x - low) / span) ** gamma
