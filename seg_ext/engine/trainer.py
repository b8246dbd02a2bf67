"""The trainer: detectron2's, with seg_ext's loaders, solver, evaluation, checkpoints and progress."""

from __future__ import annotations

import weakref
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase, hooks
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from torch import nn

from seg_ext.engine.ema import build_ema
from seg_ext.engine.evaluate import Results, evaluate
from seg_ext.engine.execution import prepare, uncompiled
from seg_ext.engine.finite import explain, torch_rng_state
from seg_ext.engine.hooks import DataTime, Evaluation, LogLines, ProgressBar, StopOnSignal, Writers
from seg_ext.engine.interrupt import STOP
from seg_ext.engine.loaders import ReportSkipped, build_test_loader, build_train_loader, training_sets
from seg_ext.engine.resume import Checkpoints, EventsFile, MetricsFile, RunState, unchanged_rng
from seg_ext.engine.run_folder import write_data
from seg_ext.engine.schedule_free import AveragedCheckpointer, averaged_weights, trained_weights
from seg_ext.engine.schedules import build_lr_scheduler
from seg_ext.engine.selection import StoppedEarly, build_selection
from seg_ext.engine.setup import interactive
from seg_ext.engine.sidecar import sidecar_of
from seg_ext.engine.solver import build_optimizer
from seg_ext.engine.step import build_step
from seg_ext.engine.validation_loss import merged, validation_losses
from seg_ext.engine.writers import build_trackers


class Trainer(DefaultTrainer):
    """detectron2's ``DefaultTrainer`` for seg_ext's models; on the CPU, one GPU or many processes."""

    def __init__(self, cfg: CfgNode) -> None:
        TrainerBase.__init__(self)  # DefaultTrainer's own constructor fixes parts that are replaced here
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        model = prepare(cfg, build_model(cfg))
        optimizer = build_optimizer(cfg, model)
        sets = training_sets(cfg)
        if comm.is_main_process():
            write_data(Path(cfg.OUTPUT_DIR), sets)
        loader = build_train_loader(cfg, sets)
        self._trainer = build_step(cfg, model, loader, optimizer)
        self.ema = build_ema(cfg, model)
        self.evaluation: tuple[int, Results] | None = None  # iteration and results of the last one
        self.scheduler = build_lr_scheduler(cfg, optimizer)
        proxy = weakref.proxy(self)
        self.checkpointer = AveragedCheckpointer(
            model,
            cfg.OUTPUT_DIR,
            optimizer=optimizer,
            ema=self.ema,
            trainer=proxy,
            keep=cfg.SOLVER.CHECKPOINT_KEEP,
            sidecar=sidecar_of(cfg),
            partial=cfg.MODEL.LOADING.PARTIAL,
            table=cfg.MODEL.LOADING.TABLE,
        )
        self.run_state = RunState(self.checkpointer, loader, seed=cfg.SEED)
        self.start_iter, self.max_iter, self.cfg = 0, cfg.SOLVER.MAX_ITER, cfg
        self.register_hooks([*self.build_hooks(), ReportSkipped(loader, cfg.OUTPUT_DIR), self.run_state])

    def build_hooks(self) -> list[HookBase]:
        """Timer, schedule, progress, evaluation; writers after it, for its scores; checkpoints, and stopping last."""
        cfg, main = self.cfg, comm.is_main_process()
        self.writers = self.build_writers() if main else []
        built: list[HookBase | None] = [
            hooks.IterationTimer(),
            hooks.LRScheduler(),
            self.ema,
            ProgressBar() if main and interactive() else None,
            DataTime() if main else None,
            Checkpoints(self.run_state, cfg.SOLVER.CHECKPOINT_PERIOD, ahead_of=cfg.TEST.EVAL_PERIOD),
            Evaluation(cfg.TEST.EVAL_PERIOD, self._evaluate, self.run_state),
            build_selection(cfg, self.run_state.save),
            Writers(self.writers, period=20) if main else None,
            Checkpoints(self.run_state, cfg.SOLVER.CHECKPOINT_PERIOD),
            StopOnSignal(self.run_state),
        ]
        return [hook for hook in built if hook]

    def build_writers(self) -> list[EventWriter]:
        """Those of WRITERS, and log lines where there is no terminal for a progress bar."""
        writers = build_trackers(self.cfg)
        if "json" in self.cfg.WRITERS:
            writers.append(MetricsFile(f"{self.cfg.OUTPUT_DIR}/metrics.json"))
        if "tensorboard" in self.cfg.WRITERS:
            writers.append(EventsFile(self.cfg.OUTPUT_DIR))
        return writers if interactive() else [LogLines(self.max_iter), *writers]

    def run_step(self) -> None:
        """One iteration.

        Raises:
            NotFinite: a loss is not; the batch is kept for ``seg-ext train --replay``.
        """
        rng = torch_rng_state()
        try:
            super().run_step()
        except FloatingPointError as error:
            raise explain(
                error,
                getattr(self._trainer, "batch", []),
                iteration=self.iter,
                model=self.checkpointer.model,
                optimizer=self._trainer.optimizer,
                rng=rng,
                folder=Path(self.cfg.OUTPUT_DIR),
            ) from error

    def train(self) -> Results:
        """Train from ``start_iter`` to SOLVER.MAX_ITER or an early stop; returns the last evaluation's results."""
        try:
            with trained_weights(self._trainer.optimizer), suppress(StoppedEarly):
                TrainerBase.train(self, self.start_iter, self.max_iter)
        finally:
            STOP.release()
        return getattr(self, "_last_eval_results", {})

    def _evaluate(self) -> Results:
        model = self.checkpointer.model  # not wrapped: ranks have unequal shares of the images
        ema = self.ema.averaged() if self.ema else nullcontext()
        with averaged_weights(self._trainer.optimizer), ema, unchanged_rng(), uncompiled(self.cfg):
            if comm.get_world_size() > 1:
                for buffer in model.buffers():  # each rank has BatchNorm statistics of its own: score the first one's
                    dist.broadcast(buffer, 0)
            results = self.test(self.cfg, model)
            if self.cfg.TEST.VALIDATION_LOSS:
                results = merged(results, validation_losses(self.cfg, model))
        self._last_eval_results = results
        self.evaluation = min(self.iter, self.max_iter - 1), results
        return results

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
