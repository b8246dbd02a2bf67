"""Images and label maps to and from files: class ids come back as they were stored, bad files name themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from seg_ext.data.palette import palette
from seg_ext.errors import UserError

_TIFF = {".tif", ".tiff"}
_LOSSY = {"JPEG", "MPO"}
_GREY_STEP = {"L;2": 85, "L;4": 17}  # Pillow spreads 2 and 4 bit grey over 0..255
_ORIENTATION = 0x0112  # EXIF tag
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError, tifffile.TiffFileError)


def read_image(path: str | Path, format: str = "BGR") -> NDArray[np.uint8]:
    """Read a picture, upright by its EXIF orientation.

    Grey becomes three equal channels and alpha is dropped. Pixels of more than 8 bits (16 and 32 bit grey, floats,
    16 bit colour TIFF) are stretched linearly so that the image's least value becomes 0 and its greatest 255. Of a
    file with several pages the first is read.

    Args:
        path: any file that Pillow reads, or a TIFF that tifffile reads.
        format: order of the channels, "BGR" or "RGB".

    Returns:
        (H, W, 3), 0..255.

    Raises:
        UserError: the file is missing, no image, damaged, or a 16 bit colour PNG.
    """
    if format not in ("BGR", "RGB"):
        raise UserError(f"INPUT.FORMAT is {format!r}; it must be BGR or RGB")
    with _naming(path):
        pixels = _pixels(path)
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    if pixels.ndim != 3 or pixels.shape[2] not in (3, 4):
        raise UserError(f"{path}: an array of shape {pixels.shape}; an image is (H, W), (H, W, 3) or (H, W, 4)")
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        raise UserError(f"{path}: holds NaN or infinite pixels; an image is finite")
    rgb = _stretch(pixels[..., :3])
    return np.array(rgb[..., ::-1] if format == "BGR" else rgb, order="C")


def image_size(path: str | Path) -> tuple[int, int]:
    """Height and width of the upright picture, from the file's header alone.

    Raises:
        UserError: the file is missing or no image.
    """
    with _naming(path):
        try:
            with Image.open(path) as image:
                width, height = image.size
                return (width, height) if image.getexif().get(_ORIENTATION, 1) > 4 else (height, width)
        except UnidentifiedImageError:
            if Path(path).suffix.lower() not in _TIFF:
                raise
            with tifffile.TiffFile(path) as tiff:
                return tiff.pages.first.imagelength, tiff.pages.first.imagewidth


def read_label(
    path: str | Path,
    *,
    label_map: Mapping[int, int] | None = None,
    num_classes: int | None = None,
    ignore: int = 255,
) -> NDArray[np.int32]:
    """Read a label map as the ids that are stored in it: palette indices, 1 to 32 bit grey, or integer TIFF.

    Args:
        path: one channel of ids; palette colours play no part.
        label_map: raw id -> train id for the raw ids that differ.
        num_classes: train ids must lie in [0, num_classes) or be ``ignore``; None accepts all.
        ignore: the train id of pixels that do not count.

    Returns:
        (H, W) train ids.

    Raises:
        UserError: the file is missing, damaged, in colour, lossy, or holds ids out of range.
    """
    with _naming(path):
        stored = _raw_ids(path)
    if stored.size and (stored.min() < 0 or stored.max() > np.iinfo(np.int32).max):
        raise UserError(f"{path}: ids {stored.min()}..{stored.max()}; ids lie in 0..{np.iinfo(np.int32).max}")
    raw = stored.astype(np.int32)
    labels = _mapped(raw, label_map) if label_map else raw
    if num_classes is not None:
        wrong = ((labels < 0) | (labels >= num_classes)) & (labels != ignore)
        if wrong.any():
            ids = np.unique(raw[wrong])
            shown = ", ".join(map(str, ids[:8])) + (", ..." if ids.size > 8 else "")
            raise UserError(
                f"{path}: label ids {shown} are neither in 0..{num_classes - 1} nor the ignored {ignore};"
                " map them with the data set's label_map or raise the number of classes"
            )
    return labels


def read_panoptic_ids(path: str | Path) -> NDArray[np.int32]:
    """Read the segment ids of a COCO panoptic PNG: R + 256 G + 65536 B, 0 is void.

    Returns:
        (H, W).

    Raises:
        UserError: the file is missing, damaged, or not RGB.
    """
    with _naming(path), Image.open(path) as image:
        if image.mode != "RGB":
            raise UserError(f"{path}: {image.mode} pixels; a panoptic PNG is RGB")
        rgb = np.asarray(image).astype(np.int32)
    return rgb @ np.array([1, 256, 65536], np.int32)


def write_label(path: str | Path, labels: NDArray[np.integer], colors: Sequence[Sequence[int]] | None = None) -> None:
    """Write ids as a PNG: with a palette when colours are given, else as 8 or 16 bit grey.

    Args:
        path: ends in ".png".
        labels: (H, W), 0..65535; 0..255 where colours are given.
        colors: RGB by id; ids beyond get the colours of :func:`seg_ext.data.palette.palette`.

    Raises:
        UserError: ids or path do not fit the format.
    """
    if Path(path).suffix.lower() != ".png":
        raise UserError(f"{path}: label maps are written as PNG; end the name in .png")
    limit = 65535 if colors is None else 255
    if labels.size and (labels.min() < 0 or labels.max() > limit):
        raise UserError(f"{path}: ids {labels.min()}..{labels.max()} do not fit into a PNG of 0..{limit}")
    image = Image.fromarray(labels.astype(np.uint8 if labels.max(initial=0) <= 255 else np.uint16))
    if colors is not None:
        image.putpalette([int(c) for color in [*colors, *palette(256)[len(colors) :]] for c in color])
    image.save(path)


@contextmanager
def _naming(path: str | Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except IsADirectoryError as error:
        raise UserError(f"{path}: a folder; an image file is needed") from error
    except UnidentifiedImageError as error:
        empty = Path(path).stat().st_size == 0
        raise UserError(f"{path}: {'the file is empty' if empty else 'not an image that can be read'}") from error
    except _UNREADABLE as error:
        raise UserError(f"{path}: cannot be read: {' '.join(str(error).split())}") from error


def _pixels(path: str | Path) -> NDArray[Any]:
    is_tiff = Path(path).suffix.lower() in _TIFF
    try:
        with Image.open(path) as image:
            if not (image.mode.startswith("RGB") and ";16" in _raw_mode(image)):
                upright = ImageOps.exif_transpose(image)
                if upright.mode.startswith(("I", "F")):
                    return np.asarray(upright)
                return np.asarray(upright.convert("RGBA" if "transparency" in upright.info else "RGB"))
    except UnidentifiedImageError:
        if not is_tiff:
            raise
    if not is_tiff:
        raise UserError(f"{path}: 16 bit colour; convert it to 8 bit or to TIFF")
    return tifffile.imread(path)


def _stretch(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    if pixels.dtype == np.uint8:
        return pixels
    values = pixels.astype(np.float64)
    values -= values.min()
    return np.rint(values * (255 / (values.max() or 1))).astype(np.uint8)


def _raw_ids(path: str | Path) -> NDArray[np.integer]:
    if Path(path).suffix.lower() in _TIFF:
        ids = tifffile.imread(path)
        if ids.ndim != 2 or ids.dtype.kind not in "bui":
            raise UserError(f"{path}: a {ids.dtype} array of shape {ids.shape}; a label map is (H, W) integers")
        return ids.astype(np.int64)
    with Image.open(path) as image:
        if image.format in _LOSSY:
            raise UserError(f"{path}: {image.format} does not keep ids; store label maps as PNG or TIFF")
        if image.mode not in ("1", "L", "P", "I") and not image.mode.startswith("I;16"):
            raise UserError(f"{path}: {image.mode} pixels; a label map has one channel of class ids (palette or grey)")
        step = _GREY_STEP.get(_raw_mode(image), 1)
        return np.asarray(image).astype(np.int64) // step


def _raw_mode(image: ImageFile.ImageFile) -> str:
    arguments = image.tile[0][3] if image.tile else None
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def _mapped(raw: NDArray[np.int32], label_map: Mapping[int, int]) -> NDArray[np.int32]:
    table = np.arange(max(label_map) + 1, dtype=np.int32)
    table[list(label_map)] = list(label_map.values())
    return np.where(raw < table.size, table[np.minimum(raw, table.size - 1)], raw)
