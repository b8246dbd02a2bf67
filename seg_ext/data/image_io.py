"""Images from files, of any number of bands and 8 to 64 bits: what the model sees, and pictures of it to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from seg_ext.data.files import (
    check_pixels,
    is_numpy,
    is_tiff,
    naming,
    opened,
    raw_mode,
    read_numpy,
    read_tiff,
    tiff_page,
)
from seg_ext.errors import UserError

Array = NDArray[Any]

CHANNELS: dict[str, int | None] = {"BGR": 3, "RGB": 3, "L": 1, "BANDS": None}  # by INPUT.FORMAT
_KEPT_MODES = ("L", "LA", "RGB", "RGBA")
_LUMA = np.array([19595, 38470, 7471], np.int32)  # ITU-R 601-2 in 1/65536, as in Pillow
_ORIENTATION = 0x0112  # EXIF tag
_PERCENTILES = (1, 99)
_SAMPLES = 512  # a side: pixels that percentiles are taken of


def read_image(path: str | Path, format: str = "BGR", *, bands: int | None = None, page: int | None = None) -> Array:
    """Read an image, upright by its EXIF or TIFF orientation.

    "BGR" and "RGB" give three channels (grey is repeated), "L" one (colour becomes luma, ITU-R 601-2); alpha is
    dropped. 8 bit pixels come as they are; unsigned 16 bit ones are divided by 257, so that they span 0..255 too, and
    keep their precision as float32. Other types have no range of their own and need "BANDS".

    "BANDS" gives all bands as stored, unscaled: uint8, or float32 for every other type. The bands of a TIFF are its
    samples, chunky or planar, or its pages. Palettes become RGB(A), CMYK becomes RGB.

    Args:
        path: any file that Pillow reads, TIFF, or ".npy" of (H, W), (H, W, C) or, where C < W, (C, H, W).
        format: one of :data:`CHANNELS`.
        bands: channels that the model takes, as many as MODEL.PIXEL_MEAN has; None for any.
        page: of a TIFF, from 0, by itself; None for the first, or with "BANDS" for all.

    Returns:
        (H, W, C) uint8 or float32.

    Raises:
        UserError: the file is missing, no image, damaged, too large, has NaN, or other bands or types than asked for.
    """
    check_format(format)
    with naming(path):
        pixels = _stored(path, whole=format == "BANDS" and page is None, page=page or 0)
    return to_format(path, pixels, format, bands=bands)


def to_format(path: str | Path, pixels: Array, format: str, *, bands: int | None = None) -> Array:
    """Pixels as they are stored, (H, W, C), as what :func:`read_image` gives of them; ``path`` is for its refusals."""
    if pixels.dtype.kind not in "buif":
        raise UserError(f"{path}: {pixels.dtype} pixels; an image holds whole or real numbers")
    if format == "BANDS":
        image = pixels if pixels.dtype == np.uint8 else _real(path, pixels)
    else:
        image = _channels(_of_eight_bits(path, pixels, format), format, path)
    check_bands(str(path), image, bands)
    is_new = image.base is None and image.flags.c_contiguous and image.flags.writeable
    return image if is_new else np.array(image, order="C")


def image_size(path: str | Path) -> tuple[int, int]:
    """Height and width of the upright image, from the file's header (a PNG without EXIF is decoded for it).

    Raises:
        UserError: the file is missing, no image, or too large.
    """
    with naming(path):
        if is_numpy(path):
            size, turned = _bands_last(path, read_numpy(path)).shape[:2], False
        elif is_tiff(path):
            height, width, orientation = tiff_page(path)
            size, turned = (height, width), orientation > 4
        else:
            with opened(path) as image:
                check_pixels(path, image.height, image.width)  # before a PNG is decoded for what lies behind its pixels
                size, turned = (image.height, image.width), image.getexif().get(_ORIENTATION, 1) > 4
        check_pixels(path, *size)
    return (size[1], size[0]) if turned else (size[0], size[1])


def read_picture(path: str | Path) -> NDArray[np.uint8]:
    """Read an image of any kind to look at it, see :func:`as_picture`.

    Returns:
        (H, W, 3) RGB, upright.

    Raises:
        UserError: as :func:`read_image`.
    """
    return as_picture(read_image(path, "BANDS"))


def as_picture(image: Array, format: str = "BANDS") -> NDArray[np.uint8]:
    """An image to look at: its first three bands, or its first as grey where it has one or two.

    8 bit values are shown as they are, others between the 1st and the 99th percentile of each band.

    Args:
        image: (H, W, C), as :func:`read_image` gives it.
        format: that it was read in.

    Returns:
        (H, W, 3) RGB.
    """
    shown = image[..., :3] if image.shape[2] > 2 else image[..., :1]
    shown = shown[..., ::-1] if format == "BGR" else shown
    if shown.dtype != np.uint8:
        step = [max(1, side // _SAMPLES) for side in shown.shape[:2]]
        low, high = np.percentile(shown[:: step[0], :: step[1]], _PERCENTILES, axis=(0, 1)).astype(np.float32)
        high = np.where(high > low, high, low + 1)
        width = high / 2 - low / 2  # halves, whose difference every float holds
        shown = (shown.clip(low, high) / 2 - low / 2) / np.where(width > 0, width, 1)
        shown = np.rint(255 * shown).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(shown, (*shown.shape[:2], 3)))


def check_format(format: str) -> None:
    """Refuse an unknown INPUT.FORMAT.

    Raises:
        UserError: with the known ones.
    """
    if format not in CHANNELS:
        raise UserError(f"INPUT.FORMAT is {format!r}; it must be one of {', '.join(CHANNELS)}")


def check_bands(name: str, image: Array, bands: int | None) -> None:
    """Refuse an image of another number of bands than the model takes; None accepts any.

    Raises:
        UserError: it begins with ``name``.
    """
    if bands is not None and image.shape[2] != bands:
        raise UserError(f"{name}: {image.shape[2]} bands, but MODEL.PIXEL_MEAN has {bands} values; it has one a band")


def _stored(path: str | Path, *, whole: bool, page: int = 0) -> Array:
    """(H, W, C), upright; C is 1 or 2 (grey, alpha), 3 or 4 (RGB, alpha), or any number."""
    if is_numpy(path):
        pixels = _bands_last(path, read_numpy(path))
        check_pixels(path, *pixels.shape[:2])
        return pixels
    found = read_tiff(path, whole=whole, picture=True, page=page) if is_tiff(path) else None
    if found is not None:
        return _turned(*found)
    with opened(path) as image:
        if page:
            image.seek(page)
        stored = raw_mode(image)
        if ";16" in stored and not image.mode.startswith("I"):
            orientation = image.getexif().get(_ORIENTATION, 1)
            image.load()  # finds damage, which OpenCV passes over
            return _turned(_deep_colour(path, stored), orientation)
        ImageOps.exif_transpose(image, in_place=True)
        pixels = np.asarray(_unpacked(image))
        return pixels[..., None] if pixels.ndim == 2 else pixels


def _unpacked(image: Image.Image) -> Image.Image:
    if image.mode in _KEPT_MODES or image.mode.startswith(("I", "F")):
        return image
    if image.mode == "1":
        return image.convert("L")
    return image.convert("RGBA" if image.mode == "PA" or "transparency" in image.info else "RGB")


def _deep_colour(path: str | Path, stored: str) -> Array:
    """16 bit colour, and grey with alpha, which Pillow would cut to 8."""
    pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.ndim != 3 or pixels.dtype != np.uint16:
        raise UserError(f"{path}: pixels of {stored} in a file of this kind are not read; store it as PNG or TIFF")
    return pixels[..., [0, 3] if stored.startswith("LA") else [2, 1, 0, 3][: pixels.shape[2]]]


def _turned(pixels: Array, orientation: int) -> Array:
    """Upright, from an orientation of 1 to 8."""
    pixels = pixels.swapaxes(0, 1) if orientation > 4 else pixels
    pixels = pixels[:, ::-1] if orientation in (2, 3, 6, 7) else pixels
    return pixels[::-1] if orientation in (3, 4, 7, 8) else pixels


def _bands_last(path: str | Path, pixels: Array) -> Array:
    if pixels.ndim == 2:
        return pixels[..., None]
    if pixels.ndim != 3:
        raise UserError(f"{path}: an array of shape {pixels.shape}; an image is (H, W), (H, W, C) or (C, H, W)")
    return np.moveaxis(pixels, 0, -1) if pixels.shape[0] < pixels.shape[2] else pixels


def _real(path: str | Path, pixels: Array) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        image = pixels.astype(np.float32)
    if pixels.dtype.kind == "f" and not np.isfinite(image).all():
        raise UserError(f"{path}: holds NaN or infinite pixels; an image is finite")
    return image


def _of_eight_bits(path: str | Path, pixels: Array, format: str) -> Array:
    """Values that span 0..255."""
    if pixels.shape[2] > 4:
        raise UserError(f"{path}: {pixels.shape[2]} bands; INPUT.FORMAT {format} takes 1 to 4, BANDS any number")
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype.newbyteorder("=") != np.uint16:
        raise UserError(
            f"{path}: {pixels.dtype} pixels; INPUT.FORMAT {format} takes unsigned 8 and 16 bit, BANDS any type"
        )
    return pixels.astype(np.float32) / np.float32(257)


def _channels(values: Array, format: str, path: str | Path) -> Array:
    grey = values.shape[2] < 3
    if format == "L":
        if grey:
            return values[..., :1]
        luma = values[..., :3] @ _LUMA[:, None]
        return (luma + 32768 >> 16).astype(np.uint8) if values.dtype == np.uint8 else (luma / 65536).astype(np.float32)
    rgb = np.repeat(values[..., :1], 3, axis=2) if grey else values[..., :3]
    return cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2BGR) if format == "BGR" else rgb
