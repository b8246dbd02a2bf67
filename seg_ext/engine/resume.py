"""Exact resume: what of a run lies outside its model and optimizer, of every process, kept in its checkpoints."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.engine import HookBase
from detectron2.engine.hooks import PeriodicWriter
from detectron2.utils import comm
from detectron2.utils.events import JSONWriter, TensorboardXWriter

from seg_ext.checkpoint import Checkpointer
from seg_ext.data.stream import TrainLoader
from seg_ext.engine.finite import set_torch_rng_state, torch_rng_state

_WINDOW = 20  # iterations that writers smooth over
_TIMES = ("time", "data_time", "rank_data_time", "eta_seconds")  # of this machine, at this hour
_logger = logging.getLogger(__name__)


def rng_state() -> dict[str, Any]:
    """Python's, numpy's and torch's global generators, of the CPU and of this process's GPU: tensors and numbers."""
    version, words, gauss = random.getstate()
    _, key, *rest = np.random.get_state(legacy=True)
    return {
        "python": [version, torch.tensor(words), gauss],
        "numpy": [torch.from_numpy(np.asarray(key).astype(np.int64)), *rest],
        **torch_rng_state(),
    }


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Put the generators where :func:`rng_state` saw them; a GPU's only where there is one."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    key, position, has_gauss, cached = state["numpy"]
    np.random.set_state(("MT19937", key.numpy().astype(np.uint32), position, has_gauss, cached))
    set_torch_rng_state(state)


@contextmanager
def unchanged_rng() -> Iterator[None]:
    """Whatever is drawn within, the global generators go on as if it had not been."""
    state = rng_state()
    try:
        yield
    finally:
        set_rng_state(state)


class RunState(HookBase):
    """Places in the data streams, random generators and recent metrics; the last hook, so that a run goes on from them.

    In checkpoints it is under "trainer", "hooks", "RunState".
    """

    def __init__(self, checkpointer: Checkpointer, loader: TrainLoader, *, seed: int) -> None:
        self._checkpointer, self._loader, self._seed = checkpointer, loader, seed
        self._ranks: list[dict[str, Any]] = []
        self._finished = True  # all hooks have had the iteration
        self._loaded: Mapping[str, Any] | None = None

    def save(self, name: str, *, finished: bool = True) -> None:
        """Write a checkpoint from which the run goes on exactly; to be called by all processes.

        Args:
            name: of the file, without its suffix.
            finished: whether the hooks after :class:`Checkpoints` ahead of them had this iteration; else they get it
                when the run goes on.
        """
        self._ranks, self._finished = comm.gather(self._own()), finished
        try:
            self._checkpointer.save(name, iteration=self.trainer.iter, metrics=self._scores())
        finally:
            self._ranks, self._finished = [], True

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and containers. Outside :meth:`save`, of this process alone."""
        storage = getattr(self.trainer, "storage", None)
        metrics = storage.histories() if storage else {}
        metrics = {name: history for name, history in metrics.items() if name not in _TIMES}
        return {
            "seed": self._seed,
            "ranks": self._ranks or [self._own()],
            "finished": self._finished,
            "metrics": {name: [list(x) for x in history.values()[-_WINDOW:]] for name, history in metrics.items()},
            "smooth": dict(storage.smoothing_hints()) if storage else {},
            "written": max((writer.last_write for writer in self._files()), default=-1),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Keep it until the training begins."""
        self._loaded = state

    def before_train(self) -> None:
        """Go on from a checkpoint, if one was loaded; else put the numbers of an earlier run aside."""
        if not self.trainer.start_iter:
            for writer in self._files():
                if isinstance(writer, MetricsFile):
                    writer.put_aside()
            return
        state = self._loaded or {"ranks": [], "metrics": {}, "finished": True, "written": self.trainer.start_iter - 1}
        if state.get("seed", self._seed) != self._seed:
            _logger.warning("SEED is %d, the checkpoint's %d: other samples from here on", self._seed, state["seed"])
        self._go_on(state["ranks"])
        for name, values in state["metrics"].items():
            for value, iteration in values:
                self.trainer.storage.put_scalar(name, value, smoothing_hint=state["smooth"][name], cur_iter=iteration)
        for writer in self._files():
            writer.go_on(state["written"])
        if not state["finished"]:
            self._finish_iteration()

    def _scores(self) -> dict[str, Any] | None:
        """Those of the last evaluation, for the checkpoint's sidecar."""
        evaluation = getattr(self.trainer, "evaluation", None)
        return {"iteration": evaluation[0] + 1, "scores": evaluation[1]} if evaluation else None

    def _own(self) -> dict[str, Any]:
        return {"stream": self._loader.state_dict(), "rng": rng_state()}

    def _go_on(self, ranks: list[dict[str, Any]]) -> None:
        """Take this process's place in the stream; without one, that of which nothing was seen."""
        if len(ranks) == comm.get_world_size():
            own = ranks[comm.get_rank()]
            self._loader.load_state_dict(own["stream"])
            set_rng_state(own["rng"])
            return
        seen = self.trainer.start_iter * self._loader.batch_size
        position = max([state["stream"]["position"] for state in ranks], default=seen)
        self._loader.load_state_dict({"position": position, "pending": [], "skipped": {}})
        _logger.warning(
            "the checkpoint has the stream positions of %d processes and there are %d: going on from position %d,"
            " not exactly as it would have been",
            *(len(ranks), comm.get_world_size(), position),
        )

    def _finish_iteration(self) -> None:
        """Hand the last iteration to the hooks that have not had it."""
        hooks, trainer = self.trainer._hooks, self.trainer
        ahead = next(i for i, hook in enumerate(hooks) if isinstance(hook, Checkpoints))
        trainer.iter = trainer.storage.iter = trainer.start_iter - 1
        for hook in hooks[ahead + 1 :]:
            hook.after_step()
        trainer.iter = trainer.storage.iter = trainer.start_iter

    def _files(self) -> list[Any]:
        writers = [
            writer for hook in self.trainer._hooks if isinstance(hook, PeriodicWriter) for writer in hook._writers
        ]
        return [writer for writer in writers if hasattr(writer, "go_on")]


class Checkpoints(HookBase):
    """model_0000123 every ``period`` iterations, model_final after the last.

    One is ahead of the evaluation, so that an evaluation which fails costs no training; one is after it, for its
    results.
    """

    def __init__(self, state: RunState, period: int, *, ahead_of: int | None = None) -> None:
        """Save through ``state``.

        Args:
            state: of the run.
            period: iterations; 0 for the last alone.
            ahead_of: period of the evaluation that this is ahead of: save only when one comes.
        """
        self._state, self._period, self._ahead_of = state, period, ahead_of

    def after_step(self) -> None:
        """Save, when it is time."""
        done = self.trainer.iter + 1
        last, ahead = done >= self.trainer.max_iter, self._ahead_of is not None
        if ahead and (last or not self._ahead_of or done % self._ahead_of):
            return
        if self._period > 0 and done % self._period == 0:
            self._state.save(f"model_{self.trainer.iter:07d}", finished=not ahead)
        if last:
            self._state.save("model_final")


class MetricsFile(JSONWriter):
    """metrics.json of a run that may go on: each line once."""

    def __init__(self, file: str | Path) -> None:
        super().__init__(str(file), window_size=_WINDOW)
        self._file_handle: Any
        self._file = Path(file)

    @property
    def last_write(self) -> int:
        """Last iteration that was written."""
        return self._last_write

    def put_aside(self) -> None:
        """Leave the lines of an earlier run in the folder to a file of their own: metrics_1.json or the next number."""
        if not self._file.stat().st_size:
            return
        self._file_handle.close()
        names = (self._file.with_stem(f"{self._file.stem}_{number}") for number in count(1))
        self._file.rename(next(name for name in names if not name.exists()))
        self._file_handle = self._file.open("a")

    def go_on(self, last_write: int) -> None:
        """Cut what was written after that iteration, and half lines."""
        self._file_handle.close()
        kept = [line for line in self._file.read_text().splitlines() if _iteration(line) <= last_write]
        partial = self._file.with_name(f"{self._file.name}.partial")
        partial.write_text("".join(f"{line}\n" for line in kept))
        partial.replace(self._file)
        self._file_handle, self._last_write = self._file.open("a"), last_write


class EventsFile(TensorboardXWriter):
    """TensorBoard's events of a run that may go on: those after the checkpoint are hidden."""

    @property
    def last_write(self) -> int:
        """Last iteration that was written."""
        return self._last_write

    def go_on(self, last_write: int) -> None:
        """Hide what was written after that iteration."""
        self._last_write = last_write
        self._writer_args["purge_step"] = last_write + 1


def _iteration(line: str) -> float:
    """Of a line of metrics.json; infinity for what is none."""
    try:
        return json.loads(line)["iteration"]
    except (ValueError, KeyError, TypeError):
        return float("inf")
