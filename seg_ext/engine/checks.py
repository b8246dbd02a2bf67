"""Checks of a config against the data it names, before anything is built."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY
from fvcore.common.registry import Registry

import seg_ext.data  # noqa: F401  registers data sets
import seg_ext.modeling  # noqa: F401  registers backbones, heads and models
from seg_ext.config import get_cfg, has_instances, has_semantics
from seg_ext.errors import UserError

logger = logging.getLogger(__name__)

_CLASS_COUNTS = ("MODEL.SEM_SEG_HEAD.NUM_CLASSES", "MODEL.ROI_HEADS.NUM_CLASSES")


def complete_config(cfg: CfgNode, given: Mapping[str, str] | None = None) -> None:
    """Check names and class counts, and fill in what follows from machine and data, in place.

    That is the device, the thing ids, and every head's NUM_CLASSES that nobody has set.

    Args:
        cfg: not frozen.
        given: where each key that is no default was set, see :func:`seg_ext.config.given_keys`; None where that is not
            known: every NUM_CLASSES then counts as set.

    Raises:
        UserError: an unknown data set, architecture, backbone or head; NUM_CLASSES that contradicts the data; data
            without the ground truth that a head needs.
    """
    places = dict.fromkeys(_CLASS_COUNTS, "the config") if given is None else dict(given)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logger.warning("no GPU found: running on the CPU (MODEL.DEVICE cpu)")
        cfg.MODEL.DEVICE = "cpu"
    _check_name("MODEL.META_ARCHITECTURE", cfg.MODEL.META_ARCHITECTURE, META_ARCH_REGISTRY)
    _check_name("MODEL.BACKBONE.NAME", cfg.MODEL.BACKBONE.NAME, BACKBONE_REGISTRY)
    if cfg.MODEL.SEM_SEG_HEAD.NAME:
        _check_name("MODEL.SEM_SEG_HEAD.NAME", cfg.MODEL.SEM_SEG_HEAD.NAME, SEM_SEG_HEADS_REGISTRY)
    if cfg.MODEL.META_ARCHITECTURE != "PanopticSegmentor" and cfg.MODEL.BN != get_cfg().MODEL.BN:
        raise UserError(f"MODEL.BN is for MODEL.META_ARCHITECTURE PanopticSegmentor, not {cfg.MODEL.META_ARCHITECTURE}")
    for key in ("TRAIN", "TEST"):
        for name in cfg.DATASETS[key]:
            if name not in DatasetCatalog.list():
                known = DatasetCatalog.list()
                near = difflib.get_close_matches(name, known, n=1) or known[-4:]
                raise UserError(f"DATASETS.{key}: unknown data set {name!r}; did you mean {', '.join(near)}?")
            _check_classes(cfg, name, MetadataCatalog.get(name), places)


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


def _check_classes(cfg: CfgNode, name: str, metadata: Metadata, places: dict[str, str]) -> None:
    source = metadata.get("defined_in", "where it is registered")
    stuff, things = metadata.get("stuff_classes"), metadata.get("thing_classes")
    if has_semantics(cfg):
        if stuff is None:
            raise UserError(
                f"data set {name} has no semantic classes ({source}): it holds instances alone, and MODEL.SEM_SEG_HEAD"
                f" {cfg.MODEL.SEM_SEG_HEAD.NAME} needs label maps; take other data, or empty its NAME"
            )
        binary = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 1 and len(stuff) == 2 and _CLASS_COUNTS[0] in places
        if not binary:
            _settle(cfg.MODEL.SEM_SEG_HEAD, _CLASS_COUNTS[0], name, stuff, source, places)
    if has_instances(cfg):
        if things is None:
            raise UserError(
                f"data set {name} has no instances ({source}): it holds label maps alone, and MODEL.ROI_HEADS"
                f" {cfg.MODEL.ROI_HEADS.NAME} needs COCO, panoptic or LabelMe annotations; take other data, or empty"
                " its NAME"
            )
        _settle(cfg.MODEL.ROI_HEADS, _CLASS_COUNTS[1], name, things, source, places)
    if has_semantics(cfg) and has_instances(cfg) and not cfg.MODEL.SEM_SEG_HEAD.THING_IDS:
        cfg.MODEL.SEM_SEG_HEAD.THING_IDS = list(thing_sem_seg_ids(metadata))


def _settle(head: CfgNode, key: str, name: str, classes: Sequence[str], source: str, places: dict[str, str]) -> None:
    """Take the number of classes from the data where nobody has set it, and refuse another one where somebody has."""
    if key not in places:
        head.NUM_CLASSES, places[key] = len(classes), f"data set {name}"
    if head.NUM_CLASSES != len(classes):
        raise UserError(
            f"{key} is {head.NUM_CLASSES}, but data set {name} has {len(classes)} classes: the former is set by"
            f" {places[key]}, the latter by {source}; set {key} {len(classes)}"
        )
