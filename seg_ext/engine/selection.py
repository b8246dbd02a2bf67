"""The best of a run's evaluations on one score: its checkpoint, and the end of a run that gets no better."""

from __future__ import annotations

import difflib
import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm

from seg_ext.errors import UserError

logger = logging.getLogger(__name__)
_SMALL_IS_GOOD = ("loss", "error", "ece", "aurc", "brier", "nll", "distance", "hd95", "hausdorff")


class StoppedEarly(BaseException):
    """Training has got no better; no ``Exception``, which detectron2's loop logs as a failure."""


class Selection(HookBase):
    """Keeps the checkpoint of the best evaluation as ``model_best.pth``; ends training that gets no better.

    It follows the hook that evaluates, and reads ``trainer.evaluation``: (iteration, results) of the last one, of which
    the main process's results count.

    Attributes:
        best: the best score, None before the first.
        iteration: after which it was reached.
        waited: evaluations without one that was better by more than the least step that counts.
    """

    def __init__(
        self,
        save: Callable[[str], None],
        metric: str,
        *,
        mode: str = "",
        patience: int = 0,
        min_delta: float = 0.0,
    ) -> None:
        """Set what counts.

        Args:
            save: writes a checkpoint of that name, for ``trainer.iter``; called by all processes.
            metric: "task/score" as in metrics.json.
            mode: "max", "min", or empty for "min" where the name is that of a loss, an error or a distance.
            patience: evaluations without a better score that end the training; 0 for none.
            min_delta: for the patience a score that is better by no more than this is no better.

        Raises:
            UserError: a value outside its range.
        """
        if mode not in ("", "max", "min"):
            raise UserError(f"TEST.BEST_MODE {mode!r}: takes max, min, or nothing")
        if patience < 0:
            raise UserError(f"TEST.EARLY_STOP.PATIENCE {patience}: takes a number of evaluations, 0 for no stop")
        if not 0 <= min_delta < math.inf:
            raise UserError(f"TEST.EARLY_STOP.MIN_DELTA {min_delta}: takes a number >= 0")
        self._least = _small_is_good(metric) if not mode else mode == "min"
        self._write, self._metric, self._patience, self._min_delta = save, metric, patience, min_delta
        self.best: float | None = None
        self.iteration, self.waited = -1, 0
        self._mark: float | None = None  # the score that the patience is measured from
        self._seen = -1

    def after_step(self) -> None:
        """Take in an evaluation of this iteration.

        Raises:
            UserError: the score is not among its results; there is a checkpoint to go on from.
            StoppedEarly: the patience is spent; ``model_final.pth`` is written.
        """
        evaluation = self.trainer.evaluation
        if evaluation is None or evaluation[0] <= self._seen:
            return
        self._seen = iteration = evaluation[0]
        score, line = comm.all_gather(self._find(evaluation[1]) if comm.is_main_process() else (math.nan, ""))[0]
        if line:
            self._save(f"model_{iteration:07d}", iteration)
            raise UserError(line)
        self._judge(score, iteration)
        if self._patience and self.waited >= self._patience and iteration + 1 < self.trainer.max_iter:
            self._stop(score, iteration)

    def after_train(self) -> None:
        """Take in the evaluation after the last iteration, of which model_final.pth is then to know."""
        seen = self._seen
        self.after_step()
        if self._seen > seen:
            self._save("model_final", self._seen)

    def check(self, results: Mapping[str, Any]) -> None:
        """Raise the UserError of :meth:`after_step` where the score is not among the results."""
        line = self._find(results)[1]
        if line:
            raise UserError(line)

    def state_dict(self) -> dict[str, Any]:
        """The best score and the evaluations since."""
        standing = {"best": self.best, "iteration": self.iteration, "waited": self.waited}
        return {"metric": self._metric, **standing, "mark": self._mark, "seen": self._seen}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`; where that is of another score, from nothing."""
        self._seen = state_dict["seen"]
        if state_dict["metric"] == self._metric:
            self.best, self.iteration, self.waited = (state_dict[key] for key in ("best", "iteration", "waited"))
            self._mark = state_dict["mark"]

    def _judge(self, score: float, iteration: int) -> None:
        better = self._gain(score, self._mark) > self._min_delta
        self.waited = 0 if better else self.waited + 1
        self._mark = score if better else self._mark
        if self._gain(score, self.best) > 0:
            self.best, self.iteration = score, iteration
            logger.info("%s %.4g: the best so far, kept as model_best.pth", self._metric, score)
            self._save("model_best", iteration)

    def _gain(self, score: float, over: float | None) -> float:
        """How much better a score is; without end over none, and none for one that is not finite."""
        if not math.isfinite(score):
            return -math.inf
        if over is None:
            return math.inf
        return over - score if self._least else score - over

    def _find(self, results: Mapping[str, Any]) -> tuple[float, str]:
        """The score, or what to say where there is none."""
        scores = flatten_results_dict(dict(results))
        if self._metric in scores:
            return float(scores[self._metric]), ""
        near = difflib.get_close_matches(self._metric, scores, n=3) or list(scores)
        return math.nan, f"TEST.BEST {self._metric!r}: the evaluation has no such score; it has {', '.join(near)}"

    def _save(self, name: str, iteration: int) -> None:
        now, self.trainer.iter = self.trainer.iter, iteration  # one further on after the training
        try:
            self._write(name)
        finally:
            self.trainer.iter = now

    def _stop(self, score: float, iteration: int) -> None:
        self._save("model_final", iteration)
        known = "none yet" if self.best is None else f"{self.best:.4g} of iteration {self.iteration + 1}"
        logger.info(
            "stopped after iteration %d: %s %.4g, the best is %s and %d evaluations were no better (TEST.EARLY_STOP)",
            *(iteration + 1, self._metric, score, known, self.waited),
        )
        raise StoppedEarly


def _small_is_good(metric: str) -> bool:
    """Whether a score is a loss, an error or a distance, by its name without that of a class."""
    task, _, score = metric.rpartition("/")
    name = score.partition("-")[0].lower()
    return any(word in name for word in _SMALL_IS_GOOD) or (task.endswith("_tide") and name != "ap50")


def build_selection(cfg: CfgNode, save: Callable[[str], None]) -> Selection | None:
    """What TEST.BEST and TEST.EARLY_STOP ask for, if anything.

    Raises:
        UserError: values that do not fit, or without the evaluations they need.
    """
    keys = cfg.TEST
    if not keys.BEST:
        if keys.EARLY_STOP.PATIENCE:
            raise UserError("TEST.EARLY_STOP.PATIENCE needs the score that counts: set TEST.BEST, as to sem_seg/mIoU")
        return None
    if keys.EARLY_STOP.PATIENCE and keys.EVAL_PERIOD <= 0:
        raise UserError("TEST.EARLY_STOP.PATIENCE needs evaluations in the training: set TEST.EVAL_PERIOD")
    if not cfg.DATASETS.TEST:
        raise UserError(f"TEST.BEST {keys.BEST}: needs a data set in DATASETS.TEST")
    if keys.BEST.startswith("validation/") and not keys.VALIDATION_LOSS:
        raise UserError(f"TEST.BEST {keys.BEST}: needs TEST.VALIDATION_LOSS True")
    return Selection(
        save,
        keys.BEST,
        mode=keys.BEST_MODE,
        patience=keys.EARLY_STOP.PATIENCE,
        min_delta=keys.EARLY_STOP.MIN_DELTA,
    )
