"""A video file that grows picture by picture and appears whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import cv2
from numpy.typing import NDArray

from seg_ext.errors import UserError


class VideoFile:
    """MP4 (MPEG-4 part 2), written under a temporary name that :meth:`close` takes away."""

    def __init__(self, path: Path, rate: float) -> None:
        """Open nothing yet.

        Args:
            path: ends in ".mp4".
            rate: pictures a second.
        """
        self._path, self._rate = path, rate
        self._partial = path.with_name(f".{os.getpid()}-{path.name}")
        self._writer: cv2.VideoWriter | None = None

    def add(self, picture: NDArray[Any]) -> None:
        """Add an (H, W, 3) RGB uint8 picture, all of one size; a last odd row or column is left out, as MPEG needs.

        Raises:
            UserError: the file cannot be written.
        """
        height, width = (max(2, side // 2 * 2) for side in picture.shape[:2])
        if self._writer is None:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._partial.touch()
            except OSError as error:
                raise UserError(f"{self._path} cannot be written: {error.strerror or error}") from error
            self._writer = cv2.VideoWriter(
                str(self._partial), cv2.VideoWriter.fourcc(*"mp4v"), self._rate, (width, height)
            )
            if not self._writer.isOpened():
                self._partial.unlink(missing_ok=True)
                raise UserError(f"{self._path} cannot be written: OpenCV has no encoder for pictures {width}x{height}")
        self._writer.write(cv2.resize(picture, (width, height), interpolation=cv2.INTER_NEAREST)[..., ::-1])

    def close(self, *, whole: bool = True) -> None:
        """End the file; one that is not whole is dropped."""
        if self._writer is None:
            return
        self._writer.release()
        self._writer = None
        if whole:
            os.replace(self._partial, self._path)
        else:
            self._partial.unlink(missing_ok=True)
