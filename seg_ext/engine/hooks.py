"""Training hooks: progress bar or log lines, what is written when, time spent on data, clean stop on a signal."""

from __future__ import annotations

import logging
from collections.abc import Callable
from shutil import get_terminal_size
from typing import Any

from detectron2.engine import HookBase
from detectron2.engine.hooks import EvalHook, PeriodicWriter
from detectron2.utils.events import CommonMetricPrinter, get_event_storage
from tqdm import tqdm

from seg_ext.engine.interrupt import STOP, CutOff, Interrupted
from seg_ext.engine.resume import RunState

_logger = logging.getLogger(__name__)


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


class Writers(PeriodicWriter):
    """detectron2's hook, which writes after every evaluation too: of those between two periods it keeps the last."""

    def after_step(self) -> None:
        """Write, when it is time."""
        done, evaluation = self.trainer.iter + 1, self.trainer.evaluation
        regular = done % self._period == 0 or done == self.trainer.max_iter
        if not regular and evaluation and evaluation[0] == self.trainer.iter:
            for writer in self._writers:
                writer.write()
        super().after_step()


class DataTime(HookBase):
    """At the end says how long an iteration waited for its data, on the slowest process."""

    def after_train(self) -> None:
        """Log means over the iterations that were timed, which leaves out the first few."""
        histories = self.trainer.storage.histories()
        if "time" not in histories:
            return
        steps = dict((iteration, seconds) for seconds, iteration in histories["time"].values())
        waits = [seconds for seconds, iteration in histories["data_time"].values() if iteration in steps]
        step, wait = sum(steps.values()) / len(steps), sum(waits) / len(steps)
        _logger.info("an iteration took %.4f s, %.4f s of it waiting for data: %.1f %%", step, wait, 100 * wait / step)


class Evaluation(EvalHook):
    """detectron2's hook, which a signal cuts off; a failure in the last iteration is not followed by an evaluation."""

    def __init__(self, period: int, evaluate: Callable[[], Any], state: RunState) -> None:
        """Evaluate every ``period`` iterations and at the end; ``state`` keeps a run whose evaluation is cut off."""
        super().__init__(period, evaluate)
        self._state = state

    def after_train(self) -> None:
        """Evaluate, once all iterations are done, where others wait."""
        self._eval_after_train = self.trainer.iter >= self.trainer.max_iter
        super().after_train()

    def _do_eval(self) -> None:
        try:
            super()._do_eval()
        except CutOff:
            done = self.trainer.iter >= self.trainer.max_iter  # its checkpoint is there
            name = "model_final" if done else f"model_{self.trainer.iter:07d}"
            if not done:
                self._state.save(name, finished=False)
            raise Interrupted(f"stopped during an evaluation, kept {name}.pth; go on with it by --resume") from None


class StopOnSignal(HookBase):
    """SIGINT or SIGTERM ends training after the running iteration, with a checkpoint; a second one at once.

    The trainer gives the signals back.
    """

    def __init__(self, state: RunState) -> None:
        self._state = state

    def before_train(self) -> None:
        """Take over the signals."""
        STOP.listen()

    def after_step(self) -> None:
        """Stop, on all ranks at the same iteration."""
        if STOP.anywhere():
            name = f"model_{self.trainer.iter:07d}"
            self._state.save(name)
            raise Interrupted(f"stopped after iteration {self.trainer.iter + 1}, kept {name}.pth; go on with --resume")
