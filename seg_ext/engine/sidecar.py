"""The sidecar of a config: what every checkpoint of its model says of itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from seg_ext.checkpoint.sidecar import FORMAT, METADATA, plain
from seg_ext.config import embeds_instances, has_instances, has_semantics
from seg_ext.evaluation.report import versions


def sidecar_of(
    cfg: CfgNode,
    *,
    classes: Mapping[str, Sequence[str]] | None = None,
    source: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """What :mod:`seg_ext.checkpoint.sidecar` lists, but for the scores.

    Args:
        cfg: resolved; the classes and colours are those of its data sets, as far as these are registered.
        classes: names by "semantic" and "instance", instead of the data sets'.
        source: of imported weights: library, network, file.
    """
    metadata: dict[str, Any] = {}
    if classes is None:
        for name in dict.fromkeys([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]):
            known = MetadataCatalog.get(name).as_dict()
            metadata |= {key: plain(known[key]) for key in METADATA if key in known and key not in metadata}
    else:
        keys = {"semantic": "stuff_classes", "instance": "thing_classes"}
        metadata = {keys[kind]: list(names) for kind, names in classes.items() if names}
    task = task_of(cfg)
    return {
        "format": FORMAT,
        "task": task,
        "decoder": "" if task == "instance" else cfg.MODEL.SEM_SEG_HEAD.DECODER.NAME,
        "backbone": cfg.MODEL.BACKBONE.NAME,
        "config": cfg.dump(),
        "metadata": metadata,
        "thing_ids": list(cfg.MODEL.SEM_SEG_HEAD.THING_IDS),
        "preprocessing": {
            "channels": cfg.INPUT.FORMAT,
            "mean": list(cfg.MODEL.PIXEL_MEAN),
            "std": list(cfg.MODEL.PIXEL_STD),
            "short side": cfg.INPUT.MIN_SIZE_TEST or "as it is",
            "long side at most": cfg.INPUT.MAX_SIZE_TEST if cfg.INPUT.MIN_SIZE_TEST else "as it is",
        },
        "versions": versions(),
        **({"source": ", ".join(source.values())} if source else {}),
    }


def task_of(cfg: CfgNode) -> str:
    """What the model of a config does: "semantic", "instance" or "panoptic"."""
    instances = has_instances(cfg) or embeds_instances(cfg)
    return ("panoptic" if instances else "semantic") if has_semantics(cfg) else "instance"
