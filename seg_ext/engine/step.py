"""The training step: gradients of a batch in parts, in mixed precision, over processes; then one clipped update."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from inspect import signature
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from seg_ext.engine.finite import write_metrics
from seg_ext.errors import UserError

PRECISIONS = {"float16": torch.float16, "bfloat16": torch.bfloat16}


class Step(SimpleTrainer):
    """detectron2's ``SimpleTrainer`` with accumulated gradients and mixed precision, on the CPU too.

    Every loss is the mean of its values on the parts of the batch, as it is the mean over processes: equal to that of
    the whole batch where the parts count alike, as label maps with as many pixels that are not ignored do. BatchNorm
    sees a part at a time. Gradients are summed over processes once, after the last part, freed of the loss scale, and
    then clipped by the optimizer, which is not stepped where one of them overflowed.

    Attributes:
        batch: what the loader gave for the running iteration, in whole.
    """

    batch: Sequence[Mapping[str, Any]]

    def __init__(
        self,
        model: nn.Module,
        loader: Any,
        optimizer: torch.optim.Optimizer,
        *,
        accumulate: int = 1,
        precision: torch.dtype | None = None,
    ) -> None:
        """Set what an iteration does.

        Args:
            model: gives a dict of losses for a list of inputs.
            loader: gives lists of inputs, of a length that ``accumulate`` divides.
            optimizer: of the model's parameters.
            accumulate: parts of a batch.
            precision: of what autocast lowers; None for float32, float16 comes with a loss scale.
        """
        super().__init__(model, loader, optimizer)
        self.accumulate, self.precision = accumulate, precision
        self._device = next(model.parameters()).device.type
        self.grad_scaler = torch.amp.GradScaler(self._device, enabled=precision is torch.float16)

    def run_step(self) -> None:
        """One update of the weights from one batch; writes the losses and the time its data took."""
        start = time.perf_counter()
        self.batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        self.optimizer.zero_grad()
        losses = self.backward(self.batch)
        self.after_backward()
        write_metrics(_on_the_cpu(losses), data_time, self.iter)  # stops at one that is not finite, before the update
        self.grad_scaler.unscale_(self.optimizer)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()
        if self.grad_scaler.is_enabled():
            get_event_storage().put_scalar("amp_scale", self.grad_scaler.get_scale(), smoothing_hint=False)

    def backward(self, batch: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Add the gradients of a batch to the parameters' ``grad``, times the loss scale; returns the mean losses."""
        size = len(batch) // self.accumulate
        means: dict[str, Tensor] = {}
        for start in range(0, len(batch), size):
            last = start + size == len(batch)
            with self._apart(last):
                with torch.autocast(self._device, self.precision, enabled=self.precision is not None):
                    losses = self.model(batch[start : start + size])
                if isinstance(losses, Tensor):
                    losses = {"total_loss": losses}
                if self.accumulate > 1:
                    losses = {name: loss / self.accumulate for name, loss in losses.items()}
                self.grad_scaler.scale(sum(losses.values())).backward()
            for name, loss in losses.items():
                means[name] = means[name] + loss.detach() if name in means else loss.detach()
        return means

    def _apart(self, last: bool) -> AbstractContextManager[Any]:
        """Without the exchange of gradients between processes, before the last part."""
        return nullcontext() if last or not isinstance(self.model, DistributedDataParallel) else self.model.no_sync()

    def state_dict(self) -> dict[str, Any]:
        """With the optimizer's state and the loss scale."""
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Of this class, or of detectron2's trainers; a loss scale is taken where both sides have one."""
        super().load_state_dict(state_dict)
        if self.grad_scaler.is_enabled() and state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])


def build_step(cfg: CfgNode, model: nn.Module, loader: Any, optimizer: torch.optim.Optimizer) -> Step:
    """The step of SOLVER.ACCUMULATE and SOLVER.AMP, over all processes.

    Raises:
        UserError: a number of parts that does not fit the batch, or a precision that does not fit the device.
    """
    return Step(
        distribute(model),
        loader,
        optimizer,
        accumulate=accumulation(cfg),
        precision=precision(cfg) if cfg.SOLVER.AMP.ENABLED else None,
    )


def accumulation(cfg: CfgNode) -> int:
    """SOLVER.ACCUMULATE, which with the number of processes divides IMS_PER_BATCH."""
    parts, batch, processes = cfg.SOLVER.ACCUMULATE, cfg.SOLVER.IMS_PER_BATCH, comm.get_world_size()
    if parts < 1 or batch % (parts * processes):
        raise UserError(
            f"SOLVER.ACCUMULATE {parts}: takes a number >= 1 that splits IMS_PER_BATCH {batch}, the images of an update"
            f" on {processes} process{'es' * (processes > 1)}, into equal parts"
        )
    return parts


def precision(cfg: CfgNode) -> torch.dtype:
    """SOLVER.AMP.PRECISION; where it is empty float16 on a GPU, as in detectron2, and bfloat16 on the CPU."""
    on_cpu = cfg.MODEL.DEVICE == "cpu"
    name = cfg.SOLVER.AMP.PRECISION or ("bfloat16" if on_cpu else "float16")
    if name not in PRECISIONS:
        raise UserError(f"SOLVER.AMP.PRECISION {name!r}: takes {', '.join(PRECISIONS)}, or nothing")
    if on_cpu and name == "float16":
        raise UserError("SOLVER.AMP.PRECISION float16: takes bfloat16 on the CPU, where it is a hundred times faster")
    return PRECISIONS[name]


def distribute(model: nn.Module) -> nn.Module:
    """The model itself in one process, else wrapped for data-parallel training on its own device."""
    if comm.get_world_size() == 1:
        return model
    on_gpu = next(model.parameters()).is_cuda
    known = signature(DistributedDataParallel).parameters
    own_buffers: dict[str, Any] = {
        "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False
    }
    return DistributedDataParallel(model, device_ids=[comm.get_local_rank()] if on_gpu else None, **own_buffers)


def _on_the_cpu(losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Scalars in one transfer."""
    values = torch.stack([loss.detach().float() for loss in losses.values()]).cpu()
    return dict(zip(losses, values.unbind(), strict=True))
