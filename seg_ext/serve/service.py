"""A model behind a bounded queue: the bytes of an image file in, its segmentation out, and refusals in one sentence."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import BoundedSemaphore, Lock
from typing import Any

import numpy as np
from detectron2.data.catalog import Metadata
from numpy.typing import NDArray

from seg_ext.data.files import is_tiff, tiff_images
from seg_ext.data.image_io import as_picture, image_size
from seg_ext.errors import UserError
from seg_ext.visualize import Scene, scene_from_output

_logger = logging.getLogger(__name__)
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
RETRY = 2  # seconds
_BANDS = 16  # that an image of the most pixels may have; a TIFF of few bytes may hold any number

Predict = Callable[[NDArray[Any]], Mapping[str, Any]]


class Refused(Exception):
    """A request that is not answered: the HTTP status and a sentence that names no file of this machine."""

    def __init__(self, status: int, message: str) -> None:
        """Hold both."""
        super().__init__(message)
        self.status, self.message = status, message


@dataclass(frozen=True)
class Limits:
    """What one request may cost, and how many may wait."""

    megabytes: float = 20.0
    megapixels: float = 25.0
    queue: int = 16
    seconds: float = 30.0  # to send the image in

    @property
    def bytes(self) -> int:
        """Of an upload."""
        return int(self.megabytes * 1e6)


@dataclass(frozen=True)
class Segmented:
    """A picture (H, W, 3), what the model found in it, and where it was unsure: (H, W) in [0, 1] or None."""

    picture: NDArray[np.uint8]
    scene: Scene
    uncertainty: NDArray[np.float32] | None


class Service:
    """Answers one image at a time; ``limits.queue`` more may wait, and the next are refused at once.

    Attributes:
        metadata: class names and colours.
        tasks: what the model gives.
        limits: of a request.
    """

    def __init__(
        self,
        predict: Predict,
        *,
        read: Callable[[Path], NDArray[Any]],
        metadata: Metadata,
        tasks: tuple[str, ...],
        image_format: str = "BANDS",
        flipped: Predict | None = None,
        limits: Limits | None = None,
    ) -> None:
        """Hold the model.

        Args:
            predict: from (H, W, C) to a model's output.
            read: a file to (H, W, C); raises UserError.
            metadata: class names and colours.
            tasks: of "semantic", "instance" and "panoptic".
            image_format: that ``read`` gives.
            flipped: as ``predict``, with test-time augmentation; None where the model takes none.
            limits: of a request; None for the defaults.
        """
        self._predict, self._flipped, self._read, self._format = predict, flipped, read, image_format
        self.metadata, self.tasks, self.limits = metadata, tasks, limits or Limits()
        self._slots = BoundedSemaphore(self.limits.queue + 1)
        self._lock = Lock()
        self._decoding = Lock()  # one at a time: a file of few bytes may hold many pixels

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """A place in the queue, while the block runs.

        Raises:
            Refused: there is none.
        """
        if not self._slots.acquire(blocking=False):
            raise Refused(503, f"{self.limits.queue} images are waiting already; try again in {RETRY} seconds.")
        try:
            yield
        finally:
            self._slots.release()

    def segment(
        self, content: bytes, *, threshold: float = 0.5, tta: bool = False, uncertainty: bool = False
    ) -> Segmented:
        """Segment one image; call it with a place in the queue.

        Args:
            content: of an image file.
            threshold: score below which instances are left out.
            tta: average over the image and its mirror image.
            uncertainty: give the entropy of the semantic probabilities, 1 where all classes are as likely.

        Raises:
            Refused: the image is too large or cannot be read, or the model does not take it, or fails.
        """
        if len(content) > self.limits.bytes:
            raise too_large(self.limits)
        if uncertainty and "semantic" not in self.tasks:
            raise Refused(422, "Uncertainty is of semantic models, and this one gives instances alone.")
        predict = self._flipped if tta else self._predict
        if predict is None:
            raise Refused(422, "This model takes no mirror images (TTA).")
        image = self._decoded(content)
        try:
            with self._lock:
                output = predict(image)
        except UserError as error:
            raise Refused(422, f"The model does not take this image: {error.line}.") from error
        except Exception as error:
            _logger.exception("an image of %s failed", image.shape)
            raise Refused(500, "The model failed on this image.") from error
        if uncertainty and "sem_seg" not in output:
            raise Refused(422, "Uncertainty is of scores, and this model gives labels alone.")
        entropy = _entropy(output) if uncertainty else None
        return Segmented(as_picture(image, self._format), scene_from_output(output, min_score=threshold), entropy)

    def _decoded(self, content: bytes) -> NDArray[Any]:
        """The image as the model's own loader reads it, which takes a file: a private one, gone afterwards."""
        with TemporaryDirectory(prefix="seg-ext-") as folder:
            file = Path(folder) / ("image.tif" if content.startswith(_TIFF) else "image")
            file.write_bytes(content)
            most = self.limits.megapixels
            try:
                with self._decoding:
                    height, width = image_size(file)
                    if height * width > 1e6 * most:
                        raise Refused(413, f"The image has {width}x{height} pixels; {most:g} million are the limit.")
                    pages, bands = tiff_images(file) if is_tiff(file) else ([0], 1)
                    if height * width * len(pages) * bands > 1e6 * most * _BANDS:
                        size = f"{len(pages) * bands} bands of {width}x{height} pixels"
                        raise Refused(413, f"The image has {size}, which is too many.")
                    return self._read(file)
            except UserError as error:
                raise Refused(415, error.line.replace(str(file), "The image") + ".") from error
            except Refused:
                raise
            except Exception as error:  # a decoder raises whatever the bytes lead it to
                _logger.warning("an upload cannot be read: %s", type(error).__name__)
                raise Refused(415, "This is no image that can be read.") from error


def too_large(limits: Limits) -> Refused:
    """Of an upload."""
    return Refused(413, f"The file is too large; {limits.megabytes:g} MB are the limit.")


def _entropy(output: Mapping[str, Any]) -> NDArray[np.float32]:
    log = output["sem_seg"].float().log_softmax(0)
    entropy: NDArray[np.float32] = (-(log.exp() * log).sum(0) / math.log(len(log))).clamp(0, 1).cpu().numpy()
    return entropy
