"""Runs an exported ONNX file with NumPy and ONNX Runtime alone, and gives the labels that ``seg-ext predict`` gives."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

Array = NDArray[Any]

KEY = "seg_ext"  # of the description among the file's metadata
VERSION = 1
_STRIP = 2**23  # scores that are resized at once


class Segmenter:
    """``Segmenter("model.onnx")(image)`` gives the label map (H, W) of an image (H, W, C).

    Attributes:
        classes: their names, by label.
        colors: an RGB a class, or None.
        channels: order of the image's: "RGB", "BGR", "L" or "BANDS".
        description: all that the file says of itself.
    """

    def __init__(
        self, file: str | Path, *, threads: int = 0, providers: Sequence[str] = ("CPUExecutionProvider",)
    ) -> None:
        """Open a file.

        Args:
            file: of ``seg-ext export --format onnx``.
            threads: of one operation; 0 for one a core.
            providers: of ONNX Runtime, in order of preference.

        Raises:
            ValueError: no ONNX file, or one that is not seg_ext's.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        if not Path(file).is_file():
            raise ValueError(f"{file}: no such file; takes what `seg-ext export --format onnx` wrote")
        try:
            self._session = onnxruntime.InferenceSession(str(file), options, providers=list(providers))
        except Exception as error:  # onnxruntime's own have no common type
            raise ValueError(
                f"{file}: not an ONNX file that onnxruntime reads: {str(error).splitlines()[0]}"
            ) from error
        text = self._session.get_modelmeta().custom_metadata_map.get(KEY)
        if text is None:
            raise ValueError(f"{file}: says nothing of its input and classes; takes what `seg-ext export` wrote")
        self.description: dict[str, Any] = json.loads(text)
        if self.description["version"] != VERSION or self.description["task"] != "semantic":
            raise ValueError(f"{file}: a description of a later seg_ext, or not of a semantic model")
        self._input, self._output = self.description["input"], self.description["outputs"][0]["name"]
        self.classes: list[str] = self.description["classes"]
        self.colors: list[list[int]] | None = self.description["colors"]
        self.channels: str = self._input["channels"]

    def __call__(self, image: Array | str | Path) -> NDArray[np.int64]:
        """Label an image.

        Args:
            image: a file, or (H, W, C) uint8 or float32 of the file's ``channels``, values as in an 8-bit image.

        Returns:
            (H, W) labels.

        Raises:
            ValueError: another shape or type, or a file that cannot be read.
        """
        pixels = self._pixels(image)
        result = self._run(pixels)
        if self._output == "labels":
            return _nearest(result, pixels.shape[:2])
        return _labels(result, pixels.shape[:2])

    def scores(self, image: Array | str | Path) -> NDArray[np.float32]:
        """(K, H, W), whose softmax is the probability.

        Raises:
            ValueError: as a call, and for a file that gives labels.
        """
        if self._output == "labels":
            raise ValueError("the file gives labels; export without --labels for scores")
        pixels = self._pixels(image)
        return _linear(_linear(self._run(pixels), pixels.shape[0], 1), pixels.shape[1], 2).astype(np.float32)

    def read(self, file: str | Path) -> NDArray[np.uint8]:
        """(H, W, C) of an 8-bit image file, upright, in the file's channels; needs Pillow, or is ``.npy``.

        Raises:
            ValueError: no image of 8 bits, or one whose bands have to be given as an array.
        """
        if str(file).endswith(".npy"):
            try:
                loaded: NDArray[np.uint8] = np.load(file, allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                raise ValueError(f"{file}: cannot be read as an array: {error}") from error
            return loaded
        from PIL import Image, ImageOps

        mode = {"RGB": "RGB", "BGR": "RGB", "L": "L"}.get(self.channels)
        if mode is None:
            raise ValueError(f"{file}: a model of bands takes arrays (H, W, {len(self._input['mean'])})")
        try:
            with Image.open(file) as opened:
                if opened.mode.startswith(("I", "F")) or ";16" in str(opened.tile):
                    raise ValueError(f"{file}: more than 8 bits a pixel; give a float32 array of values from 0 to 255")
                pixels = np.asarray(ImageOps.exif_transpose(opened).convert(mode))
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(f"{file}: cannot be read as an image: {error}") from error
        return pixels[..., ::-1] if self.channels == "BGR" else pixels.reshape(*pixels.shape[:2], -1)

    def _pixels(self, image: Array | str | Path) -> Array:
        pixels = image if isinstance(image, np.ndarray) else self.read(image)
        channels = len(self._input["mean"])
        if pixels.ndim != 3 or pixels.shape[2] != channels or not pixels.size:
            raise ValueError(f"an image of shape {pixels.shape}; takes (H, W, {channels}), {self.channels}")
        if pixels.dtype not in (np.uint8, np.float32):
            raise ValueError(f"an image of {pixels.dtype}; takes uint8, or float32 of the same range")
        return pixels

    def _run(self, pixels: Array) -> Array:
        """The file's output for one image, resized as the file says."""
        for step in self._input["resize"]:
            pixels = _resized(pixels, step["size"] if "size" in step else _shortest(pixels.shape, step))
        if self._input["inside"]:
            if pixels.dtype != np.uint8:
                raise ValueError("the file takes uint8; export without --with-preprocessing for float32 images")
            batch = pixels[None]
        else:
            mean, std = (np.array(self._input[key], np.float32) for key in ("mean", "std"))
            batch = ((pixels.astype(np.float32) - mean) / std).transpose(2, 0, 1)[None]
        name = self._session.get_inputs()[0].name
        found: Array = self._session.run([self._output], {name: np.ascontiguousarray(batch)})[0][0]
        return found


def _shortest(shape: Sequence[int], step: dict[str, int]) -> list[int]:
    """Height and width with the shorter side at ``shortest``, unless the longer one would pass ``longest``."""
    height, width = shape[:2]
    scale = step["shortest"] / min(height, width)
    sides = [side * scale if side > min(height, width) else float(step["shortest"]) for side in (height, width)]
    factor = min(1.0, step["longest"] / max(sides))
    return [max(1, int(side * factor + 0.5)) for side in sides]


def _resized(pixels: Array, size: Sequence[int]) -> Array:
    """Bilinear, with a wider filter where an image shrinks; uint8 is rounded as Pillow and OpenCV do."""
    if list(pixels.shape[:2]) == list(size):
        return pixels
    if all(new >= old for new, old in zip(size, pixels.shape, strict=False)):
        return _enlarged(pixels, size) if pixels.dtype == np.uint8 else _linear(_linear(pixels, size[0], 0), size[1], 1)
    across = _rounded(_filtered(pixels, size[1], 1), pixels.dtype)
    return _rounded(_filtered(across, size[0], 0), pixels.dtype)


def _enlarged(pixels: NDArray[np.uint8], size: Sequence[int]) -> NDArray[np.uint8]:
    """Bilinear in OpenCV's fixed point: weights of 11 bits, sums cut to 16 bits before the last rounding."""
    (top, bottom, down), (left, right, along) = (
        _places(old, new) for old, new in zip(pixels.shape, size, strict=False)
    )
    first, second = (np.rint(share * 2**11).astype(np.int32)[:, None] for share in (1 - along, along))
    across = (pixels.take(left, 1) * first + pixels.take(right, 1) * second) >> 4
    first, second = (np.rint(share * 2**11).astype(np.int32)[:, None, None] for share in (1 - down, down))
    total = (across.take(top, 0) * first >> 16) + (across.take(bottom, 0) * second >> 16)
    return (total + 2 >> 2).clip(0, 255).astype(np.uint8)


def _places(old: int, new: int) -> tuple[Array, Array, NDArray[np.float32]]:
    """The cells before and after the centre of each new one, and the share of the one after."""
    place = ((np.arange(new) + 0.5) * (old / new) - 0.5).clip(0, old - 1)
    low = place.astype(np.int64)
    return low, np.minimum(low + 1, old - 1), (place - low).astype(np.float32)


def _rounded(values: Array, dtype: np.dtype[Any]) -> Array:
    return np.floor(values + 0.5).clip(0, 255).astype(np.uint8) if dtype == np.uint8 else values.astype(dtype)


def _linear(values: Array, size: int, axis: int) -> Array:
    """Between the two nearest cells, whose centres lie on half-integers."""
    if values.shape[axis] == size:
        return values
    place = np.maximum((np.arange(size) + 0.5) * (values.shape[axis] / size) - 0.5, 0)
    return _between(values, place, axis)


def _between(values: Array, place: Array, axis: int) -> Array:
    low = np.minimum(place.astype(np.int64), values.shape[axis] - 1)
    high = np.minimum(low + 1, values.shape[axis] - 1)
    share = (place - low).astype(np.float32).reshape([-1 if i == axis else 1 for i in range(values.ndim)])
    return values.take(low, axis) * (1 - share) + values.take(high, axis) * share


def _filtered(values: Array, size: int, axis: int) -> Array:
    """A triangle as wide as the step from one new cell to the next, and no narrower than two old ones."""
    count = values.shape[axis]
    scale = count / size
    reach = max(scale, 1.0)
    centre = (np.arange(size) + 0.5) * scale
    first = np.maximum((centre - reach + 0.5).astype(np.int64), 0)
    taps = first[:, None] + np.arange(int(np.ceil(reach)) * 2 + 1)
    inside = taps < np.minimum((centre + reach + 0.5).astype(np.int64), count)[:, None]
    weight = np.maximum(1 - np.abs((taps + 0.5 - centre[:, None]) / reach), 0) * inside
    weight /= weight.sum(1, keepdims=True)
    total: Any = 0.0
    shape = [-1 if i == axis else 1 for i in range(values.ndim)]
    for tap in range(taps.shape[1]):
        total = total + values.take(taps[:, tap].clip(0, count - 1), axis) * weight[:, tap].reshape(shape)
    return np.asarray(total)


def _labels(scores: Array, size: Sequence[int]) -> NDArray[np.int64]:
    """The greatest of (K, h, w) scores resized to (H, W), in strips of rows."""
    height, width = size
    if scores.shape[1:] == (height, width):
        return scores.argmax(0)
    wide = _linear(scores, width, 2)
    place = np.maximum((np.arange(height) + 0.5) * (scores.shape[1] / height) - 0.5, 0)
    rows = max(1, _STRIP // (scores.shape[0] * width))
    strips = [_between(wide, place[y : y + rows], 1).argmax(0) for y in range(0, height, rows)]
    return np.concatenate(strips)


def _nearest(labels: Array, size: Sequence[int]) -> NDArray[np.int64]:
    rows, columns = ((2 * np.arange(new) + 1) * old // (2 * new) for new, old in zip(size, labels.shape, strict=True))
    return labels[rows[:, None], columns].astype(np.int64)


def main(arguments: Sequence[str]) -> int:
    """``python -m seg_ext.runtime MODEL.onnx IMAGE LABELS.npy``: for a machine that has no more than this needs."""
    if len(arguments) != 3:
        print("usage: python -m seg_ext.runtime MODEL.onnx IMAGE LABELS.npy", file=sys.stderr)
        return 2
    partial = Path(f"{arguments[2]}.partial")
    try:
        labels = Segmenter(arguments[0])(arguments[1])
        with partial.open("wb") as stream:
            np.save(stream, labels)
        partial.replace(arguments[2])
    except (ValueError, OSError) as error:
        partial.unlink(missing_ok=True)
        print(f"seg_ext.runtime: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
