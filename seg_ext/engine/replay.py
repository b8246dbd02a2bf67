"""A batch whose losses were not finite, run once more: where the first value that is not finite comes from."""

from __future__ import annotations

import math
import pickle
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from seg_ext.engine.finite import FORMAT, set_torch_rng_state
from seg_ext.engine.plain import from_plain
from seg_ext.engine.solver import build_optimizer
from seg_ext.engine.step import Step, build_step
from seg_ext.errors import UserError


def replay(cfg: CfgNode, saved: Mapping[str, Any], file: str) -> list[str]:
    """Run the batch of a ``nonfinite_*.pth`` on its weights, and say what is not finite, a line each.

    Args:
        cfg: of the run.
        saved: what :func:`read` gives.
        file: it is from, for messages.

    Raises:
        UserError: it is of another model.
    """
    model = build_model(cfg)
    try:
        model.load_state_dict(saved["model"])
    except RuntimeError as error:
        raise UserError(
            f"{file}: is of another model than the config: {str(error).splitlines()[-1].strip()}"
        ) from error
    step = build_step(cfg, model, [], build_optimizer(cfg, model))
    step.grad_scaler = torch.amp.GradScaler(enabled=False)  # what overflows by the loss scale is no fault
    batch = from_plain(saved["batch"])
    set_torch_rng_state(saved["rng"])
    with EventStorage(saved["iteration"]), _watch(model) as (seen, parts):
        failure = _backward(step, batch)
    wrong = next((i for i, part in enumerate(parts) if not all(map(math.isfinite, part.values()))), len(parts) - 1)
    size = len(batch) // step.accumulate
    images = [str(sample.get("file_name", "?")) for sample in batch[size * wrong : size * (wrong + 1)] or batch]
    return [
        f"iteration {saved['iteration']}, learning rate {saved['lr']:.4g}, images: {', '.join(images)}",
        f"losses in the run: {_named(saved['losses']) or 'none, the model stopped'}",
        f"losses now: {_named(parts[wrong]) if parts else 'none, the model stopped'}",
        _parameters(saved["model"], model),
        seen[0] if seen else "the output of every module is finite",
        *([f"the passes end with: {failure}"] if failure else []),
    ]


def _backward(step: Step, batch: Any) -> str:
    """Both passes, with anomaly detection; what it, or the model, stops with."""
    with warnings.catch_warnings(record=True) as caught, torch.autograd.set_detect_anomaly(True):
        warnings.simplefilter("always")
        try:
            step.backward(batch)
        except (RuntimeError, FloatingPointError) as error:
            places = [line.strip() for warning in caught for line in str(warning.message).splitlines()]
            place = [line for line in places if line.startswith("File ")][-1:]
            return " ".join([str(error).splitlines()[0], *place])
    return ""


def read(file: str | Path) -> dict[str, Any]:
    """The content of a ``nonfinite_*.pth``; nothing in it is run.

    Raises:
        UserError: no such file, or not one of these.
    """
    if not Path(file).is_file():
        raise UserError(f"--replay {file}: no such file")
    try:
        saved = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError, KeyError, ValueError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"--replay {file}: cannot be read: {first}") from error
    if not isinstance(saved, dict) or saved.get("format") != FORMAT or "batch" not in saved:
        raise UserError(f"--replay {file}: takes a nonfinite_*.pth of a run that stopped at a loss that is not finite")
    return saved


@contextmanager
def _watch(model: nn.Module) -> Iterator[tuple[list[str], list[dict[str, float]]]]:
    """Gets a line on the first module that returns a value that is not finite, and the losses of each pass."""
    seen: list[str] = []
    losses: list[dict[str, float]] = []

    def note(module: nn.Module, args: Any, output: dict[str, Tensor]) -> None:
        losses.append({name: float(loss.detach()) for name, loss in output.items()})

    def look(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            bad = [] if seen else [x for x in _tensors(output) if not torch.isfinite(x).all()]
            if bad:
                shape, count = tuple(bad[0].shape), int((~torch.isfinite(bad[0])).sum())
                seen.append(
                    f"first module whose output is not finite: {name} ({type(module).__name__}),"
                    f" {count} of {bad[0].numel()} values of {shape}; its input {_range(args)}"
                )

        return hook

    handles = [module.register_forward_hook(look(name)) for name, module in model.named_modules() if name]
    handles.append(model.register_forward_hook(note))
    try:
        yield seen, losses
    finally:
        for handle in handles:
            handle.remove()


def _range(args: Any) -> str:
    inputs = [x for x in _tensors(args) if x.numel()]
    if not inputs:
        return "has no floating-point tensors"
    if not all(torch.isfinite(x).all() for x in inputs):
        return "is not finite either"
    least, most = min(float(x.min()) for x in inputs), max(float(x.max()) for x in inputs)
    return f"is finite, from {least:.4g} to {most:.4g}"


def _tensors(value: Any) -> Iterator[Tensor]:
    """The floating-point tensors in nested containers and detectron2's structures."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value.detach()
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif hasattr(value, "get_fields"):
        yield from _tensors(value.get_fields())
    elif isinstance(getattr(value, "tensor", None), Tensor):
        yield from _tensors(value.tensor)


def _parameters(weights: Mapping[str, Tensor], model: nn.Module) -> str:
    """Of the saved weights, not of buffers that a forward pass has changed since."""
    for name, _ in model.named_parameters():
        wrong = int((~torch.isfinite(weights[name])).sum())
        if wrong:
            return f"first parameter that is not finite: {name}, {wrong} of {weights[name].numel()} values"
    return "all parameters are finite"


def _named(losses: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
