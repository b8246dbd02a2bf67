"""Parts of large images: windows of TIFF, NumPy and, with rasterio, of any other raster, without reading the rest."""

from __future__ import annotations

import importlib.util
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tifffile
from numpy.typing import NDArray

from seg_ext.data.files import PLAIN, is_numpy, is_tiff, naming, read_numpy
from seg_ext.errors import UserError

Array = NDArray[Any]
GEO_TAGS = (33550, 33922, 34264, 34735, 34736, 34737)  # scale, tie points, matrix, and the keys of the projection
_CACHE = 1 << 28  # bytes of decoded tiles or strips that are kept
_Tag = tuple[int, Any, int, Any, bool]  # as tifffile writes it


class Raster(Protocol):
    """An image that is read in parts.

    Attributes:
        shape: height, width and bands.
        dtype: of the pixels.
        geo: tags that place it on the ground, as tifffile writes them; empty where nothing does.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    geo: list[_Tag]

    def read(self, top: int, left: int, height: int, width: int) -> Array:
        """(height, width, bands) pixels as they are stored."""

    def close(self) -> None:
        """Close the file."""


@contextmanager
def open_raster(path: str | Path, *, whole: bool = True) -> Iterator[Raster]:
    """A ".npy" of (H, W), (H, W, C) or, where C < W, (C, H, W); a TIFF; what else rasterio opens.

    TIFF that tifffile alone does not decode is left to rasterio (extra ``geo``) too.

    Args:
        path: of the file.
        whole: a TIFF's pages of one band each are the bands; otherwise the first page is read.

    Raises:
        UserError: no such file, damaged, stored turned, a TIFF of a palette, inverted or of few bits, or of a kind that
            needs rasterio, which is not there.
    """
    raster: Raster | None = None
    if is_numpy(path):
        with naming(path):
            raster = NumpyRaster(path)
    elif is_tiff(path):
        raster = _open_tiff(path, whole)
    if raster is None:
        with naming(path), open(path, "rb"):  # says what is wrong with it
            pass
        if importlib.util.find_spec("rasterio") is None:
            raise UserError(
                f"{path}: parts of such a file are read with rasterio: pip install seg_ext[geo], or store it as TIFF"
                " without compression or with deflate, or as .npy"
            )
        raster = GdalRaster(path)
    try:
        yield raster
    finally:
        raster.close()


def _open_tiff(path: str | Path, whole: bool) -> Raster | None:
    """None where tifffile cannot decode it."""
    with naming(path), ExitStack() as stack:
        raster = TiffRaster(path, stack.enter_context(tifffile.TiffFile(path)), whole=whole)
        if not raster.decodes():
            return None
        stack.pop_all()
    return raster


class NumpyRaster:
    """A .npy file; see :class:`Raster`."""

    def __init__(self, path: str | Path) -> None:
        """Read the header."""
        self._path = path
        self.geo: list[_Tag] = []
        stored = read_numpy(path)
        if stored.ndim not in (2, 3) or stored.dtype.kind not in "buif":
            raise UserError(
                f"{path}: an array of {stored.dtype}, {stored.shape}; an image is (H, W), (H, W, C), (C, H, W)"
            )
        self._first = stored.ndim == 3 and stored.shape[0] < stored.shape[2]
        sides = stored.shape if stored.ndim == 3 else (*stored.shape, 1)
        self.shape = (sides[1], sides[2], sides[0]) if self._first else (sides[0], sides[1], sides[2])
        self.dtype = stored.dtype

    def read(self, top: int, left: int, height: int, width: int) -> Array:
        """See :meth:`Raster.read`; the file is mapped for the time of it."""
        with naming(self._path):
            stored = read_numpy(self._path)
            rows, columns = slice(top, top + height), slice(left, left + width)
            part = np.moveaxis(stored[:, rows, columns], 0, -1) if self._first else stored[rows, columns]
            return np.array(part.reshape(*part.shape[:2], -1))

    def close(self) -> None:
        """Nothing: the file is open while it is read alone."""


class TiffRaster:
    """The first page of a TIFF, or its pages of one size as bands; see :class:`Raster`."""

    def __init__(self, path: str | Path, tiff: tifffile.TiffFile, *, whole: bool) -> None:
        """Read the header of a file that is open."""
        self._path, self._tiff = path, tiff
        pages: Any = self._tiff.pages
        every = [page for page in pages if not page.subfiletype & 0b101]  # no overviews, masks
        first = every[0]
        shape = first.imagelength, first.imagewidth, first.samplesperpixel
        alike = [p for p in every if (p.imagelength, p.imagewidth, p.samplesperpixel, p.dtype) == (*shape, first.dtype)]
        self._pages = alike if whole and first.samplesperpixel == 1 else every[:1]
        self.shape, self.dtype = (shape[0], shape[1], shape[2] * len(self._pages)), first.dtype
        if first.photometric not in (*PLAIN, tifffile.PHOTOMETRIC.YCBCR) or first.bitspersample < 8:
            kind = getattr(first.photometric, "name", first.photometric)
            raise UserError(
                f"{path}: {kind} pixels of {first.bitspersample} bits; parts are read of brightness or RGB, from 8 bits"
            )
        turned = first.tags.get("Orientation")
        if turned is not None and turned.value != 1:
            raise UserError(f"{path}: stored turned (orientation {turned.value}); parts are read of upright images")
        found = (first.tags.get(code) for code in GEO_TAGS)
        self.geo: list[_Tag] = [(tag.code, tag.dtype, tag.count, tag.value, True) for tag in found if tag is not None]
        self._kept: OrderedDict[tuple[int, int], Array] = OrderedDict()
        self._bytes = 0

    def decodes(self) -> bool:
        """Whether tifffile can, by the first tile or strip."""
        try:
            if not self._pages[0].is_memmappable:
                self._segment(0, 0)
        except ValueError as error:
            if "imagecodecs" in str(error):
                return False
            raise
        return True

    def read(self, top: int, left: int, height: int, width: int) -> Array:
        """See :meth:`Raster.read`; tiles and strips are kept for the next window, within a limit."""
        result = np.zeros((height, width, self.shape[2]), self.dtype)
        with naming(self._path):
            for number, page in enumerate(self._pages):
                bands = result[..., number * page.samplesperpixel : (number + 1) * page.samplesperpixel]
                if page.is_memmappable:
                    self._map(bands, page, top, left)
                else:
                    self._decode(bands, number, top, left)
        return result

    def close(self) -> None:
        """See :meth:`Raster.close`."""
        self._tiff.close()

    def _map(self, target: Array, page: Any, top: int, left: int) -> None:
        """Fill (h, w, bands) from a page stored in one piece, which is mapped for the time of it."""
        height, width = target.shape[:2]
        kind = np.dtype(page.parent.byteorder + self.dtype.char)
        stored = np.memmap(self._path, kind, "r", page.dataoffsets[0], page.shaped)  # (planes, 1, H, W, bands)
        part = stored[:, 0, top : top + height, left : left + width]
        target[...] = np.moveaxis(part, 0, 2).reshape(target.shape)

    def _decode(self, target: Array, number: int, top: int, left: int) -> None:
        """Fill (h, w, bands) from a page's tiles or strips."""
        page, (height, width) = self._pages[number], target.shape[:2]
        deep, wide = page.tilelength or page.rowsperstrip, page.tilewidth or page.imagewidth
        across, down = -(-page.imagewidth // wide), -(-page.imagelength // deep)
        planes = page.samplesperpixel if page.planarconfig == 2 else 1
        rows = range(top // deep, -(-(top + height) // deep))
        columns = range(left // wide, -(-(left + width) // wide))
        for plane, row, column in product(range(planes), rows, columns):
            bands = target[..., plane : plane + 1] if planes > 1 else target
            segment = self._segment(number, (plane * down + row) * across + column)
            _paste(bands, segment, row * deep - top, column * wide - left)

    def _segment(self, number: int, index: int) -> Array:
        """(h, w, bands) decoded tile or strip of a page."""
        if (number, index) in self._kept:
            self._kept.move_to_end((number, index))
            return self._kept[number, index]
        page = self._pages[number]
        file = self._tiff.filehandle
        file.seek(page.dataoffsets[index])
        data = file.read(page.databytecounts[index])
        if len(data) < page.databytecounts[index]:
            raise UserError(f"{self._path}: damaged: it ends within its pixels")
        decoded, _, shape = page.decode(data or None, index, jpegtables=page.jpegtables)
        segment = np.zeros((*shape[1:3], shape[3]), self.dtype) if decoded is None else decoded[0]
        self._kept[number, index] = segment
        self._bytes += segment.nbytes
        while self._bytes > _CACHE and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return segment


class GdalRaster:
    """What rasterio opens; see :class:`Raster`."""

    def __init__(self, path: str | Path) -> None:
        """Read the header."""
        import rasterio

        self._path, self._errors = path, rasterio.errors.RasterioError
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
                self._source = rasterio.open(path)
        except self._errors as error:
            raise UserError(f"{path}: cannot be read: {' '.join(str(error).split())}") from error
        source = self._source
        turned = source.tags().get("EXIF_Orientation", "1")
        if turned != "1" or rasterio.enums.ColorInterp.palette in source.colorinterp:
            source.close()
            what = "palette pixels" if turned == "1" else f"stored turned (orientation {turned})"
            raise UserError(f"{path}: {what}; parts are read of upright images of brightness or RGB")
        self.shape, self.dtype = (source.height, source.width, source.count), np.dtype(source.dtypes[0])
        self.geo = _geo_tags(source.crs, source.transform)

    def read(self, top: int, left: int, height: int, width: int) -> Array:
        """See :meth:`Raster.read`."""
        try:
            pixels = self._source.read(window=((top, top + height), (left, left + width)))
        except self._errors as error:
            raise UserError(f"{self._path}: cannot be read: {' '.join(str(error).split())}") from error
        return np.ascontiguousarray(np.moveaxis(pixels, 0, -1))

    def close(self) -> None:
        """See :meth:`Raster.close`."""
        self._source.close()


def _geo_tags(crs: Any, transform: Any) -> list[_Tag]:
    """A projection and transform as tags, read off a TIFF of one pixel that GDAL writes."""
    import rasterio

    if crs is None and transform.is_identity:
        return []
    profile = {"driver": "GTiff", "height": 1, "width": 1, "count": 1, "dtype": "uint8"}
    with rasterio.MemoryFile() as memory:
        with memory.open(**profile, crs=crs, transform=transform):
            pass
        with tifffile.TiffFile(memory) as tiff:
            tags: Any = tiff.pages.first.tags
            return [(t.code, t.dtype, t.count, t.value, True) for code in GEO_TAGS if (t := tags.get(code))]


def _paste(target: Array, part: Array, top: int, left: int) -> None:
    """Copy ``part`` into ``target`` at a place that may lie partly outside."""
    height, width = (max(0, min(a + b, c)) for a, b, c in zip(part.shape, (top, left), target.shape, strict=False))
    y, x = max(top, 0), max(left, 0)
    target[y:height, x:width] = part[y - top : height - top, x - left : width - left]
