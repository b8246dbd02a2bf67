"""Optimizers from SOLVER.*: their parameter groups, learning rates and weight decays."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver import get_default_optimizer_params
from detectron2.solver.build import maybe_add_gradient_clipping

from seg_ext.engine.schedule_free import build_schedule_free
from seg_ext.errors import UserError

logger = logging.getLogger(__name__)


def _sgd(params: Any, solver: CfgNode) -> torch.optim.Optimizer:
    if not 0 <= solver.MOMENTUM < 1 or (solver.NESTEROV and not solver.MOMENTUM):
        raise UserError(f"SOLVER.MOMENTUM {solver.MOMENTUM}: takes a number >= 0 and < 1, above 0 with NESTEROV")
    return torch.optim.SGD(params, lr=solver.BASE_LR, momentum=solver.MOMENTUM, nesterov=solver.NESTEROV)


def _adam(params: Any, solver: CfgNode) -> torch.optim.Optimizer:
    return torch.optim.Adam(params, lr=solver.BASE_LR)


def _adamw(params: Any, solver: CfgNode) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=solver.BASE_LR)


OPTIMIZERS: dict[str, Callable[[Any, CfgNode], torch.optim.Optimizer]] = {
    "SGD": _sgd,
    "ADAM": _adam,
    "ADAMW": _adamw,
    "SCHEDULE_FREE_SGD": build_schedule_free,
    "SCHEDULE_FREE_ADAMW": build_schedule_free,
}
CLIP_TYPES = ("value", "norm", "full_model")
_FACTORS = ("BACKBONE_LR_FACTOR", "HEAD_LR_FACTOR", "BIAS_LR_FACTOR")
_DECAYS = ("WEIGHT_DECAY", "WEIGHT_DECAY_NORM", "WEIGHT_DECAY_BIAS")


def build_optimizer(cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
    """The optimizer of SOLVER.OPTIMIZER over the model's trainable parameters, with detectron2's gradient clipping.

    The learning rate of a parameter is the product of :func:`base_learning_rate`, BACKBONE_LR_FACTOR in the backbone
    or HEAD_LR_FACTOR in everything else, and BIAS_LR_FACTOR for a bias. A factor of 0 takes the parameters out of
    training: they need no gradient any more. Weight decay is WEIGHT_DECAY, WEIGHT_DECAY_NORM in norms, and for a bias,
    a norm's too, WEIGHT_DECAY_BIAS where that is given.

    Raises:
        UserError: an unknown name, a rate, factor or decay below 0, a model without a trainable parameter.
    """
    solver = cfg.SOLVER
    if solver.OPTIMIZER not in OPTIMIZERS:
        raise UserError(f"SOLVER.OPTIMIZER {solver.OPTIMIZER!r}: takes one of {', '.join(OPTIMIZERS)}")
    for key in ("BASE_LR", *_FACTORS, *_DECAYS):
        value = solver[key]
        if value is not None and not (isinstance(value, (int, float)) and 0 <= value < float("inf")):
            raise UserError(f"SOLVER.{key} {value}: takes a number >= 0")

    def factor(name: str) -> float:
        part = solver.BACKBONE_LR_FACTOR if name.startswith("backbone.") else solver.HEAD_LR_FACTOR
        return part * (solver.BIAS_LR_FACTOR if name.rpartition(".")[2] == "bias" else 1.0)

    for name, parameter in model.named_parameters():
        if not factor(name):
            parameter.requires_grad_(False)
    params = get_default_optimizer_params(
        model,
        base_lr=base_learning_rate(cfg),
        weight_decay=solver.WEIGHT_DECAY,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
        lr_factor_func=factor,
    )
    if not params:
        raise UserError("nothing to train: every parameter is frozen or has a learning rate factor of 0 in SOLVER")
    return _clipped(cfg, OPTIMIZERS[solver.OPTIMIZER](params, solver))


def _clipped(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer with SOLVER.CLIP_GRADIENTS in its ``step``, where all gradients have come together."""
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if not clip.ENABLED:
        return optimizer
    if clip.CLIP_TYPE not in CLIP_TYPES:
        raise UserError(f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE {clip.CLIP_TYPE!r}: takes one of {', '.join(CLIP_TYPES)}")
    if not clip.CLIP_VALUE > 0:
        raise UserError(f"SOLVER.CLIP_GRADIENTS.CLIP_VALUE {clip.CLIP_VALUE}: takes a number above 0")
    if not clip.NORM_TYPE > 0:
        raise UserError(f"SOLVER.CLIP_GRADIENTS.NORM_TYPE {clip.NORM_TYPE}: takes a number above 0")
    if clip.CLIP_TYPE != "full_model":
        return maybe_add_gradient_clipping(cfg, optimizer)

    class WholeNormClipped(type(optimizer)):  # type: ignore[misc]
        def step(self, closure: Any = None) -> Any:
            parameters = [p for group in self.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, clip.CLIP_VALUE, norm_type=clip.NORM_TYPE)
            return super().step(closure)

    optimizer.__class__ = WholeNormClipped  # the optimizer stays one of its kind, as detectron2 does it
    return optimizer


def base_learning_rate(cfg: CfgNode) -> float:
    """SOLVER.BASE_LR, times IMS_PER_BATCH / REFERENCE_BATCH_SIZE where the latter is not 0 (Goyal et al., 2017).

    Raises:
        UserError: REFERENCE_BATCH_SIZE below 0, or beside REFERENCE_WORLD_SIZE, which scales the rate too.
    """
    solver = cfg.SOLVER
    reference = solver.REFERENCE_BATCH_SIZE
    if not reference:
        return solver.BASE_LR
    if reference < 0 or solver.REFERENCE_WORLD_SIZE:
        raise UserError(f"SOLVER.REFERENCE_BATCH_SIZE {reference}: takes a number >= 0, 0 beside REFERENCE_WORLD_SIZE")
    scaled = solver.BASE_LR * solver.IMS_PER_BATCH / reference
    logger.info(
        "learning rate %g: BASE_LR %g times IMS_PER_BATCH %d / REFERENCE_BATCH_SIZE %d",
        *(scaled, solver.BASE_LR, solver.IMS_PER_BATCH, reference),
    )
    return scaled
