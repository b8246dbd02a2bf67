"""BatchNorm as MODEL.BN sets it in a model: momentum, eps, and freezing in whole or in part."""

from __future__ import annotations

import logging
from types import MethodType

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from seg_ext.errors import UserError

logger = logging.getLogger(__name__)
_FROZEN = {"": None, "backbone": "backbone.", "all": ""}  # the names that begin so


def configure_batch_norm(
    model: nn.Module, *, momentum: float | None = None, eps: float | None = None, frozen: str = ""
) -> None:
    """Set every BatchNorm of ``model``, in place.

    A frozen layer stays in eval mode, also after ``model.train()``, so that its statistics do not move, and its weight
    and bias take no gradient; parameter counts and state dicts stay.

    Args:
        model: with a part called ``backbone``.
        momentum: share of a new batch in the running statistics; None leaves each layer its own.
        eps: added to the variance; None likewise.
        frozen: those of the "backbone", of "all", or "" for none.

    Raises:
        UserError: a value outside its range.
    """
    if momentum is not None and not (_is_number(momentum) and 0 <= momentum <= 1):
        raise UserError(f"MODEL.BN.MOMENTUM {momentum}: takes the share of a new batch, from 0 to 1, or None")
    if eps is not None and not (_is_number(eps) and 0 < eps < float("inf")):
        raise UserError(f"MODEL.BN.EPS {eps}: takes a number above 0, or None")
    if frozen not in _FROZEN:
        raise UserError(f"MODEL.BN.FROZEN {frozen!r}: takes {', '.join(map(repr, _FROZEN))}")
    layers = {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    for layer in layers.values():
        layer.momentum = layer.momentum if momentum is None else momentum
        layer.eps = layer.eps if eps is None else eps
    start = _FROZEN[frozen]
    if start is not None:
        chosen = [layer for name, layer in layers.items() if f"{name}.".startswith(start)]
        for layer in chosen:
            _freeze(layer)
        level = logging.INFO if chosen else logging.WARNING
        logger.log(level, "MODEL.BN.FROZEN %s: %d of %d BatchNorm layers", frozen, len(chosen), len(layers))


def _is_number(value: object) -> bool:  # the default None lets a config have anything
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _freeze(layer: nn.Module) -> None:
    layer.requires_grad_(False)
    layer.train = MethodType(_stay_in_eval, layer)  # type: ignore[method-assign]
    layer.eval()


def _stay_in_eval(layer: nn.Module, mode: bool = True) -> nn.Module:
    return type(layer).train(layer, False)
