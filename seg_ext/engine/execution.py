"""How a model runs in training, whatever it computes: memory format, recomputed activations, torch.compile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import MethodType
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from seg_ext.errors import UserError

_COMPILED = ("backbone", "sem_seg_head.decoder")  # shapes alone decide what these do


def prepare(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """Apply SOLVER.CHANNELS_LAST, MODEL.BACKBONE.RECOMPUTE and SOLVER.COMPILE in place; names of weights stay.

    Raises:
        UserError: a part of the backbone that is not there, or a back end that torch does not have.
    """
    on_gpu = cfg.MODEL.DEVICE != "cpu"
    wanted = cfg.SOLVER.CHANNELS_LAST
    if wanted or (wanted is None and on_gpu and cfg.SOLVER.AMP.ENABLED):
        model.to(memory_format=torch.channels_last)
    if cfg.MODEL.BACKBONE.RECOMPUTE:
        recompute(model, cfg.MODEL.BACKBONE.RECOMPUTE)
    if cfg.SOLVER.COMPILE.ENABLED:
        if cfg.MODEL.BACKBONE.RECOMPUTE:
            raise UserError("SOLVER.COMPILE.ENABLED: takes False with MODEL.BACKBONE.RECOMPUTE, which it cannot trace")
        compile_parts(model, cfg.SOLVER.COMPILE.BACKEND)
    return model


def recompute(model: nn.Module, names: Sequence[str]) -> None:
    """Let parts of the backbone keep their input alone in training, and run again in the backward pass.

    Results stay the same to the bit: random numbers are drawn alike, and running statistics move once.

    Args:
        model: with a part called ``backbone``.
        names: of modules in the backbone, or in what lies under its feature pyramid or adapter.

    Raises:
        UserError: a name that is not there, or one whose module is a bare list, which is never called.
    """
    backbone: Any = model.get_submodule("backbone")
    inner = [getattr(backbone, name, None) for name in ("bottom_up", "encoder")]
    known = {name: module for root in (*filter(None, inner), backbone) for name, module in root.named_modules() if name}
    for name in names:
        part = known.get(name)
        if part is None or isinstance(part, (nn.ModuleList, nn.ModuleDict)):
            stages = [name for root in (*filter(None, inner), backbone) for name, _ in root.named_children()]
            raise UserError(f"MODEL.BACKBONE.RECOMPUTE {name!r}: takes modules of the backbone: {', '.join(stages)}")
        part.forward = MethodType(_recomputed, part)


def _recomputed(part: nn.Module, *args: Any, **kwargs: Any) -> Any:
    forward = MethodType(type(part).forward, part)
    if not (part.training and torch.is_grad_enabled()):
        return forward(*args, **kwargs)
    context = lambda: (nullcontext(), _resting_statistics(part))  # noqa: E731
    return checkpoint(forward, *args, use_reentrant=False, context_fn=context, **kwargs)


@contextmanager
def _resting_statistics(part: nn.Module) -> Iterator[None]:
    """A second forward pass moves copies of BatchNorm's statistics."""
    layers = [module for module in part.modules() if isinstance(module, _BatchNorm)]
    kept = [dict(layer._buffers) for layer in layers]
    for layer in layers:
        layer._buffers.update({name: x if x is None else x.clone() for name, x in layer._buffers.items()})
    try:
        yield
    finally:
        for layer, buffers in zip(layers, kept, strict=True):
            layer._buffers.update(buffers)


def compile_parts(model: nn.Module, backend: str) -> None:
    """torch.compile for the backbone and the decoder, in place; the rest depends on values or is detectron2's own.

    Raises:
        UserError: a back end that torch does not have.
    """
    from torch._dynamo import list_backends

    if backend not in list_backends(exclude_tags=()):
        raise UserError(f"SOLVER.COMPILE.BACKEND {backend!r}: takes one of {', '.join(list_backends())}")
    modules = dict(model.named_modules())
    for name in _COMPILED:
        if name in modules:
            modules[name].compile(backend=backend)


def uncompiled(cfg: CfgNode) -> AbstractContextManager[Any]:
    """A context without compiled code: an evaluation meets too many sizes for it to pay."""
    return torch.compiler.set_stance("force_eager") if cfg.SOLVER.COMPILE.ENABLED else nullcontext()
