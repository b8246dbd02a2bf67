"""Checks of a config against the data it names, before anything is built."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, ROI_HEADS_REGISTRY, SEM_SEG_HEADS_REGISTRY
from fvcore.common.registry import Registry

import seg_ext.data  # noqa: F401  registers data sets
import seg_ext.modeling  # noqa: F401  registers backbones, heads and models
from seg_ext.config import embeds_instances, get_cfg, has_instances, has_semantics
from seg_ext.engine.predictors import check_predictor
from seg_ext.errors import UserError
from seg_ext.evaluation.instance import METRICS as INSTANCE_METRICS
from seg_ext.evaluation.semantic import METRICS as SEMANTIC_METRICS

logger = logging.getLogger(__name__)

_METRICS = {"SEMANTIC_METRICS": SEMANTIC_METRICS, "INSTANCE_METRICS": INSTANCE_METRICS}
_CLASS_COUNTS = ("MODEL.SEM_SEG_HEAD.NUM_CLASSES", "MODEL.ROI_HEADS.NUM_CLASSES")


def complete_config(cfg: CfgNode, given: Mapping[str, str] | None = None) -> None:
    """Check names and class counts, and fill in what follows from machine and data, in place.

    That is the device, the thing ids, and every head's NUM_CLASSES that nobody has set.

    Args:
        cfg: not frozen.
        given: where each key that is no default was set, see :func:`seg_ext.config.given_keys`; None where that is not
            known: every NUM_CLASSES then counts as set.

    A head learns from those data sets that have its ground truth; one at least must.

    Raises:
        UserError: an unknown device, data set, architecture, backbone or head; NUM_CLASSES that contradicts the data;
            data without the ground truth that a head needs; metadata whose things and stuff contradict each other.
    """
    places = dict.fromkeys(_CLASS_COUNTS, "the config") if given is None else dict(given)
    _check_machine(cfg)
    _check_name("MODEL.META_ARCHITECTURE", cfg.MODEL.META_ARCHITECTURE, META_ARCH_REGISTRY)
    _check_name("MODEL.BACKBONE.NAME", cfg.MODEL.BACKBONE.NAME, BACKBONE_REGISTRY)
    if has_semantics(cfg):
        _check_name("MODEL.SEM_SEG_HEAD.NAME", cfg.MODEL.SEM_SEG_HEAD.NAME, SEM_SEG_HEADS_REGISTRY)
    if has_instances(cfg):
        _check_name("MODEL.ROI_HEADS.NAME", cfg.MODEL.ROI_HEADS.NAME, ROI_HEADS_REGISTRY)
    if cfg.MODEL.META_ARCHITECTURE != "PanopticSegmentor" and cfg.MODEL.BN != get_cfg().MODEL.BN:
        raise UserError(f"MODEL.BN is for MODEL.META_ARCHITECTURE PanopticSegmentor, not {cfg.MODEL.META_ARCHITECTURE}")
    for key, metrics in _METRICS.items():
        unknown = [metric for metric in cfg.TEST[key] if metric not in metrics]
        if unknown:
            raise UserError(f"TEST.{key}: unknown {unknown[0]!r}; takes some of {', '.join(metrics)}")
    sets: dict[str, Metadata] = {}
    for key in ("TRAIN", "TEST"):
        for name in cfg.DATASETS[key]:
            if name not in DatasetCatalog.list():
                known = DatasetCatalog.list()
                near = difflib.get_close_matches(name, known, n=1) or known[-4:]
                raise UserError(f"DATASETS.{key}: unknown data set {name!r}; did you mean {', '.join(near)}?")
        chosen = {name: MetadataCatalog.get(name) for name in cfg.DATASETS[key]}
        _check_ground_truth(cfg, chosen, each=key == "TEST")
        sets |= chosen
    for name, metadata in sets.items():
        _check_classes(cfg, name, metadata, places)
    embedded, head = embeds_instances(cfg), cfg.MODEL.SEM_SEG_HEAD
    if has_semantics(cfg) and (has_instances(cfg) or embedded) and not head.THING_IDS:
        head.THING_IDS = list(_thing_ids(list(sets.values())))
    if has_semantics(cfg) and embedded and not cfg.MODEL.INS_EMBED_HEAD.THING_CLASSES:
        cfg.MODEL.INS_EMBED_HEAD.THING_CLASSES = _embedded_classes(sets, head.THING_IDS)
    check_predictor(cfg)


def check_records(cfg: CfgNode, sets: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Check the loaded training data against the heads.

    Args:
        cfg: a complete one.
        sets: records by data set.

    Raises:
        UserError: no record with the ground truth of a head, or an annotation of a class that the heads lack.
    """
    records = [record for each in sets.values() for record in each]
    for wanted, key, what in (
        (has_semantics(cfg), "sem_seg_file_name", f"label maps, and MODEL.SEM_SEG_HEAD {cfg.MODEL.SEM_SEG_HEAD.NAME}"),
        (has_instances(cfg), "annotations", f"instances, and MODEL.ROI_HEADS {cfg.MODEL.ROI_HEADS.NAME}"),
    ):
        if wanted and not any(key in record for record in records):
            raise UserError(
                f"data set {', '.join(sets)}: none of {len(records)} images has {what} needs them; take other data, or"
                " empty its NAME"
            )
    if not has_instances(cfg):
        return
    known = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    for record in records:
        for annotation in record.get("annotations", ()):
            if not 0 <= annotation["category_id"] < known:
                raise UserError(
                    f"{record['file_name']}: an annotation of class {annotation['category_id']}; MODEL.ROI_HEADS."
                    f"NUM_CLASSES {known} takes 0 to {known - 1}: is the data set's category id map complete?"
                )


def thing_sem_seg_ids(metadata: Metadata) -> tuple[int, ...]:
    """Semantic ids that denote things: stated in the metadata, else detectron2's merged class, else by equal names."""
    if hasattr(metadata, "thing_sem_seg_ids"):
        return tuple(metadata.thing_sem_seg_ids)
    names = list(getattr(metadata, "stuff_classes", []))
    if names and names[0] == "things":
        return (0,)
    if _one_numbering(metadata):
        return tuple(sorted(metadata.thing_dataset_id_to_contiguous_id.values()))
    return tuple(i for i, name in enumerate(names) if name in getattr(metadata, "thing_classes", []))


def _check_machine(cfg: CfgNode) -> None:
    """Refuse a device or a number of workers that torch would; without a GPU the CPU takes its place."""
    name, gpus = cfg.MODEL.DEVICE, torch.cuda.device_count()
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise UserError(f"MODEL.DEVICE {name!r}: takes cpu, cuda, or one of several GPUs as cuda:1") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        logger.warning("no GPU found: running on the CPU (MODEL.DEVICE cpu)")
        cfg.MODEL.DEVICE = "cpu"
    elif device.type == "cuda" and (device.index or 0) >= gpus:
        raise UserError(f"MODEL.DEVICE {name}: this machine has {gpus} GPU{'s' * (gpus > 1)}, from cuda:0 on")
    if cfg.DATALOADER.NUM_WORKERS < 0:
        raise UserError(f"DATALOADER.NUM_WORKERS {cfg.DATALOADER.NUM_WORKERS}: takes a number of processes, or 0")


def _check_name(key: str, name: str, registry: Registry) -> None:
    known = [entry for entry, _ in registry]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1) or known
        raise UserError(f"{key} {name!r} is not registered; did you mean {', '.join(near)}?")


def _check_ground_truth(cfg: CfgNode, sets: Mapping[str, Metadata], *, each: bool) -> None:
    """Refuse data sets without what a head needs: all sets of training together, or each one of any."""
    lacking: dict[str, list[str]] = {"MODEL.SEM_SEG_HEAD": [], "MODEL.ROI_HEADS": []}
    wanted = {"MODEL.SEM_SEG_HEAD": has_semantics(cfg), "MODEL.ROI_HEADS": has_instances(cfg)}
    for name, metadata in sets.items():
        absent = {"MODEL.SEM_SEG_HEAD": metadata.get("stuff_classes"), "MODEL.ROI_HEADS": metadata.get("thing_classes")}
        missing = [head for head, classes in absent.items() if wanted[head] and classes is None]
        for head in missing:
            lacking[head].append(name)
        if missing and len(missing) == sum(wanted.values()):
            raise UserError(_says_lacking(cfg, missing[0], name, metadata))
    for head, names in lacking.items():
        if names and not each and len(names) == len(sets):
            raise UserError(_says_lacking(cfg, head, names[0], sets[names[0]]))


def _says_lacking(cfg: CfgNode, head: str, name: str, metadata: Metadata) -> str:
    source = metadata.get("defined_in", "where it is registered")
    if head == "MODEL.SEM_SEG_HEAD":
        return (
            f"data set {name} has no semantic classes ({source}): it holds instances alone, and MODEL.SEM_SEG_HEAD"
            f" {cfg.MODEL.SEM_SEG_HEAD.NAME} needs label maps; take other data, or empty its NAME"
        )
    return (
        f"data set {name} has no instances ({source}): it holds label maps alone, and MODEL.ROI_HEADS"
        f" {cfg.MODEL.ROI_HEADS.NAME} needs COCO, panoptic or LabelMe annotations; take other data, or empty its NAME"
    )


def _check_classes(cfg: CfgNode, name: str, metadata: Metadata, places: dict[str, str]) -> None:
    source = metadata.get("defined_in", "where it is registered")
    stuff, things = metadata.get("stuff_classes"), metadata.get("thing_classes")
    if has_semantics(cfg) and stuff is not None:
        binary = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 1 and len(stuff) == 2 and _CLASS_COUNTS[0] in places
        if not binary:
            _settle(cfg.MODEL.SEM_SEG_HEAD, _CLASS_COUNTS[0], name, stuff, source, places)
    if has_instances(cfg) and things is not None:
        _settle(cfg.MODEL.ROI_HEADS, _CLASS_COUNTS[1], name, things, source, places)
    if has_semantics(cfg) and has_instances(cfg) and stuff is not None and things is not None:
        _check_things(name, metadata, source)


def _check_things(name: str, metadata: Metadata, source: str) -> None:
    """Refuse metadata in which a category is a thing here and stuff there."""
    ids = thing_sem_seg_ids(metadata)
    strange = [i for i in ids if not 0 <= i < len(metadata.stuff_classes)]
    if strange:
        raise UserError(
            f"data set {name}: thing_sem_seg_ids has {strange[0]} ({source}); takes 0 to"
            f" {len(metadata.stuff_classes) - 1}, one of its stuff_classes"
        )
    things = metadata.get("thing_dataset_id_to_contiguous_id") or {}
    for category, label in (metadata.get("stuff_dataset_id_to_contiguous_id") or {}).items():
        if metadata.stuff_classes[label] != "things" and (category in things) != (label in ids):
            kind = "a thing by thing_dataset_id_to_contiguous_id" if category in things else "no thing by its category"
            but = "not among" if category in things else "among"
            raise UserError(
                f"data set {name}: category {category} is {kind}, but its semantic class {label}"
                f" ({metadata.stuff_classes[label]}) is {but} thing_sem_seg_ids {list(ids)} ({source}); things and"
                " stuff must not overlap"
            )


def _one_numbering(metadata: Metadata) -> bool:
    """Whether things and stuff share one list of classes, as in detectron2's panoptic COCO and Cityscapes."""
    names = getattr(metadata, "stuff_classes", None)
    shared = bool(names) and list(names or ()) == list(getattr(metadata, "thing_classes", None) or ())
    return shared and bool(getattr(metadata, "thing_dataset_id_to_contiguous_id", None))


def _embedded_classes(sets: Mapping[str, Metadata], thing_ids: Sequence[int]) -> list[int]:
    """Instance class of each semantic id of a thing, for a head that finds instances in the semantic map."""
    for name, metadata in sets.items():
        things = list(metadata.get("thing_classes") or ())
        if things and _one_numbering(metadata):
            return list(thing_ids)
        if len(things) != len(thing_ids):
            raise UserError(
                f"data set {name} has {len(things)} classes of things, but {len(thing_ids)} of its semantic classes are"
                " things; MODEL.INS_EMBED_HEAD tells things by their semantic class: take label maps that have each"
            )
    return list(range(len(thing_ids)))


def _thing_ids(sets: Sequence[Metadata]) -> tuple[int, ...]:
    """Semantic ids of things: of the first set that has both kinds of classes, else by equal names over all sets."""
    for metadata in sets:
        if metadata.get("stuff_classes") and metadata.get("thing_classes"):
            return thing_sem_seg_ids(metadata)
    things = {name for metadata in sets for name in metadata.get("thing_classes") or ()}
    stuff: Sequence[str] = next((m.stuff_classes for m in sets if m.get("stuff_classes")), [])
    return tuple(i for i, name in enumerate(stuff) if name in things)


def _settle(head: CfgNode, key: str, name: str, classes: Sequence[str], source: str, places: dict[str, str]) -> None:
    """Take the number of classes from the data where nobody has set it, and refuse another one where somebody has."""
    if key not in places:
        head.NUM_CLASSES, places[key] = len(classes), f"data set {name}"
    if head.NUM_CLASSES != len(classes):
        raise UserError(
            f"{key} is {head.NUM_CLASSES}, but data set {name} has {len(classes)} classes: the former is set by"
            f" {places[key]}, the latter by {source}; set {key} {len(classes)}"
        )
