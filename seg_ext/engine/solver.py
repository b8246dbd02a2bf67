"""Optimizers and learning-rate schedules from SOLVER.*."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver import LRMultiplier, get_default_optimizer_params
from detectron2.solver import build_lr_scheduler as build_detectron2_lr_scheduler
from detectron2.solver.build import maybe_add_gradient_clipping
from detectron2.solver.lr_scheduler import WarmupParamScheduler
from fvcore.common.param_scheduler import PolynomialDecayParamScheduler

from seg_ext.errors import UserError


def _sgd(params: Any, cfg: CfgNode) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=cfg.SOLVER.BASE_LR, momentum=cfg.SOLVER.MOMENTUM, nesterov=cfg.SOLVER.NESTEROV)


def _adam(params: Any, cfg: CfgNode) -> torch.optim.Optimizer:
    return torch.optim.Adam(params, lr=cfg.SOLVER.BASE_LR)


def _adamw(params: Any, cfg: CfgNode) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=cfg.SOLVER.BASE_LR)


OPTIMIZERS: dict[str, Callable[[Any, CfgNode], torch.optim.Optimizer]] = {
    "SGD": _sgd,
    "ADAM": _adam,
    "ADAMW": _adamw,
}
SCHEDULES = ("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR", "WarmupPolyLR")


def build_optimizer(cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
    """The optimizer of SOLVER.OPTIMIZER with detectron2's parameter groups and gradient clipping.

    Raises:
        UserError: an unknown name.
    """
    if cfg.SOLVER.OPTIMIZER not in OPTIMIZERS:
        raise UserError(f"SOLVER.OPTIMIZER {cfg.SOLVER.OPTIMIZER!r}: takes one of {', '.join(OPTIMIZERS)}")
    params = get_default_optimizer_params(
        model,
        base_lr=cfg.SOLVER.BASE_LR,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
        weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
    )
    return maybe_add_gradient_clipping(cfg, OPTIMIZERS[cfg.SOLVER.OPTIMIZER](params, cfg))


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRMultiplier:
    """The schedule of SOLVER.LR_SCHEDULER_NAME: detectron2's, and WarmupPolyLR = (1 - t/T)^POLY_LR_POWER (DeepLab v2).

    Raises:
        UserError: an unknown name.
    """
    name = cfg.SOLVER.LR_SCHEDULER_NAME
    if name not in SCHEDULES:
        raise UserError(f"SOLVER.LR_SCHEDULER_NAME {name!r}: takes one of {', '.join(SCHEDULES)}")
    if name != "WarmupPolyLR":
        return build_detectron2_lr_scheduler(cfg, optimizer)
    warmed = WarmupParamScheduler(
        PolynomialDecayParamScheduler(1.0, cfg.SOLVER.POLY_LR_POWER),
        cfg.SOLVER.WARMUP_FACTOR,
        min(cfg.SOLVER.WARMUP_ITERS / cfg.SOLVER.MAX_ITER, 1.0),
        cfg.SOLVER.WARMUP_METHOD,
    )
    return LRMultiplier(optimizer, multiplier=warmed, max_iter=cfg.SOLVER.MAX_ITER)
