"""The training's losses on the test sets: without augmentation, dropout or a step of BatchNorm's statistics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from seg_ext.data.mapper import SegMapper
from seg_ext.data.stream import seeded
from seg_ext.engine.interrupt import STOP
from seg_ext.engine.loaders import build_test_loader
from seg_ext.errors import UserError

Results = dict[str, dict[str, float]]


def validation_losses(cfg: CfgNode, model: nn.Module, *, limit: int | None = None) -> Results:
    """Means over the images of every set of DATASETS.TEST, one image at a time, whatever the number of processes.

    Args:
        cfg: the config.
        model: not wrapped.
        limit: of images a set and process.

    Returns:
        ``{"validation": {"total_loss": ..., and every loss}}``, by data set first when there are several; empty on all
        processes but the first.

    Raises:
        UserError: a set whose images have no ground truth that the model could be trained with.
    """
    results = {name: _on(cfg, model, name, limit) for name in cfg.DATASETS.TEST}
    if not comm.is_main_process():
        return {}
    return next(iter(results.values()), {}) if len(results) < 2 else results  # type: ignore[return-value]


def merged(first: Results, second: Results) -> Results:
    """Results of both, as :func:`seg_ext.engine.evaluate.evaluate` gives them."""
    return {**first, **{key: {**first.get(key, {}), **value} for key, value in second.items()}}


def _on(cfg: CfgNode, model: nn.Module, name: str, limit: int | None) -> Results:
    sums: dict[str, float] = {}  # in double precision, which is exact enough for any order of the images
    images = 0
    with loss_mode(model), torch.no_grad(), EventStorage():  # detectron2's heads write to one, not to the training's
        for inputs in STOP.until(islice(build_test_loader(cfg, name, mapper=_mapper(cfg)), limit)):
            with _drawn_alike(inputs[0]):
                losses = model(inputs)
            for key, loss in losses.items():
                sums[key] = sums.get(key, 0.0) + loss.item()
            images += len(inputs)
    shares = comm.gather((sums, images))
    if not shares:
        return {}
    count = sum(number for _, number in shares)
    names = dict.fromkeys(key for share, _ in shares for key in share)
    if not names:
        raise UserError(f"TEST.VALIDATION_LOSS: the model gives no loss on data set {name}; has it ground truth?")
    means = {key: sum(share.get(key, 0.0) for share, _ in shares) / count for key in names}
    return {"validation": {"total_loss": sum(means.values()), **means}}


@contextmanager
def _drawn_alike(image: dict[str, Any]) -> Iterator[None]:
    """Regions that are drawn from an image are the same in each evaluation; leaves a GPU's generator seeded."""
    seed = crc32(Path(image["file_name"]).name.encode())
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(seed)
    with seeded(seed):
        yield


def _mapper(cfg: CfgNode) -> SegMapper:
    """The training's ground truth on images as they are evaluated."""
    trained, tested = (SegMapper.from_config(cfg, is_train) for is_train in (True, False))
    return SegMapper(**{**trained, "augmentations": tested["augmentations"], "copy_paste": None})


@contextmanager
def loss_mode(model: nn.Module) -> Iterator[None]:
    """A model that gives losses, with every norm and dropout as in evaluation; each part's mode is put back."""
    modes = {module: module.training for module in model.modules()}
    model.train()
    for module in modes:
        if isinstance(module, (_NormBase, _DropoutNd)) or "drop" in type(module).__name__.lower():
            module.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
