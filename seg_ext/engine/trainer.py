"""The trainer: detectron2's, with seg_ext's loaders, solver, evaluation, checkpoints and progress."""

from __future__ import annotations

import weakref
from inspect import signature
from typing import Any

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.engine import AMPTrainer, DefaultTrainer, HookBase, SimpleTrainer, TrainerBase, hooks
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, JSONWriter, TensorboardXWriter
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from seg_ext.engine.evaluate import Results, evaluate
from seg_ext.engine.hooks import LogLines, ProgressBar, StopOnSignal
from seg_ext.engine.loaders import ReportSkipped, build_test_loader, build_train_loader
from seg_ext.engine.schedule_free import AveragedCheckpointer, averaged_weights, trained_weights
from seg_ext.engine.schedules import build_lr_scheduler
from seg_ext.engine.setup import interactive
from seg_ext.engine.solver import build_optimizer


class Trainer(DefaultTrainer):
    """detectron2's ``DefaultTrainer`` for seg_ext's models; on the CPU, one GPU or many processes."""

    def __init__(self, cfg: CfgNode) -> None:
        TrainerBase.__init__(self)  # DefaultTrainer's own constructor fixes parts that are replaced here
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        model = build_model(cfg)
        optimizer = build_optimizer(cfg, model)
        loader = build_train_loader(cfg)
        trainer = AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer
        self._trainer = trainer(distribute(model), loader, optimizer)
        self.scheduler = build_lr_scheduler(cfg, optimizer)
        proxy = weakref.proxy(self)
        self.checkpointer = AveragedCheckpointer(model, cfg.OUTPUT_DIR, optimizer=optimizer, trainer=proxy)
        self.start_iter, self.max_iter, self.cfg = 0, cfg.SOLVER.MAX_ITER, cfg
        self.register_hooks([*self.build_hooks(), ReportSkipped(loader, cfg.OUTPUT_DIR)])

    def build_hooks(self) -> list[HookBase]:
        """Timer, schedule, checkpoints, progress, evaluation; writers after it, for its scores; stopping last."""
        cfg, main = self.cfg, comm.is_main_process()
        built: list[HookBase | None] = [
            hooks.IterationTimer(),
            hooks.LRScheduler(),
            hooks.PeriodicCheckpointer(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD) if main else None,
            ProgressBar() if main and interactive() else None,
            hooks.EvalHook(cfg.TEST.EVAL_PERIOD, self._evaluate),
            hooks.PeriodicWriter(self.build_writers(), period=20) if main else None,
            StopOnSignal(self.checkpointer),
        ]
        return [hook for hook in built if hook]

    def build_writers(self) -> list[EventWriter]:
        """metrics.json, TensorBoard, and log lines where there is no terminal for a progress bar."""
        writers: list[EventWriter] = [
            JSONWriter(f"{self.cfg.OUTPUT_DIR}/metrics.json"),
            TensorboardXWriter(self.cfg.OUTPUT_DIR),
        ]
        return writers if interactive() else [LogLines(self.max_iter), *writers]

    def train(self) -> Results:
        """Train from ``start_iter`` to SOLVER.MAX_ITER; returns the last evaluation's results."""
        with trained_weights(self._trainer.optimizer):
            TrainerBase.train(self, self.start_iter, self.max_iter)
        return getattr(self, "_last_eval_results", {})

    def _evaluate(self) -> Results:
        model = self.checkpointer.model  # not wrapped: ranks have unequal shares of the images
        if comm.get_world_size() > 1:
            for buffer in model.buffers():  # each rank has BatchNorm statistics of its own: score those that are saved
                dist.broadcast(buffer, 0)
        with averaged_weights(self._trainer.optimizer):
            self._last_eval_results = self.test(self.cfg, model)
        return self._last_eval_results

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """The model of MODEL.META_ARCHITECTURE on MODEL.DEVICE, with MODEL.BN's BatchNorm."""
        return build_model(cfg)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """See :func:`seg_ext.engine.solver.build_optimizer`."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> Any:
        """See :func:`seg_ext.engine.schedules.build_lr_scheduler`."""
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        """See :func:`seg_ext.engine.loaders.build_train_loader`."""
        return build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        """See :func:`seg_ext.engine.loaders.build_test_loader`."""
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: None = None) -> Results:
        """See :func:`seg_ext.engine.evaluate.evaluate`."""
        return evaluate(cfg, model)


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
