"""SIGINT and SIGTERM to a training: noted as they come, acted on between two steps or two batches of an evaluation."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from time import monotonic
from types import FrameType
from typing import Any, TypeVar

from detectron2.utils import comm

_AGAIN = 1.0  # seconds; one request may arrive twice within them, by way of a launcher
_T = TypeVar("_T")


class Interrupted(Exception):
    """Training was asked to stop; the checkpoint is written."""


class CutOff(Exception):
    """What goes over batches was asked to stop before it was done."""


class StopRequest:
    """Whether this process was asked to stop, from :meth:`listen` on; a second request ends it at once."""

    def __init__(self) -> None:
        self._asked_at: float | None = None
        self._previous: dict[int, Any] = {}

    def listen(self) -> None:
        """Take over the signals."""
        self._asked_at = None
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self.ask)

    def release(self) -> None:
        """Give the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def anywhere(self) -> bool:
        """Whether any process was asked; to be called by all."""
        return any(comm.all_gather(self._asked_at is not None))

    def until(self, batches: Iterable[_T]) -> Iterator[_T]:
        """The batches, but none after a request; all processes learn of it once their own ones are through.

        Raises:
            CutOff: after the last batch, in all processes, as any of them was asked.
        """
        for batch in batches:
            yield batch
            if self._asked_at is not None:
                break
        if self._previous and self.anywhere():
            raise CutOff

    def ask(self, number: int, frame: FrameType | None) -> None:
        """Note a request, as the handler of a signal."""
        if self._asked_at is None:
            self._asked_at = monotonic()
        elif monotonic() - self._asked_at > _AGAIN:
            os.write(2, b"\nseg-ext: stopped at once; go on from the last checkpoint with --resume\n")
            os._exit(130)  # no clean-up, which may take long or wait for other processes


STOP = StopRequest()
"""Of this process, as signals are."""
