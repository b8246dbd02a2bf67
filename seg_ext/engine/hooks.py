"""Training hooks: progress bar or log lines, clean stop on a signal."""

from __future__ import annotations

import os
import signal
from shutil import get_terminal_size
from time import monotonic
from types import FrameType
from typing import Any

from detectron2.engine import HookBase
from detectron2.engine.hooks import EvalHook
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, get_event_storage
from tqdm import tqdm

from seg_ext.engine.resume import RunState


class Interrupted(Exception):
    """Training was asked to stop; the checkpoint is written."""


class ProgressBar(HookBase):
    """One line on the terminal: iterations, ETA, seconds per iteration, loss and learning rate."""

    def before_train(self) -> None:
        """Open the bar at the first iteration."""
        self._bar = tqdm(
            total=self.trainer.max_iter,
            initial=self.trainer.start_iter,
            desc="train",
            unit="it",
            ncols=get_terminal_size().columns,
            bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
        )

    def after_step(self) -> None:
        """Move on, with the medians of the last 20 iterations."""
        storage = self.trainer.storage
        latest = storage.latest_with_smoothing_hint(20)
        shown = {"loss": "total_loss", "lr": "lr", "s/iter": "time"}
        values = {name: f"{latest[key][0]:.3g}" for name, key in shown.items() if key in latest}
        self._bar.set_postfix(values, refresh=False)
        self._bar.update()

    def after_train(self) -> None:
        """Close the bar."""
        self._bar.close()


class LogLines(CommonMetricPrinter):
    """detectron2's lines of losses, ETA and learning rate, in place of a bar where there is no terminal."""

    def write(self) -> None:
        """Log, once an iteration is done."""
        if "total_loss" in get_event_storage().latest():
            super().write()


class Evaluation(EvalHook):
    """detectron2's hook; but a failure in the last iteration is not followed by an evaluation, where others wait."""

    def after_train(self) -> None:
        """Evaluate, once all iterations are done."""
        self._eval_after_train = self.trainer.iter >= self.trainer.max_iter
        super().after_train()


class StopOnSignal(HookBase):
    """SIGINT or SIGTERM ends training after the running iteration, with a checkpoint; a second one at once."""

    def __init__(self, state: RunState) -> None:
        self._state = state
        self._asked_at: float | None = None
        self._previous: dict[int, Any] = {}

    def before_train(self) -> None:
        """Take over the signals."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._ask)

    def after_step(self) -> None:
        """Stop, on all ranks at the same iteration."""
        if not any(comm.all_gather(self._asked_at is not None)):
            return
        name = f"model_{self.trainer.iter:07d}"
        self._state.save(name)
        raise Interrupted(f"stopped after iteration {self.trainer.iter + 1}, kept {name}.pth; go on with --resume")

    def after_train(self) -> None:
        """Give the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked_at is None:
            self._asked_at = monotonic()
        elif monotonic() - self._asked_at > 1:  # one request may arrive twice, by way of a launcher
            os.write(2, b"\nseg-ext: stopped at once; go on from the last checkpoint with --resume\n")
            os._exit(130)  # no clean-up, which may take long or wait for other processes
