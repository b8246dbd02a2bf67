"""Deterministic geometric transforms of images, label maps, masks and coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from fvcore.transforms.transform import Transform
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[Any]
Pair = Sequence[int] | Array


class WindowTransform(Transform):
    """A window of the scaled image, read from the source in one resampling.

    Images are resampled bilinearly, with a wider filter when they shrink, to a grey level as in Pillow; label maps and
    masks take the nearest pixel. What lies right of or below the scaled image is padding: ``pad_value`` in images,
    ``ignore`` in label maps, False in boolean masks.
    """

    def __init__(
        self,
        source: Pair,
        scaled: Pair,
        *,
        offset: Pair = (0, 0),
        size: Pair | None = None,
        pad_value: float | Sequence[float] = 0,
        ignore: int = 255,
    ) -> None:
        """Place the window.

        Args:
            source: height and width of the inputs.
            scaled: height and width of the whole input after scaling.
            offset: top and left of the window in the scaled image, not negative.
            size: height and width of the window; None for all of the scaled image.
            pad_value: one number or one a channel.
            ignore: label id of padding.
        """
        super().__init__()
        self.source, self.scaled = np.array(source), np.array(scaled)
        self.offset, self.size = np.array(offset), np.array(scaled if size is None else size)
        self.inside = np.minimum(self.scaled - self.offset, self.size)
        self.pad_value, self.ignore = pad_value, ignore

    def apply_image(self, img: Array) -> Array:
        """(H, W, C) uint8 or float32 -> (h, w, C) of the same type."""
        if img.shape[2] == 3 and img.dtype == np.uint8:
            return self._padded(self._resampled(img), self.pad_value)
        bands = [self._resampled(img[..., band]) for band in range(img.shape[2])]
        return self._padded(np.stack(bands, axis=2), self.pad_value)

    def apply_segmentation(self, segmentation: Array) -> Array:
        """(H, W) ids or bool -> (h, w) of the same type."""
        rows, columns = (
            (2 * (o + np.arange(n)) + 1) * s // (2 * t)
            for o, n, s, t in zip(self.offset, self.inside, self.source, self.scaled, strict=True)
        )
        part = segmentation.take(columns, axis=1).take(rows, axis=0)  # several times as fast as by indices
        return self._padded(part, False if segmentation.dtype == bool else self.ignore)

    def apply_coords(self, coords: Array) -> Array:
        """(N, 2) x, y -> (N, 2) x, y, also outside the window."""
        return coords * (self.scaled / self.source)[::-1] - self.offset[::-1]

    def _resampled(self, img: Array) -> Array:
        """(H, W, 3) uint8 or one band -> the part of the window that lies in the image."""
        if (self.inside == self.scaled).all() and (self.scaled >= self.source).all():
            return cv2.resize(np.ascontiguousarray(img), self.scaled[::-1].tolist(), interpolation=cv2.INTER_LINEAR)
        ratio = self.source / self.scaled
        top, left = self.offset * ratio
        bottom, right = np.minimum((self.offset + self.inside) * ratio, self.source)
        height, width = self.inside
        image = Image.fromarray(np.ascontiguousarray(img))
        part = image.resize((int(width), int(height)), Image.Resampling.BILINEAR, box=(left, top, right, bottom))
        return np.array(part)

    def _padded(self, part: Array, value: float | Sequence[float]) -> Array:
        if (self.inside == self.size).all():
            return part
        whole = np.empty((*self.size, *part.shape[2:]), part.dtype)
        whole[:] = np.rint(value) if part.dtype == np.uint8 and part.ndim == 3 else value
        whole[: part.shape[0], : part.shape[1]] = part
        return whole


class QuarterTurns(Transform):
    """Rotation by ``turns`` times 90 degrees, counter-clockwise."""

    def __init__(self, height: int, width: int, turns: int) -> None:
        """Set the input's size, pixels, and the number of turns."""
        super().__init__()
        self.height, self.width, self.turns = height, width, turns % 4

    def apply_image(self, img: Array) -> Array:
        """(H, W, ...) -> (h, w, ...), a view."""
        return np.rot90(img, self.turns)

    def apply_coords(self, coords: Array) -> Array:
        """(N, 2) x, y -> (N, 2) x, y."""
        x, y = coords[:, 0], coords[:, 1]
        height, width = self.height, self.width
        turned = ((x, y), (y, width - x), (width - x, height - y), (height - y, x))[self.turns]
        return np.stack(turned, axis=1)
