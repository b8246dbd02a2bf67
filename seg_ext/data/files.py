"""Opening picture, TIFF and NumPy files: a limit of pixels, and one line for whatever is wrong with a file."""

from __future__ import annotations

import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from seg_ext.errors import UserError

Array = NDArray[Any]

TIFF = {".tif", ".tiff"}
LIMIT = "SEG_EXT_MAX_PIXELS"  # environment variable
_LIMIT = 2 * (Image.MAX_IMAGE_PIXELS or 1 << 27)  # the size at which Pillow refuses, 179 million pixels
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error, tifffile.TiffFileError)
_LOSSY = (tifffile.COMPRESSION.OJPEG, tifffile.COMPRESSION.JPEG)
PLAIN = (tifffile.PHOTOMETRIC.MINISBLACK, tifffile.PHOTOMETRIC.RGB)


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Turn what goes wrong while ``path`` is read into a UserError of one line that begins with it."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except IsADirectoryError as error:
        raise UserError(f"{path}: a folder; an image file is needed") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"{path}: {_too_many()}") from error
    except _UNREADABLE as error:
        text = " ".join(str(error).split())
        if Path(path).is_file() and Path(path).stat().st_size == 0:
            text = "the file is empty"
        elif not isinstance(error, UnidentifiedImageError):
            text = f"cannot be read: {text}"
        elif is_tiff(path):
            text = "not an image that can be read; a TIFF of many bands is read uncompressed or compressed by deflate"
        else:
            text = "not an image that can be read"
        raise UserError(f"{path}: {text}") from error


def is_tiff(path: str | Path) -> bool:
    """Whether the file's name says TIFF."""
    return Path(path).suffix.lower() in TIFF


def is_numpy(path: str | Path) -> bool:
    """Whether the file's name says NumPy."""
    return Path(path).suffix.lower() == ".npy"


def check_pixels(path: str | Path, height: int, width: int) -> None:
    """Refuse a picture above the limit: 179 million pixels, or what the environment's SEG_EXT_MAX_PIXELS says.

    Raises:
        UserError: it is above, or has no pixels.
    """
    if height * width > _pixel_limit():
        raise UserError(f"{path}: {width}x{height} pixels, {_too_many()}")
    if not height * width:
        raise UserError(f"{path}: {width}x{height} pixels; an image has one at least")


@contextmanager
def opened(path: str | Path) -> Iterator[ImageFile.ImageFile]:
    """The file in Pillow, its size checked, its pixels not yet read."""
    limit = _pixel_limit()
    if Image.MAX_IMAGE_PIXELS is not None and limit > 2 * Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = limit  # whoever sets the variable lifts Pillow's limit with it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image = Image.open(path)
    with image:
        check_pixels(path, image.height, image.width)
        yield image


def raw_mode(image: ImageFile.ImageFile) -> str:
    """How Pillow finds the pixels in a file that it has opened and not yet read, such as "RGB;16B"."""
    arguments = image.tile[0][3] if image.tile else None
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def read_numpy(path: str | Path) -> Array:
    """An array mapped from a .npy file; Python objects are never unpickled."""
    return np.lib.format.open_memmap(path, mode="r")


def tiff_page(path: str | Path) -> tuple[int, int, int]:
    """Height, width and orientation (1 to 8, as in EXIF) of a TIFF's first page, from its header."""
    with tifffile.TiffFile(path) as tiff:
        page: Any = tiff.pages.first
        return page.imagelength, page.imagewidth, _orientation(page)


def tiff_images(path: str | Path) -> tuple[list[int], int]:
    """Numbers of a TIFF's pages without masks and reduced copies (overviews), and the bands of the first one."""
    with tifffile.TiffFile(path) as tiff:
        pages: Any = list(tiff.pages)
        return [i for i, page in enumerate(pages) if not page.subfiletype & 0b101], pages[0].samplesperpixel


def read_tiff(path: str | Path, *, whole: bool, picture: bool, page: int = 0) -> tuple[Array, int] | None:
    """The pixels of a TIFF as they are stored, and its orientation.

    Args:
        path: chunky or planar; strips or tiles.
        whole: several pages of one band each are the bands; otherwise the first page is read.
        picture: give up on what has to be turned into brightness: palettes, inverted grey, CMYK, less than 8 bits;
            otherwise they are ids, and lossy compression is refused.
        page: that is read where the file is not read whole.

    Returns:
        (H, W, C) and 1 to 8; None for what is left to Pillow: compressed in a way that tifffile alone does not know,
        or given up.
    """
    with tifffile.TiffFile(path) as tiff:
        found: Any = tiff.pages[page]
        check_pixels(path, found.imagelength, found.imagewidth)
        if not picture and found.compression in _LOSSY:
            raise UserError(f"{path}: JPEG does not keep ids; store label maps without it")
        if picture and (found.photometric not in PLAIN or found.bitspersample < 8):
            return None
        source: Any = tiff.series[0] if whole else found
        extra = [axis for axis in source.axes if axis not in "YX"]
        if len(extra) > 1 or not {"Y", "X"} <= set(source.axes):
            raise UserError(f"{path}: a stack of shape {source.shape}; an image has rows, columns and bands")
        try:
            pixels = source.asarray()
        except ValueError as error:
            if "imagecodecs" in str(error):
                return None
            raise
        order = [source.axes.index(axis) for axis in ("Y", "X", *extra)]
        return pixels.transpose(order).reshape(found.imagelength, found.imagewidth, -1), _orientation(found)


def _orientation(page: Any) -> int:
    tag = page.tags.get("Orientation")
    return int(tag.value) if tag is not None else 1


def _pixel_limit() -> int:
    text = os.environ.get(LIMIT, str(_LIMIT))
    if not text.isdecimal():
        raise UserError(f"{LIMIT} is {text!r}; it is the greatest number of pixels of an image")
    return int(text)


def _too_many() -> str:
    return f"more than {_pixel_limit()}; cut the image into tiles, or raise {LIMIT}"
