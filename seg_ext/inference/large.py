"""Images of any size in bounded memory: windows read, predicted, blended and written band by band, resumable."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seg_ext.errors import UserError
from seg_ext.inference.contract import UNFUSED, Predict, dense_maps
from seg_ext.inference.windows import Axis, check_windows, lay_windows

Array = NDArray[Any]
Read = Callable[[int, int, int, int], Array]  # top, left, height, width -> (height, width, C)
Write = Callable[[int, int, Array], None]  # top, left, (h, w) labels or (K, h, w) probabilities
OUTPUTS = ("labels", "probabilities")


class Panel(NamedTuple):
    """Columns that are predicted together, from the image's top to its bottom: as many as fit in memory.

    Attributes:
        left: first column.
        right: one after the last.
        windows: numbers of the windows, along the columns, that see one of them.
    """

    left: int
    right: int
    windows: range


class LargeImage:
    """Predicts an image that need not fit in memory: of each pixel what sliding windows over the whole would say.

    Windows go band by band; what no further window sees is written. After each band a manifest tells how far that is,
    so that another run, of the same arguments, goes on from there and gives the very same pixels.
    """

    def __init__(
        self,
        predict: Predict,
        size: Sequence[int],
        *,
        read: Read,
        window: Sequence[int] = (512, 512),
        overlap: float = 1 / 3,
        blend: str = "hann",
        batch: int = 1,
        output: str = "labels",
        memory: int = 1 << 29,
    ) -> None:
        """Lay the windows and learn the number of classes, of the first of them.

        Args:
            predict: a semantic one: the model, or what wraps it.
            size: height and width of the image.
            read: gives a part of the image, as INPUT.FORMAT says; it is not resized.
            window: height and width of windows, pixels.
            overlap: see :func:`seg_ext.inference.windows.lay_windows`.
            blend: likewise.
            batch: windows that ``predict`` gets at once.
            output: "labels", uint8 or with more than 256 classes uint16, or "probabilities", float32.
            memory: bytes for the probabilities of a band, of as many columns as these allow; one window at least.

        Raises:
            UserError: a value outside its range, or a model that gives no ``sem_seg``.
        """
        height, width = check_windows(window, overlap, blend, key="window")
        if output not in OUTPUTS:
            raise UserError(f"output {output!r}: takes {' or '.join(OUTPUTS)}")
        self._predict, self._read, self._batch, self._output = predict, read, max(1, batch), output
        self._logs = blend == "scores"
        self._rows = lay_windows(size[0], height, overlap=overlap, blend=blend)
        self._columns = lay_windows(size[1], width, overlap=overlap, blend=blend)
        self.classes = len(next(self._windows(0, range(1)))[1])
        self.dtype = np.dtype(np.float32 if output != "labels" else np.uint8 if self.classes <= 256 else np.uint16)
        self.shape = tuple(size) if output == "labels" else (self.classes, *size)
        self._panels = _lay_panels(self._columns, max(1, memory // (4 * self.classes * height)))
        self.bands = len(self._panels) * len(self._rows.starts)
        self._about = {"size": list(size), "window": [height, width], "overlap": overlap, "blend": blend}
        self._about |= {"output": output, "classes": self.classes, "memory": memory}

    def run(
        self,
        write: Write,
        *,
        manifest: Path | None = None,
        about: Mapping[str, Any] | None = None,
        flush: Callable[[], None] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Predict all that is not yet done.

        Args:
            write: takes each part once, or again after a crash.
            manifest: file that tells what is done; None to keep none.
            about: what else must be the same to go on, such as the names of weights and image; JSON's types.
            flush: has what was written on disk, before the manifest says so.
            progress: called with the number of bands done, and of all.

        Raises:
            UserError: the manifest is of other arguments, or cannot be read or written.
        """
        about = self.about(about or {})
        done = 0 if manifest is None else read_manifest(manifest, about)
        with torch.no_grad():
            for number, (top, left, part) in enumerate(self._parts(done), start=done + 1):
                write(top, left, part)
                if manifest is not None:
                    if flush is not None:
                        flush()
                    _write_manifest(manifest, about | {"done": number})
                if progress is not None:
                    progress(number, self.bands)

    def about(self, more: Mapping[str, Any]) -> dict[str, Any]:
        """What a manifest says of a run beside the bands that are done."""
        told: dict[str, Any] = json.loads(json.dumps({**self._about, **more}))
        return told

    def _parts(self, done: int) -> Iterator[tuple[int, int, Array]]:
        """Top, left and pixels of each band of each panel but the first ``done``."""
        rows, count = self._rows, len(self._rows.starts)
        tops = [max(start, 0) for start in rows.starts] + [rows.length]
        for number, panel in enumerate(self._panels):
            first = min(max(done - number * count, 0), count)
            if first == count:
                continue
            total = torch.zeros(self.classes, rows.size, panel.right - panel.left)
            for band in range(first):  # what earlier bands add to those to come
                if tops[band] + rows.size > tops[first]:
                    self._add_band(total, tops[first], band, panel)
            for band in range(first, count):
                self._add_band(total, tops[band], band, panel)
                height = tops[band + 1] - tops[band]
                yield tops[band], panel.left, self._result(total[:, :height])
                total[:, : -height or None] = total[:, height:].clone()
                total[:, rows.size - height :] = 0

    def _add_band(self, total: Tensor, top: int, band: int, panel: Panel) -> None:
        """Add the windows of a band to means (K, h, w) of a panel that begin at row ``top``."""
        image_rows, inner_rows = self._rows.inside(band)
        skipped = max(top - image_rows.start, 0)
        first = image_rows.start + skipped - top
        for index, part in self._windows(band, panel.windows):
            image, inner = self._columns.inside(index)
            left, right = max(image.start, panel.left), min(image.stop, panel.right)
            columns = slice(inner.start + left - image.start, inner.start + right - image.start)
            rows = slice(inner_rows.start + skipped, inner_rows.stop)
            weights = self._rows.weights[band, rows, None] * self._columns.weights[index, columns]
            target = total[:, first : first + rows.stop - rows.start, left - panel.left : right - panel.left]
            target.addcmul_(part[:, rows, columns], weights)

    def _windows(self, band: int, windows: range) -> Iterator[tuple[int, Tensor]]:
        """Number and probabilities (K, h, w), or logs of them, of the windows of a band, on the CPU."""
        for start in range(0, len(windows), self._batch):
            chosen = windows[start : start + self._batch]
            inputs = [
                {"image": self._image(band, i), "height": self._rows.size, "width": self._columns.size} for i in chosen
            ]
            with torch.no_grad():
                outputs = self._predict([x | UNFUSED for x in inputs])
            for index, output in zip(chosen, outputs, strict=True):
                if "sem_seg" not in output:
                    raise UserError(f"the model gives {sorted(output)}; large images are for those that give sem_seg")
                yield index, dense_maps({"sem_seg": output["sem_seg"]}, logs=self._logs)["sem_seg"].cpu()

    def _image(self, band: int, column: int) -> Tensor:
        """(C, h, w) of a window, mirrored beyond the image."""
        (rows, _), (columns, _) = self._rows.inside(band), self._columns.inside(column)
        pixels = self._read(rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start)
        y, x = self._rows.places(band) - rows.start, self._columns.places(column) - columns.start
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))[:, y[:, None], x]

    def _result(self, means: Tensor) -> Array:
        if self._output == "labels":
            return means.max(0).indices.numpy().astype(self.dtype)
        return means.softmax(0).numpy() if self._logs else means.numpy().copy()


def _lay_panels(columns: Axis, most: int) -> list[Panel]:
    """Panels of at most ``most`` columns, where those between two windows' starts are no more."""
    lefts = [max(start, 0) for start in columns.starts] + [columns.length]
    panels, first = [], 0
    while first < len(lefts) - 1:
        last = first + 1
        while last < len(lefts) - 1 and lefts[last + 1] - lefts[first] <= most:
            last += 1
        seen = next(i for i, start in enumerate(columns.starts) if start + columns.size > lefts[first])
        panels.append(Panel(lefts[first], lefts[last], range(seen, last)))
        first = last
    return panels


def read_manifest(path: Path, about: Mapping[str, Any]) -> int:
    """Bands that are done; 0 without a manifest.

    Raises:
        UserError: it cannot be read, or was written with something else than ``about``.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        done = int(found.pop("done"))
    except FileNotFoundError:
        return 0
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{path}: no manifest of an unfinished prediction; remove it to begin anew") from error
    other = [key for key in {**found, **about} if found.get(key) != about.get(key)]
    if other:
        key = other[0]
        raise UserError(f"{path}: begun with {key} {found.get(key)!r}, not {about.get(key)!r}; remove it to begin anew")
    return done


def _write_manifest(path: Path, content: Mapping[str, Any]) -> None:
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error
