"""Learning-rate schedules from SOLVER.*: the factor on every rate as a function of the progress t in [0, 1]."""

from __future__ import annotations

import logging
from collections.abc import Callable
from math import cos, inf, pi

import torch
from detectron2.config import CfgNode
from detectron2.solver import LRMultiplier
from detectron2.solver.lr_scheduler import WarmupParamScheduler
from fvcore.common.param_scheduler import ParamScheduler

from seg_ext.errors import UserError

logger = logging.getLogger(__name__)
Curve = Callable[[float], float]
_ROUNDING = 1e-9  # of t, so that a step is not an iteration late


def _constant(solver: CfgNode) -> Curve:
    return lambda t: 1.0


def _poly(solver: CfgNode) -> Curve:
    _check(solver, "POLY_LR_POWER")
    return lambda t: (1 - t) ** solver.POLY_LR_POWER


def _cosine(solver: CfgNode) -> Curve:
    if not 0 <= solver.BASE_LR_END <= solver.BASE_LR:
        raise UserError(f"SOLVER.BASE_LR_END {solver.BASE_LR_END}: lies between 0 and BASE_LR {solver.BASE_LR}")
    end = solver.BASE_LR_END / solver.BASE_LR if solver.BASE_LR else 1.0
    return lambda t: _between(1.0, end, t)


def _multi_step(solver: CfgNode) -> Curve:
    steps = list(solver.STEPS)
    if any(type(step) is not int or step < 0 for step in steps) or steps != sorted(steps):
        raise UserError(f"SOLVER.STEPS {tuple(steps)}: takes iterations in ascending order")
    late = [step for step in steps if step > solver.MAX_ITER]
    if late:
        logger.warning("SOLVER.STEPS %s never come: MAX_ITER is %d", late, solver.MAX_ITER)
    _check(solver, "GAMMA")
    return lambda t: solver.GAMMA ** sum(step / solver.MAX_ITER <= t + _ROUNDING for step in solver.STEPS)


def _even_steps(solver: CfgNode) -> Curve:
    if solver.NUM_DECAYS < 0:
        raise UserError(f"SOLVER.NUM_DECAYS {solver.NUM_DECAYS}: takes a number >= 0")
    _check(solver, "GAMMA")
    return lambda t: solver.GAMMA ** min(int((t + _ROUNDING) * (solver.NUM_DECAYS + 1)), solver.NUM_DECAYS)


def _one_cycle(solver: CfgNode) -> Curve:
    peak, start, end = solver.ONE_CYCLE.PEAK, solver.ONE_CYCLE.START_FACTOR, solver.ONE_CYCLE.END_FACTOR
    if not (0 < peak < 1 and 0 <= start <= 1 and 0 <= end <= 1):
        raise UserError(f"SOLVER.ONE_CYCLE {dict(solver.ONE_CYCLE)}: takes 0 < PEAK < 1 and factors from 0 to 1")
    return lambda t: _between(start, 1.0, t / peak) if t < peak else _between(1.0, end, (t - peak) / (1 - peak))


SCHEDULES: dict[str, Callable[[CfgNode], Curve]] = {
    "WarmupConstantLR": _constant,
    "WarmupPolyLR": _poly,  # DeepLab v2
    "WarmupCosineLR": _cosine,
    "WarmupMultiStepLR": _multi_step,
    "WarmupStepWithFixedGammaLR": _even_steps,
    "OneCycleLR": _one_cycle,  # Smith and Topin, 2018; rises by itself, WARMUP_* play no part
}


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRMultiplier:
    """The schedule of SOLVER.LR_SCHEDULER_NAME over MAX_ITER iterations, after detectron2's warm-up.

    Raises:
        UserError: an unknown name, or a value outside what the schedule takes.
    """
    solver = cfg.SOLVER
    name = solver.LR_SCHEDULER_NAME
    if name not in SCHEDULES:
        raise UserError(f"SOLVER.LR_SCHEDULER_NAME {name!r}: takes one of {', '.join(SCHEDULES)}")
    if solver.MAX_ITER < 1:
        raise UserError(f"SOLVER.MAX_ITER {solver.MAX_ITER}: takes a number >= 1")
    curve: ParamScheduler = _Scheduler(SCHEDULES[name](solver))
    if name.startswith("Warmup"):
        if solver.WARMUP_METHOD not in ("linear", "constant"):
            raise UserError(f"SOLVER.WARMUP_METHOD {solver.WARMUP_METHOD!r}: takes linear or constant")
        for key in ("WARMUP_ITERS", "WARMUP_FACTOR"):
            _check(solver, key)
        length = min(solver.WARMUP_ITERS / solver.MAX_ITER, 1.0)
        if length == 1:
            key = f"SOLVER.WARMUP_ITERS {solver.WARMUP_ITERS}"
            logger.warning("%s: the warm-up takes all of MAX_ITER %d; it never gets to BASE_LR", key, solver.MAX_ITER)
        curve = WarmupParamScheduler(
            curve, solver.WARMUP_FACTOR, length, solver.WARMUP_METHOD, solver.RESCALE_INTERVAL and length < 1
        )
    return LRMultiplier(optimizer, multiplier=curve, max_iter=solver.MAX_ITER)


def _check(solver: CfgNode, key: str) -> None:
    if not 0 <= solver[key] < inf:
        raise UserError(f"SOLVER.{key} {solver[key]}: takes a number >= 0")


class _Scheduler(ParamScheduler):
    """A curve as fvcore takes it; t ends at 1, where several of fvcore's own fail."""

    def __init__(self, curve: Curve) -> None:
        self._curve = curve

    def __call__(self, where: float) -> float:
        return self._curve(min(where, 1.0))


def _between(first: float, last: float, share: float) -> float:
    """Half a cosine wave from ``first`` to ``last``."""
    return last + (first - last) * (1 + cos(pi * share)) / 2
