"""Exponential moving average of a model's weights (Polyak and Juditsky, 1992), for evaluation and in checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from torch import Tensor, nn

from seg_ext.errors import UserError


class WeightAverage(HookBase):
    """After every update ``average = d average + (1 - d) weights``, from a copy of the weights on.

    It averages trainable parameters and floating-point buffers, so that BatchNorm's statistics fit the weights; the
    rest is the model's own. A checkpoint has the average as its ``model`` and the trained weights in this hook's state:
    what is evaluated, predicted with or trained further is what was scored, and a resumed run goes on at the trained.

    Attributes:
        updates: since the copy.
    """

    def __init__(self, model: nn.Module, *, decay: float, start: int = 0, warmup: bool = True) -> None:
        """Set the average; it begins in training.

        Args:
            model: not wrapped.
            decay: d, share of the old average.
            start: iteration after which the average begins.
            warmup: d of update n is no more than (1 + n) / (10 + n).

        Raises:
            UserError: a share outside [0, 1), or a start below 0.
        """
        if not 0 <= decay < 1:
            raise UserError(f"SOLVER.EMA.DECAY {decay}: takes the share of the old average, from 0 to below 1")
        if start < 0:
            raise UserError(f"SOLVER.EMA.START {start}: takes an iteration >= 0")
        self._model, self._decay, self._start, self._warmup = model, decay, start, warmup
        self._other: dict[str, Tensor] = {}  # the average, or within `averaged` the trained weights
        self._swapped = False
        self.updates = 0

    def after_step(self) -> None:
        """Update, once the iteration is ``start`` or later."""
        if self.trainer.iter >= self._start:
            self.update()

    @torch.no_grad()
    def update(self) -> None:
        """Take in the model's weights."""
        weights = self._weights()
        if not self._other:
            self._other = {name: weight.detach().clone() for name, weight in weights.items()}
            return
        self.updates += 1
        decay = min(self._decay, (1 + self.updates) / (10 + self.updates)) if self._warmup else self._decay
        torch._foreach_lerp_(list(self._other.values()), list(weights.values()), 1 - decay)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The average in the model, for the time of an evaluation or of saving; nothing nested or before the start."""
        if self._swapped or not self._other:
            yield
            return
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state_dict(self) -> dict[str, Any]:
        """The weights that are not in the model at this moment, and which these are."""
        return {"updates": self.updates, "weights": self._other, "trained": self._swapped} if self._other else {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`, after the model's weights of the same moment were loaded.

        Raises:
            UserError: it is of another model.
        """
        weights = self._weights()
        if weights.keys() != state_dict["weights"].keys():
            odd = sorted(weights.keys() ^ state_dict["weights"].keys())[0]
            raise UserError(f"SOLVER.EMA: the checkpoint's trained weights are of another model: {odd}")
        self.updates = state_dict["updates"]
        self._other = {name: state_dict["weights"][name].to(weight).clone() for name, weight in weights.items()}
        if state_dict["trained"]:
            self._swap()
            self._swapped = False

    @torch.no_grad()
    def _swap(self) -> None:
        for name, weight in self._weights().items():
            held = self._other[name].clone()
            self._other[name].copy_(weight)
            weight.copy_(held)
        self._swapped = not self._swapped

    def _weights(self) -> dict[str, Tensor]:
        """What is averaged, in the model's order."""
        saved = self._model.state_dict(keep_vars=True)
        return {
            name: weight
            for name, weight in saved.items()
            if weight.is_floating_point() and (weight.requires_grad or not isinstance(weight, nn.Parameter))
        }


def build_ema(cfg: CfgNode, model: nn.Module) -> WeightAverage | None:
    """The average of SOLVER.EMA, if it is wanted.

    Raises:
        UserError: a value outside its range, or a schedule-free optimizer, which averages by itself.
    """
    keys = cfg.SOLVER.EMA
    if not keys.ENABLED:
        return None
    if cfg.SOLVER.OPTIMIZER.startswith("SCHEDULE_FREE"):
        raise UserError(f"SOLVER.EMA.ENABLED: takes False with OPTIMIZER {cfg.SOLVER.OPTIMIZER}, which averages itself")
    return WeightAverage(model, decay=keys.DECAY, start=keys.START, warmup=keys.WARMUP)
