"""Augmentations from outside, by the protocol of albumentations' Compose, moved with labels, boxes and masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import numpy as np
from detectron2.data import transforms as T
from fvcore.transforms.transform import Transform
from numpy.typing import NDArray

from seg_ext.errors import UserError

Array = NDArray[Any]

_INSIDE = np.float32(0.625)  # marks pixels of the source; no one pads masks with it


class AlbumentationsAdapter(T.Augmentation):
    """Any object that takes ``image``, ``mask`` and ``masks`` and returns a dict of them, such as a Compose.

    It is called once an image. Where each pixel of its result comes from is read off ``masks``, and labels, instances
    and targets are moved by that, always by the nearest pixel, padded with ``ignore``; ``mask`` is the label map, for
    those that look at it. Polygons become bitmasks. An object that has ``set_random_seed`` gets a seed from numpy's
    global generator first; another one has to draw from numpy's, Python's or torch's global generator.
    """

    def __init__(
        self,
        compose: str | Callable[..., Mapping[str, Any]],
        arguments: Mapping[str, Any] | None = None,
        *,
        ignore: int = 255,
    ) -> None:
        """Take the object, or make it.

        Args:
            compose: the object; or "package.module:function" of a function that returns it.
            arguments: of that function.
            ignore: of label pixels that come in from outside.

        Raises:
            ValueError: no such function, or it returns something that cannot be called.
        """
        super().__init__()
        self.compose = _made(compose, arguments or {}) if isinstance(compose, str) else compose
        if not callable(self.compose):
            raise ValueError(f"{compose} is a {type(self.compose).__name__}; it takes image, mask and masks")
        self.ignore = ignore

    def get_transform(self, image: Array, sem_seg: Array | None) -> PixelMap:
        """Call the object.

        Raises:
            UserError: it changed the type or the channels of the image, or left out a mask.
        """
        rows, columns = np.indices(image.shape[:2], np.float32)
        given: dict[str, Any] = {"image": np.ascontiguousarray(image)}
        given["masks"] = [rows, columns, np.full(image.shape[:2], _INSIDE, np.float32)]
        if sem_seg is not None:
            given["mask"] = sem_seg.astype(np.uint8 if sem_seg.max() < 256 else np.float32)
        if hasattr(self.compose, "set_random_seed"):
            self.compose.set_random_seed(int(np.random.randint(1 << 31)))
        result = self.compose(**given)
        moved, masks = np.asarray(result["image"]), [np.asarray(mask) for mask in result["masks"]]
        if moved.dtype != image.dtype or moved.ndim != 3 or moved.shape[2] != image.shape[2]:
            raise UserError(
                f"INPUT.AUGMENTATIONS: {type(self.compose).__name__} made {moved.dtype} {moved.shape} of an image of"
                f" {image.dtype} {image.shape}; type and channels must stay"
            )
        if [mask.shape for mask in masks] != [moved.shape[:2]] * 3:
            raise UserError(f"INPUT.AUGMENTATIONS: {type(self.compose).__name__} did not move the masks with the image")
        inside = masks[2] == _INSIDE
        at = [np.where(inside, mask, 0).astype(np.int64) for mask in masks[:2]]
        return PixelMap(moved, at[0], at[1], inside, ignore=self.ignore)


class PixelMap(Transform):
    """Every pixel of the result is a pixel of the input, or comes from outside; the image has been moved already."""

    def __init__(self, image: Array, rows: Array, columns: Array, inside: Array, *, ignore: int) -> None:
        """Set the result (h, w, C), and where in the input its pixels (h, w) come from, as far as inside."""
        super().__init__()
        self.image, self.rows, self.columns, self.inside, self.ignore = image, rows, columns, inside, ignore

    def apply_image(self, img: Array) -> Array:
        """(H, W, C) -> (h, w, C), of the image that the map was made with."""
        return self.image

    def apply_segmentation(self, segmentation: Array) -> Array:
        """(H, W) ids or bool -> (h, w) of the same type."""
        out: Array = segmentation[self.rows, self.columns]
        out[~self.inside] = False if segmentation.dtype == bool else self.ignore
        return out

    def apply_box(self, box: Array) -> Array:
        """(N, 4) x0, y0, x1, y1 -> (N, 4), tight around the pixels that the box touched; 0 where none is left."""
        moved = np.zeros((len(box), 4))
        x, y = self.columns, self.rows
        for out, (x0, y0, x1, y1) in zip(moved, box, strict=True):
            held = self.inside & (x > x0 - 1) & (x < x1) & (y > y0 - 1) & (y < y1)
            if held.any():
                down, across = np.flatnonzero(held.any(axis=1)), np.flatnonzero(held.any(axis=0))
                out[:] = across[0], down[0], across[-1] + 1, down[-1] + 1
        return moved

    def apply_coords(self, coords: Array) -> Array:
        """Points do not move by it.

        Raises:
            TypeError: always.
        """
        raise TypeError("a map of pixels moves no points; make masks of the polygons first")


def _made(path: str, arguments: Mapping[str, Any]) -> Any:
    module, _, name = path.partition(":")
    if not module or not name:
        raise ValueError(f"compose is {path!r}; it is package.module:function")
    try:
        factory = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"compose {path!r}: {error}") from error
    return factory(**arguments)
