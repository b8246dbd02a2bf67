"""Data loaders from a config around the one mapper: the endless training stream, and detectron2's test loader."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader, get_detection_dataset_dicts
from detectron2.data.samplers import RandomSubsetTrainingSampler, RepeatFactorTrainingSampler, TrainingSampler
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch.utils.data import Sampler

from seg_ext.checkpoint import write_whole
from seg_ext.config import has_instances, has_semantics
from seg_ext.data.mapper import SegMapper
from seg_ext.data.stream import TrainLoader
from seg_ext.engine.checks import check_records
from seg_ext.errors import UserError

logger = logging.getLogger(__name__)

Records = list[dict[str, Any]]

SAMPLERS = (
    "TrainingSampler",
    "RandomSubsetTrainingSampler",
    "RepeatFactorTrainingSampler",
    "WeightedTrainingSampler",
    "WeightedCategoryTrainingSampler",
)


def training_sets(cfg: CfgNode) -> dict[str, Records]:
    """The records of each set in DATASETS.TRAIN.

    Raises:
        UserError: no set named, or one twice; none of its images is usable, or they do not fit the config.
    """
    names = list(cfg.DATASETS.TRAIN)
    if not names:
        raise UserError("DATASETS.TRAIN is empty: name at least one data set")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"DATASETS.TRAIN names {twice[0]} twice; to show it more often takes TRAIN_REPEAT_FACTOR")
    filter_empty = cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS and has_instances(cfg) and not has_semantics(cfg)
    least = cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE if filter_empty and cfg.MODEL.KEYPOINT_ON else 0
    sets = {name: _records([name], filter_empty, least) for name in names}
    check_records(cfg, sets)
    return sets


def build_train_loader(
    cfg: CfgNode, sets: dict[str, Records] | None = None, *, start: int = 0, pending: Collection[int] = ()
) -> TrainLoader:
    """Endless shuffled batches of the sets in DATASETS.TRAIN, of this process.

    Samples follow from SEED, rank and position in the stream; a negative SEED is drawn, the same for all processes.

    Args:
        cfg: the config.
        sets: what :func:`training_sets` gives, where it was called before.
        start: position to begin with, as :class:`TrainLoader` has it.
        pending: likewise.

    Raises:
        UserError: as :func:`training_sets`, or DATALOADER or SOLVER keys that do not fit.
    """
    sets, processes = sets or training_sets(cfg), comm.get_world_size()
    if cfg.SOLVER.IMS_PER_BATCH < 1 or cfg.SOLVER.IMS_PER_BATCH % processes:
        raise UserError(
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}; it is a multiple of {processes} processes"
        )
    seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
    return TrainLoader(
        [record for records in sets.values() for record in records],
        SegMapper(cfg, is_train=True),
        _sampler(cfg, sets, seed),
        batch_size=cfg.SOLVER.IMS_PER_BATCH // processes,
        seed=seed,
        rank=comm.get_rank(),
        group=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        workers=cfg.DATALOADER.NUM_WORKERS,
        on_error=cfg.DATALOADER.ON_ERROR,
        start=start,
        pending=pending,
    )


def build_test_loader(cfg: CfgNode, name: str, *, mapper: SegMapper | None = None) -> Any:
    """The images of one set, once each, in order, by the config's test mapper or another; every process its share."""
    records = _records([name], False)
    return build_detection_test_loader(
        records,
        mapper=mapper or SegMapper(cfg, is_train=False),
        num_workers=min(cfg.DATALOADER.NUM_WORKERS, len(records)),
    )


class ReportSkipped(HookBase):
    """At the end of training, however it ends, says which samples the loader skipped, and writes skipped.json.

    The file has what is wrong with each, and how often it was met; rank r > 0 writes its own to skipped_r.json.
    """

    def __init__(self, loader: TrainLoader, folder: str | Path) -> None:
        rank = comm.get_rank()
        self._loader, self._file = loader, Path(folder) / (f"skipped_{rank}.json" if rank else "skipped.json")

    def after_train(self) -> None:
        """Report, if there is anything to."""
        skipped = self._loader.skipped
        if skipped:
            write_whole(self._file, lambda stream: stream.write(json.dumps(skipped, indent=1).encode()))
            first = "; ".join(list(skipped)[:3])
            samples = f"{sum(skipped.values())} samples of {len(skipped)} training images"
            logger.warning("skipped %s that cannot be read, listed in %s: %s", samples, self._file, first)


def _records(names: list[str], filter_empty: bool, min_keypoints: int = 0) -> Records:
    try:
        return get_detection_dataset_dicts(
            names, filter_empty=filter_empty, min_keypoints=min_keypoints, check_consistency=False
        )
    except AssertionError as error:
        raise UserError(f"data set {', '.join(names)} has no usable image: {error}") from error
    except OSError as error:  # of detectron2's own sets, which look for nothing before
        raise UserError(f"data set {', '.join(names)} cannot be loaded: {' '.join(str(error).split())}") from error


def _sampler(cfg: CfgNode, sets: dict[str, Records], seed: int) -> Sampler[int]:
    """detectron2's sampler of this name, whose stream follows from the seed."""
    loader, size = cfg.DATALOADER, sum(map(len, sets.values()))
    if loader.SAMPLER_TRAIN not in SAMPLERS:
        raise UserError(f"DATALOADER.SAMPLER_TRAIN is {loader.SAMPLER_TRAIN!r}; it is one of {', '.join(SAMPLERS)}")
    if loader.SAMPLER_TRAIN == "TrainingSampler":
        return TrainingSampler(size, seed=seed)
    if loader.SAMPLER_TRAIN == "RandomSubsetTrainingSampler":
        if not 1 <= size * loader.RANDOM_SUBSET_RATIO <= size:
            raise UserError(f"DATALOADER.RANDOM_SUBSET_RATIO is {loader.RANDOM_SUBSET_RATIO}; it takes 1 to all images")
        return RandomSubsetTrainingSampler(size, loader.RANDOM_SUBSET_RATIO, seed_shuffle=seed, seed_subset=seed)
    by_set = _repeat_factors(cfg, sets) if loader.SAMPLER_TRAIN.startswith("Weighted") else {}
    factors = {name: torch.full((len(records),), by_set.get(name, 1.0)) for name, records in sets.items()}
    if loader.SAMPLER_TRAIN == "RepeatFactorTrainingSampler":
        return RepeatFactorTrainingSampler(_by_class(cfg, [r for s in sets.values() for r in s]), seed=seed)
    if loader.SAMPLER_TRAIN == "WeightedCategoryTrainingSampler":
        both = torch.cat([factors[name] * _by_class(cfg, records) for name, records in sets.items()])
        return RepeatFactorTrainingSampler(both / both.min(), seed=seed)
    return RepeatFactorTrainingSampler(torch.cat(list(factors.values())), seed=seed)


def _repeat_factors(cfg: CfgNode, sets: Collection[str]) -> dict[str, float]:
    """DATASETS.TRAIN_REPEAT_FACTOR by data set."""
    key = "DATASETS.TRAIN_REPEAT_FACTOR"
    factors: dict[str, float] = {}
    for entry in cfg.DATASETS.TRAIN_REPEAT_FACTOR:
        try:
            name, factor = entry
            factors[name] = float(factor)
        except (TypeError, ValueError) as error:
            raise UserError(f"{key} has {entry!r}: takes [name, factor]") from error
        if name not in sets:
            raise UserError(f"{key}: {name} is not in DATASETS.TRAIN")
        if not 0 < factors[name] < math.inf:
            raise UserError(f"{key} has {factor} for {name}: takes a number above 0")
    return factors


def _by_class(cfg: CfgNode, records: Records) -> torch.Tensor:
    """(N,) how often to show each record, by the rarest class in it."""
    if not all("annotations" in record for record in records):
        raise UserError(f"DATALOADER.SAMPLER_TRAIN {cfg.DATALOADER.SAMPLER_TRAIN} needs data sets with instances")
    return RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
        records, cfg.DATALOADER.REPEAT_THRESHOLD, sqrt=cfg.DATALOADER.REPEAT_SQRT
    )
