"""Data loaders from a config: detectron2's loaders around the one mapper."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader, build_detection_train_loader, get_detection_dataset_dicts

from seg_ext.config import has_instances, has_semantics
from seg_ext.data.mapper import SegMapper
from seg_ext.errors import UserError


def build_train_loader(cfg: CfgNode) -> Any:
    """Endless shuffled batches of the sets in DATASETS.TRAIN.

    Raises:
        UserError: no set named, or none of its images is usable.
    """
    names = list(cfg.DATASETS.TRAIN)
    if not names:
        raise UserError("DATASETS.TRAIN is empty: name at least one data set")
    filter_empty = cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS and has_instances(cfg) and not has_semantics(cfg)
    records = _records(names, filter_empty)
    return build_detection_train_loader(cfg, mapper=SegMapper(cfg, is_train=True), dataset=records)


def build_test_loader(cfg: CfgNode, name: str) -> Any:
    """The images of one set, once each, in order; every process gets its share."""
    records = _records([name], False)
    return build_detection_test_loader(
        records, mapper=SegMapper(cfg, is_train=False), num_workers=min(cfg.DATALOADER.NUM_WORKERS, len(records))
    )


def _records(names: list[str], filter_empty: bool) -> list[dict[str, Any]]:
    try:
        return get_detection_dataset_dicts(names, filter_empty=filter_empty, check_consistency=False)
    except AssertionError as error:
        raise UserError(f"data set {', '.join(names)} has no usable image: {error}") from error
