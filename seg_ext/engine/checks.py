"""Checks of a config against the data it names, before anything is built."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY
from fvcore.common.registry import Registry

import seg_ext.data  # noqa: F401  registers data sets
import seg_ext.modeling  # noqa: F401  registers backbones, heads and models
from seg_ext.config import has_instances, has_semantics
from seg_ext.errors import UserError

logger = logging.getLogger(__name__)


def complete_config(cfg: CfgNode) -> None:
    """Check names and class counts, and fill in what follows from machine and data (device, thing ids), in place.

    Raises:
        UserError: an unknown data set, architecture, backbone or head; NUM_CLASSES that contradicts the data.
    """
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logger.warning("no GPU found: running on the CPU (MODEL.DEVICE cpu)")
        cfg.MODEL.DEVICE = "cpu"
    _check_name("MODEL.META_ARCHITECTURE", cfg.MODEL.META_ARCHITECTURE, META_ARCH_REGISTRY)
    _check_name("MODEL.BACKBONE.NAME", cfg.MODEL.BACKBONE.NAME, BACKBONE_REGISTRY)
    if cfg.MODEL.SEM_SEG_HEAD.NAME:
        _check_name("MODEL.SEM_SEG_HEAD.NAME", cfg.MODEL.SEM_SEG_HEAD.NAME, SEM_SEG_HEADS_REGISTRY)
    for key in ("TRAIN", "TEST"):
        for name in cfg.DATASETS[key]:
            if name not in DatasetCatalog.list():
                known = DatasetCatalog.list()
                near = difflib.get_close_matches(name, known, n=1) or known[-4:]
                raise UserError(f"DATASETS.{key}: unknown data set {name!r}; did you mean {', '.join(near)}?")
            _check_classes(cfg, name, MetadataCatalog.get(name))


def thing_sem_seg_ids(metadata: Metadata) -> tuple[int, ...]:
    """Semantic ids that denote things: stated in the metadata, else detectron2's merged class, else by equal names."""
    if hasattr(metadata, "thing_sem_seg_ids"):
        return tuple(metadata.thing_sem_seg_ids)
    names = list(getattr(metadata, "stuff_classes", []))
    if names and names[0] == "things":
        return (0,)
    return tuple(i for i, name in enumerate(names) if name in getattr(metadata, "thing_classes", []))


def _check_name(key: str, name: str, registry: Registry) -> None:
    known = [entry for entry, _ in registry]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1) or known
        raise UserError(f"{key} {name!r} is not registered; did you mean {', '.join(near)}?")


def _check_classes(cfg: CfgNode, name: str, metadata: Metadata) -> None:
    if has_semantics(cfg):
        classes = getattr(metadata, "stuff_classes", None)
        if classes is None:
            raise UserError(f"data set {name} has no semantic classes; empty MODEL.SEM_SEG_HEAD.NAME or choose another")
        binary = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 1 and len(classes) == 2
        if not binary:
            _compare("MODEL.SEM_SEG_HEAD.NUM_CLASSES", cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, name, classes)
    if has_instances(cfg):
        classes = getattr(metadata, "thing_classes", None)
        if classes is None:
            raise UserError(f"data set {name} has no instances; empty MODEL.ROI_HEADS.NAME or choose another data set")
        _compare("MODEL.ROI_HEADS.NUM_CLASSES", cfg.MODEL.ROI_HEADS.NUM_CLASSES, name, classes)
    if has_semantics(cfg) and has_instances(cfg) and not cfg.MODEL.SEM_SEG_HEAD.THING_IDS:
        cfg.MODEL.SEM_SEG_HEAD.THING_IDS = list(thing_sem_seg_ids(metadata))


def _compare(key: str, value: int, name: str, classes: Sequence[str]) -> None:
    if value != len(classes):
        raise UserError(f"{key} is {value}, but data set {name} has {len(classes)} classes; set {key} {len(classes)}")
