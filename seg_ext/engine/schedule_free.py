"""Schedule-free optimizers (Defazio et al., 2024), of the package schedulefree: trained weights and averaged ones.

Such an optimizer has ``train()`` and ``eval()``, which put into the model the weights that gradients are taken at, or
their average, which is what gets evaluated and saved. BatchNorm's running statistics are of the former in either case.
For other optimizers the functions here do nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from typing import Any

import torch
from detectron2.config import CfgNode

from seg_ext.checkpoint import Checkpointer
from seg_ext.engine.ema import WeightAverage
from seg_ext.errors import UserError

_SCHEDULE = "WarmupConstantLR"


def build_schedule_free(params: Any, solver: CfgNode) -> torch.optim.Optimizer:
    """SCHEDULE_FREE_SGD or SCHEDULE_FREE_ADAMW over parameter groups; warm-up is SOLVER.WARMUP_*'s.

    Raises:
        UserError: the package is missing; a schedule other than WarmupConstantLR, whose place the average takes.
    """
    name = solver.OPTIMIZER
    if solver.LR_SCHEDULER_NAME != _SCHEDULE:
        raise UserError(f"SOLVER.LR_SCHEDULER_NAME {solver.LR_SCHEDULER_NAME}: takes {_SCHEDULE} with OPTIMIZER {name}")
    try:
        library: Any = import_module("schedulefree")
    except ImportError as error:
        raise UserError(f"SOLVER.OPTIMIZER {name}: needs schedulefree: pip install 'seg-ext[schedulefree]'") from error
    if name == "SCHEDULE_FREE_ADAMW":
        return library.AdamWScheduleFree(params, lr=solver.BASE_LR)
    if not 0 < solver.MOMENTUM < 1:
        raise UserError(f"SOLVER.MOMENTUM {solver.MOMENTUM}: lies between 0 and 1 with OPTIMIZER {name}")
    return library.SGDScheduleFree(params, lr=solver.BASE_LR, momentum=solver.MOMENTUM)


@contextmanager
def trained_weights(optimizer: Any) -> Iterator[None]:
    """For the time of a training; the average is in the model afterwards, whatever happened."""
    if not hasattr(optimizer, "train"):
        yield
        return
    optimizer.train()
    try:
        yield
    finally:
        optimizer.eval()


@contextmanager
def averaged_weights(optimizer: Any) -> Iterator[None]:
    """For the time of an evaluation or of saving, also within :func:`trained_weights`."""
    if not hasattr(optimizer, "eval") or not optimizer.param_groups[0]["train_mode"]:
        yield
        return
    optimizer.eval()
    try:
        yield
    finally:
        optimizer.train()


class AveragedCheckpointer(Checkpointer):
    """Saves model and optimizer with the average in the model, the optimizer's own or ``ema``."""

    def __init__(
        self,
        model: torch.nn.Module,
        save_dir: str,
        *,
        optimizer: torch.optim.Optimizer,
        ema: WeightAverage | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, save_dir, **kwargs)
        self._optimizer, self._ema = optimizer, ema

    def save(self, name: str, **kwargs: Any) -> None:
        """See :meth:`seg_ext.checkpoint.Checkpointer.save`."""
        with averaged_weights(self._optimizer), self._ema.averaged() if self._ema else nullcontext():
            super().save(name, **kwargs)
