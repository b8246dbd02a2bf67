"""Label maps to and from files: class ids come back as they were stored, bad files name themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from seg_ext.data.files import check_pixels, is_numpy, is_tiff, naming, opened, raw_mode, read_numpy, read_tiff
from seg_ext.data.image_io import image_size, read_image
from seg_ext.data.label_colors import Colors, color_table, decode_colors
from seg_ext.data.label_map import LabelMap, label_intervals, map_ids
from seg_ext.data.palette import palette
from seg_ext.errors import UserError

__all__ = [
    "image_size",
    "read_image",
    "read_label",
    "read_panoptic_ids",
    "read_record_label",
    "write_label",
]

Array = NDArray[Any]

_LOSSY = {"JPEG", "MPO", "AVIF"}
_MODES = {"1", "L", "P", "I", "I;16", "I;16B", "I;16L", "I;16N", "RGB", "RGBA"}
_KINDS = (
    "a label map is (H, W) integers: one channel of class ids (palette or grey); or colours of the data set's"
    " label_colors; or a one-hot band a class in a TIFF or .npy"
)
_GREY_STEP = {"L;2": 85, "L;4": 17}  # Pillow spreads 2 and 4 bit grey over 0..255
_NO_CLASS = -1  # raw id of a one-hot pixel in no class or in several
_GREATEST = np.iinfo(np.int32).max


def read_record_label(
    record: Mapping[str, Any],
    metadata: Any = None,
    *,
    num_classes: int | None = None,
    ignore: int = 255,
) -> NDArray[np.int32]:
    """The train ids of a data-set record: the one way from ``sem_seg_file_name`` to a label map.

    Args:
        record: its "sem_seg_label_map" and "sem_seg_label_colors" say how the file is read.
        metadata: of the data set; its label_map and label_colors serve a record that has none of its own.
        num_classes: see :func:`read_label`.
        ignore: likewise.

    Raises:
        UserError: as :func:`read_label`.
    """
    rules = {
        key: record.get(f"sem_seg_{key}") or (metadata.get(key) if metadata is not None else None)
        for key in ("label_map", "label_colors")
    }
    return read_label(record["sem_seg_file_name"], num_classes=num_classes, ignore=ignore, **rules)


def read_stored_ids(record: Mapping[str, Any]) -> NDArray[np.int32]:
    """(H, W) ids as a record's label map stores them, such as those of instances, before any rule.

    Raises:
        UserError: as :func:`read_label`.
    """
    return read_label(record["sem_seg_file_name"])


def read_label(
    path: str | Path,
    *,
    label_map: LabelMap | None = None,
    label_colors: Colors | None = None,
    num_classes: int | None = None,
    ignore: int = 255,
) -> NDArray[np.int32]:
    """Read a label map as the ids that are stored in it.

    One channel of whole numbers is taken as it is: palette indices, 1 to 32 bit grey, integer TIFF, ".npy". A stack
    of ``num_classes`` bands, TIFF or ".npy", is one-hot: 0 and 1, or 0 and 255; a pixel that is in no band or in
    several has the raw id -1. RGB(A) pictures are translated by ``label_colors`` straight to train ids.

    Args:
        path: the file.
        label_map: raw id -> train id for the raw ids that differ; a key is an id, or an inclusive range such as
            "1-65535". An id by itself goes before a range. Negative ids are accepted where it maps them.
        label_colors: colour (R, G, B) -> train id, or the colours of the train ids 0, 1, ... in a list; every other
            colour in a file is an error.
        num_classes: train ids must lie in [0, num_classes) or be ``ignore``; None accepts all.
        ignore: the train id of pixels that do not count.

    Returns:
        (H, W) train ids.

    Raises:
        UserError: the file is missing, damaged, lossy, or holds ids or colours that nothing is said about.
    """
    try:
        intervals = label_intervals(label_map or {})
        table = color_table(label_colors) if label_colors is not None else None
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    with naming(path):
        stored = _stored(path, num_classes)
    if stored.dtype.kind not in "bui":
        raise UserError(f"{path}: {stored.dtype} pixels; {_KINDS}")
    raw = (stored != 0).astype(np.uint8) if stored.dtype == bool else stored
    is_color = raw.ndim == 3 and raw.shape[2] in (3, 4) and raw.dtype == np.uint8
    if is_color and table is not None:
        raw = labels = decode_colors(path, raw, table)
    elif is_color and not (is_tiff(path) or is_numpy(path)):
        raise UserError(f"{path}: RGB pixels; {_KINDS}")
    else:
        if raw.ndim != 2:
            raw = _from_one_hot(path, raw, num_classes, gaps=_NO_CLASS in (label_map or {}))
        if raw.max() > _GREATEST or raw.min() < -_GREATEST:
            raise UserError(f"{path}: ids {raw.min()}..{raw.max()}; ids lie in 0..{_GREATEST}")
        labels = map_ids(raw, intervals)
    _check_range(path, raw, labels, num_classes, ignore)
    return labels


def read_panoptic_ids(path: str | Path) -> NDArray[np.int32]:
    """Read the segment ids of a COCO panoptic PNG: R + 256 G + 65536 B, 0 is void.

    Returns:
        (H, W).

    Raises:
        UserError: the file is missing, damaged, or not RGB.
    """
    with naming(path), opened(path) as image:
        deep = image.mode == "RGB" and ";16" in raw_mode(image)
        if image.mode != "RGB" or deep:
            raise UserError(f"{path}: {image.mode} pixels{', 16 bit' * deep}; a panoptic PNG is RGB of 8 bit")
        padded = image.tobytes("raw", "RGBX")  # as Pillow holds them: no copy by channels
        return np.frombuffer(padded, "<i4").reshape(image.height, image.width) & 0xFFFFFF


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


def _stored(path: str | Path, num_classes: int | None) -> Array:
    """(H, W) ids, (H, W, 3 or 4) colours, or a stack."""
    if is_numpy(path):
        pixels = read_numpy(path)
        check_pixels(path, *sorted((1, 1, *pixels.shape))[-2:] if pixels.size else (0, 0))
        return pixels if pixels.shape[:1] == (num_classes,) else _squeezed(pixels)
    found = read_tiff(path, whole=True, picture=False) if is_tiff(path) else None
    if found is not None:
        return _squeezed(found[0])
    with opened(path) as image:
        raw = raw_mode(image)
        if image.format in _LOSSY:
            raise UserError(f"{path}: {image.format} does not keep ids; store label maps as PNG or TIFF")
        if image.mode not in _MODES or (image.mode.startswith("RGB") and ";16" in raw):
            raise UserError(f"{path}: {image.mode} pixels{', 16 bit' * (';16' in raw)}; {_KINDS}")
        if image.tile[0].codec_name.startswith("ppm") and image.tile[0].args != (raw, 255):
            raise UserError(f"{path}: its greatest value is not 255, so that ids are spread; store it as PNG")
        return np.asarray(image) // np.uint8(_GREY_STEP[raw]) if raw in _GREY_STEP else np.asarray(image)


def _squeezed(pixels: Array) -> Array:
    return pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels


def _from_one_hot(path: str | Path, stack: Array, num_classes: int | None, *, gaps: bool) -> Array:
    """(H, W) raw ids of a stack, its bands last or, in ".npy", first; -1 for no band or several, where ``gaps``."""
    if stack.ndim != 3 or num_classes is None or num_classes not in stack.shape:
        raise UserError(f"{path}: an array of shape {stack.shape}; {_KINDS}")
    bands = stack if stack.shape[2] == num_classes else np.moveaxis(stack, 0, -1)
    greatest = bands.max(initial=0)
    if bands.shape[2] != num_classes or greatest not in (0, 1, 255) or ((bands != 0) & (bands != greatest)).any():
        raise UserError(
            f"{path}: values {bands.min()}..{greatest} in an array of shape {stack.shape}; one-hot labels are"
            f" {num_classes} bands of 0 and 1, or of 0 and 255"
        )
    hot = bands != 0
    count = hot.sum(axis=2)
    if (count != 1).any() and not gaps:
        raise UserError(
            f"{path}: {(count == 0).sum()} pixels are in none of the {num_classes} one-hot bands and"
            f" {(count > 1).sum()} in several; to ignore them, map {_NO_CLASS} to the ignored id in label_map"
        )
    return np.where(count == 1, hot.argmax(axis=2), _NO_CLASS)


def _check_range(path: str | Path, raw: Array, labels: Array, num_classes: int | None, ignore: int) -> None:
    """Refuse train ids out of range, naming the raw ids."""
    if labels.min() < 0:
        raise UserError(f"{path}: ids {raw.min()}..{raw.max()}; ids lie in 0..{_GREATEST}")
    if num_classes is None or labels.max() < num_classes:
        return
    wrong = (labels >= num_classes) & (labels != ignore)
    if wrong.any():
        ids = np.unique(raw[wrong])
        shown = ", ".join(map(str, ids[:8])) + (", ..." if ids.size > 8 else "")
        raise UserError(
            f"{path}: label ids {shown} are neither in 0..{num_classes - 1} nor the ignored {ignore};"
            " map them with the data set's label_map or raise the number of classes"
        )
