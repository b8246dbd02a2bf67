"""A training tried out: all is built, two iterations and an image a set; nothing is kept but what explains an error."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from functools import partial
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from time import perf_counter
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.evaluation.evaluator import inference_context
from detectron2.utils import comm
from detectron2.utils.events import EventStorage

from seg_ext.engine.evaluate import Results, evaluate_on
from seg_ext.engine.loaders import build_test_loader
from seg_ext.engine.schedule_free import trained_weights
from seg_ext.engine.selection import Selection
from seg_ext.engine.setup import start_logging, start_run
from seg_ext.engine.trainer import Trainer
from seg_ext.engine.validation_loss import merged, validation_losses
from seg_ext.errors import UserError


def dry_run(cfg: CfgNode, *, resume: bool = False) -> None:
    """Print what an iteration and an image cost, the memory they took, and how long the whole is expected to take.

    The first iteration warms up, the second is timed. OUTPUT_DIR is neither made nor written to; a batch whose losses
    are not finite stays in a folder that the error names.

    Args:
        cfg: not frozen; prepared as for a training.
        resume: begin with the last checkpoint in OUTPUT_DIR.

    Raises:
        UserError: what a training would raise up to its first evaluation, or OUTPUT_DIR cannot be written.
    """
    run_folder = cfg.OUTPUT_DIR
    _check_writable(Path(run_folder))
    with ExitStack() as stack:
        cfg.OUTPUT_DIR, cfg.TEST.GALLERY = mkdtemp(prefix="seg-ext-"), 0
        stack.callback(_discard, Path(cfg.OUTPUT_DIR))
        stack.callback(start_logging)  # lets go of that folder's log
        start_run(cfg)
        trainer = Trainer(cfg)
        for writer in trainer.writers:
            stack.callback(writer.close)
        trainer.checkpointer.save_dir = run_folder  # to read from
        trainer.resume_or_load(resume=resume)
        with EventStorage(trainer.iter) as trainer.storage, trained_weights(trainer._trainer.optimizer):
            _timed(trainer.run_step)
            seconds = _timed(trainer.run_step)
            if trainer.ema:
                trainer.ema.update()
            latest = trainer.storage.latest()
        images, image_seconds = _evaluate(cfg, trainer)
    if comm.is_main_process():
        values = {name: value for name, (value, _) in latest.items()}
        _report(cfg, trainer, values, seconds=seconds, images=images, image_seconds=image_seconds)


def _discard(folder: Path) -> None:
    """Remove the run's folder, unless it holds the batch that an error speaks of."""
    if not any(folder.glob("nonfinite_*")):
        rmtree(folder, ignore_errors=True)


def _evaluate(cfg: CfgNode, trainer: Trainer) -> tuple[int, float]:
    """One image of every test set; returns how many they have, and the network's seconds for one, warm."""
    model, images, seconds = trainer.checkpointer.model, 0, 0.0
    results: Results = {}
    for name in cfg.DATASETS.TEST:
        found: Any = evaluate_on(cfg, model, name, limit=1)
        results = merged(results, found if len(cfg.DATASETS.TEST) == 1 else {name: found})
        loader = build_test_loader(cfg, name)
        images += len(loader.dataset)
        inputs = next(iter(loader), None)
        if inputs:
            with inference_context(model), torch.no_grad():
                seconds = max(seconds, _timed(partial(model, inputs)))
    if cfg.TEST.VALIDATION_LOSS:
        results = merged(results, validation_losses(cfg, model, limit=1))
    for hook in trainer._hooks:
        if isinstance(hook, Selection) and comm.is_main_process():
            hook.check(results)
    return images, seconds


def _report(
    cfg: CfgNode, trainer: Trainer, values: dict[str, float], *, seconds: float, images: int, image_seconds: float
) -> None:
    parameters = list(trainer.checkpointer.model.parameters())
    count, trained = (sum(p.numel() for p in parameters if p.requires_grad or every) / 1e6 for every in (True, False))
    solver, processes = cfg.SOLVER, comm.get_world_size()
    left, period = solver.MAX_ITER - trainer.start_iter, cfg.TEST.EVAL_PERIOD
    evaluations = (left - 1) // period + 1 if period > 0 else 1
    training = left * seconds
    evaluating = evaluations * images * image_seconds / processes * (2 if cfg.TEST.VALIDATION_LOSS else 1)
    print(f"model: {count:.2f} M parameters, {trained:.2f} M of them trained")
    print(
        f"iteration: {seconds:.3f} s, {values['data_time']:.3f} s of it waiting for data;"
        f" batch {solver.IMS_PER_BATCH}, parts {solver.ACCUMULATE}, processes {processes}"
    )
    print("losses: " + ", ".join(f"{name} {value:.4g}" for name, value in values.items() if "loss" in name))
    if images:
        print(f"evaluation: {image_seconds:.3f} s an image in the network; images of all sets: {images}")
    print(f"memory: {_memory()}")
    print(
        f"expected: {_span(training + evaluating)}: {_span(training)} for {left} iterations, {_span(evaluating)} for"
        f" {evaluations} evaluation{'s' * (evaluations != 1)}, without reading and scoring"
    )


def _check_writable(folder: Path) -> None:
    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"OUTPUT_DIR {folder}: cannot be written: {nearest} is no folder to write to")


def _timed(call: Callable[[], Any]) -> float:
    """Seconds, until a GPU is done too."""
    start = perf_counter()
    call()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return perf_counter() - start


def _memory() -> str:
    """The most that was in use at any time."""
    unit = 1 if sys.platform == "darwin" else 1024
    text = f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.2f} GiB of the main process"
    if torch.cuda.is_initialized():
        total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        text += f", {torch.cuda.max_memory_reserved() / 2**30:.2f} of {total / 2**30:.2f} GiB of the GPU"
    return text


def _span(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
