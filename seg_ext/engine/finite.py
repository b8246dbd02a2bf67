"""Losses that are not finite end a run on all processes with one line, after the batch was kept for a replay."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from detectron2.engine.hooks import LRScheduler
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from seg_ext.checkpoint import write_whole
from seg_ext.engine.plain import to_plain

FORMAT = 1
_NAMED = 8  # files, in a line


class NotFinite(FloatingPointError):
    """A loss is NaN or infinite.

    Attributes:
        line: what is wrong, for the user.
        rank: of the process whose batch it was, the first where there are several; it tells.
        losses: of that process.
    """

    def __init__(self, line: str, *, rank: int, losses: Mapping[str, float]) -> None:
        super().__init__(line)
        self.line, self.rank, self.losses = line, rank, dict(losses)

    @property
    def told_here(self) -> bool:
        """Whether it is this process that is to tell the user."""
        return self.rank == comm.get_rank()


def write_metrics(losses: Mapping[str, Tensor], data_time: float, iteration: int) -> None:
    """Put the losses, means over the processes that have them, and the longest wait into the main process's storage.

    The total is the mean over all processes, as of the gradients.

    Args:
        losses: scalars of this process.
        data_time: seconds that this process waited for its batch.
        iteration: they belong to.

    Raises:
        NotFinite: one of them is not, on some process; all raise it.
    """
    values = {name: float(loss) for name, loss in losses.items()}
    storage = get_event_storage()
    storage.put_scalar("rank_data_time", data_time, cur_iter=iteration)
    ranks = comm.all_gather((values, data_time))
    for rank, (found, _) in enumerate(ranks):
        wrong = [f"{name} {value:.4g}" for name, value in found.items() if not math.isfinite(value)]
        if wrong:
            raise NotFinite(", ".join(wrong), rank=rank, losses=found)
    if comm.is_main_process():
        names = dict.fromkeys(name for found, _ in ranks for name in found)
        means = {name: fmean(found[name] for found, _ in ranks if name in found) for name in names}
        storage.put_scalar("data_time", max(seconds for _, seconds in ranks), cur_iter=iteration)
        storage.put_scalar("total_loss", fmean(sum(found.values()) for found, _ in ranks), cur_iter=iteration)
        if len(means) > 1:
            storage.put_scalars(cur_iter=iteration, **means)


def torch_rng_state() -> dict[str, Tensor]:
    """torch's global generators, of the CPU and of this process's GPU: what a model draws from."""
    gpu = {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_initialized() else {}
    return {"torch": torch.get_rng_state(), **gpu}


def set_torch_rng_state(state: Mapping[str, Tensor]) -> None:
    """Put the generators where :func:`torch_rng_state` saw them; a GPU's only where there is one."""
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def explain(
    error: FloatingPointError,
    batch: Sequence[Mapping[str, Any]],
    *,
    iteration: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    rng: Mapping[str, Tensor],
    folder: Path,
) -> NotFinite:
    """Keep the batch, the weights and the generators' state in ``folder``, and say so.

    Args:
        error: a :class:`NotFinite`, or what a model itself raised, on this process alone.
        batch: of this process.
        iteration: as in metrics.json.
        model: not updated since.
        optimizer: of it, for the learning rate.
        rng: :func:`torch_rng_state` before the iteration.
        folder: of the run.

    Returns:
        The error to raise, whose line has iteration, losses, learning rate, and the images by file.
    """
    own = comm.get_rank()
    if not isinstance(error, NotFinite):
        error = NotFinite(str(error), rank=own, losses={})
    if error.rank != own:
        return error
    files = [str(sample.get("file_name", "?")) for sample in batch]
    lr = optimizer.param_groups[LRScheduler.get_best_param_group_id(optimizer)]["lr"]
    file = folder / f"nonfinite_{iteration:07d}.pth"
    content = {
        "format": FORMAT,
        "iteration": iteration,
        "losses": error.losses,
        "lr": float(lr),
        "batch": to_plain(list(batch)),
        "model": model.state_dict(),
        "rng": dict(rng),
    }
    weights = "" if _is_finite(model) else "; the weights were not finite before it, by an earlier gradient"
    more = f" and {len(files) - _NAMED} more" if len(files) > _NAMED else ""
    error.line = (
        f"iteration {iteration}: {error.line}, at learning rate {lr:.4g}{weights}; {_keep(file, content)};"
        f" images {', '.join(files[:_NAMED])}{more}"
    )
    return error


def _keep(file: Path, content: Mapping[str, Any]) -> str:
    """Write the file; says where it is, or why it is not."""
    try:
        write_whole(file, lambda stream: torch.save(content, stream))
    except OSError as error:
        return f"the batch could not be kept in {file}: {error.strerror}"
    return f"the batch is in {file}, look at it with: seg-ext train --replay {file}"


def _is_finite(model: nn.Module) -> bool:
    return all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters())
