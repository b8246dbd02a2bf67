"""Large label maps and probability maps written in parts, TIFF or .npy, kept if the process is killed."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from seg_ext.data.files import is_numpy, is_tiff
from seg_ext.errors import UserError


class RasterWriter:
    """A file of a known size, uncompressed, that is written region by region and takes its name at the end.

    Until :meth:`finish` it is ``<name>.part``; a writer made with ``resume`` goes on with one that is there. Disk space
    is taken at the start, so that a full disk is found then.
    """

    def __init__(
        self,
        path: str | Path,
        shape: Sequence[int],
        *,
        dtype: Any,
        geo: Sequence[Any] = (),
        resume: bool = False,
    ) -> None:
        """Make the file, or open the one to go on with.

        Args:
            path: ".tif", ".tiff" or ".npy".
            shape: (H, W), or (K, H, W) stored band after band.
            dtype: of the pixels.
            geo: tags of a TIFF, see :class:`seg_ext.data.raster.Raster`.
            resume: with what an earlier writer of the same arguments left.

        Raises:
            UserError: another kind of file, a folder or disk that cannot be written, a disk that is full, or nothing
                to resume.
        """
        self._path = Path(path)
        if not (is_tiff(path) or is_numpy(path)):
            raise UserError(f"{path}: large rasters are written as .tif or .npy")
        self.part = self._path.with_name(f"{self._path.name}.part")
        self._shape, self._dtype = tuple(shape), np.dtype(dtype)
        self._call(self._open, geo, resume)

    def write(self, top: int, left: int, pixels: NDArray[Any]) -> None:
        """Write a region, (h, w) or (K, h, w).

        Raises:
            UserError: it cannot be written.
        """
        self._call(self._write, top, left, np.ascontiguousarray(pixels, self._dtype))

    def flush(self) -> None:
        """Have what was written on the disk."""
        self._call(os.fsync, self._file.fileno())

    def finish(self) -> Path:
        """Close the file and give it its name."""
        self._call(self._finish)
        return self._path

    def close(self) -> None:
        """Leave the file as it is, to go on with later."""
        self._file.close()

    def _call(self, function: Any, *arguments: Any) -> None:
        try:
            function(*arguments)
        except OSError as error:
            raise UserError(f"{self._path} cannot be written: {error.strerror or error}") from error

    def _open(self, geo: Sequence[Any], resume: bool) -> None:
        if self._path.is_dir():
            raise UserError(f"{self._path}: a folder; a file is needed")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        size = int(np.prod(self._shape)) * self._dtype.itemsize
        if not resume:
            self._create(geo)
        elif not self.part.is_file():
            raise UserError(f"{self.part}: no such file to go on with")
        self._offset = self._start()
        self._file = self.part.open("r+b", buffering=0)
        try:
            self._allocate(self._offset + size)
        except OSError:
            self._file.close()
            if not resume:
                self.part.unlink()
            raise

    def _allocate(self, size: int) -> None:
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(self._file.fileno(), 0, size)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise
        if self.part.stat().st_size < size:  # a file system without preallocation
            os.truncate(self.part, size)

    def _create(self, geo: Sequence[Any]) -> None:
        if is_numpy(self._path):
            header = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": self._shape}
            with self.part.open("wb") as file:
                np.lib.format.write_array_header_1_0(file, header)
            return
        planar = "separate" if len(self._shape) == 3 and self._shape[0] > 1 else None
        size = int(np.prod(self._shape)) * self._dtype.itemsize
        with self.part.open("wb") as file:
            with tifffile.TiffWriter(file, bigtiff=size > 2**32 - 2**20) as tiff:
                tiff.write(
                    shape=self._shape,
                    dtype=self._dtype,
                    photometric="minisblack",
                    metadata=None,
                    extratags=list(geo),
                    planarconfig=planar,
                )

    def _start(self) -> int:
        """Place of the first pixel in the file."""
        if is_numpy(self._path):
            with self.part.open("rb") as file:
                np.lib.format.read_magic(file)
                np.lib.format.read_array_header_1_0(file)
                return file.tell()
        with tifffile.TiffFile(self.part) as tiff:
            page: Any = tiff.pages.first
            return int(page.dataoffsets[0])

    def _write(self, top: int, left: int, pixels: NDArray[Any]) -> None:
        height, width = self._shape[-2:]
        rows, columns = pixels.shape[-2:]
        for band, plane in enumerate(pixels.reshape(-1, rows, columns)):
            whole = columns == width
            for row, line in enumerate([plane] if whole else plane):
                pixel = (band * height + top + row) * width + left
                self._put(memoryview(line).cast("B"), self._offset + pixel * self._dtype.itemsize)

    def _put(self, data: memoryview, offset: int) -> None:
        while data:
            done = os.pwrite(self._file.fileno(), data, offset)
            data, offset = data[done:], offset + done

    def _finish(self) -> None:
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self.part, self._path)
