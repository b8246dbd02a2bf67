"""The card of a model: what its config, its checkpoint and the results beside it say."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from seg_ext.checkpoint.locate import locate
from seg_ext.checkpoint.sidecar import metadata_of, read_sidecar
from seg_ext.config import get_cfg
from seg_ext.data.mapper import SegMapper
from seg_ext.engine.export import Exported
from seg_ext.engine.sidecar import task_of
from seg_ext.evaluation.report import read_results, versions
from seg_ext.export.card import UNSTATED, VERSION, Card, licence_of
from seg_ext.export.document import resize_steps

_WRAPPERS = ("SLIDING_WINDOW", "TTA", "MC_DROPOUT", "REFINE")


def make_card(
    cfg: CfgNode, *, exported: Exported | None = None, int8: Mapping[str, Any] | None = None, licence: str | None = None
) -> Card:
    """What is known of the model: from its config, its sidecar and the results.json beside its weights.

    Args:
        cfg: of the model.
        exported: its file, where the card is of one.
        int8: of :func:`quantize_export`.
        licence: of the data; None for what their publishers state, where that is known.
    """
    weights, sidecar = locate(cfg.MODEL.WEIGHTS), read_sidecar(cfg.MODEL.WEIGHTS)
    names = [*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN]
    metadata = MetadataCatalog.get(names[0]) if names else metadata_of(sidecar)
    data = _training_data(cfg, sidecar)
    classes = {"semantic": metadata.get("stuff_classes"), "instance": metadata.get("thing_classes")}
    task = exported.graph.task if exported else task_of(cfg)
    has = {"semantic": task != "instance", "instance": task != "semantic"}
    card: Card = {
        "card": VERSION,
        "name": exported.file.name if exported else weights.name,
        "task": task,
        "created": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "versions": versions(),
        "classes": {kind: list(found) for kind, found in classes.items() if has[kind] and found},
        "metrics": _metrics(weights, sidecar),
        "training": {"data": data, "config": cfg.dump()},
        "licence": {"data": licence or licence_of(data), "weights": UNSTATED},
        "preprocessing": {
            "channels": cfg.INPUT.FORMAT,
            "mean": list(cfg.MODEL.PIXEL_MEAN),
            "std": list(cfg.MODEL.PIXEL_STD),
            "resize": resize_steps(_test_steps(cfg)),
        },
        "limits": _limits(cfg, exported, data),
    }
    if exported is not None:
        content = exported.file.read_bytes()
        card["export"] = {
            "file": exported.file.name,
            "format": exported.format,
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "dynamic": list(exported.graph.dynamic.values()),
            "checks": [asdict(check) for check in exported.checks],
        }
    return card | ({"int8": dict(int8)} if int8 else {})


def _test_steps(cfg: CfgNode) -> Sequence[Any]:
    return SegMapper(cfg, is_train=False).augmentations.augs


def _training_data(cfg: CfgNode, sidecar: Mapping[str, Any]) -> list[str]:
    names = [str(name) for name in cfg.DATASETS.TRAIN]
    if names:
        return names
    carried = yaml.safe_load(str(sidecar.get("config", ""))) or {}
    return [str(name) for name in carried.get("DATASETS", {}).get("TRAIN", ())]


def _metrics(weights: Path, sidecar: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Scores of the run folder's results.json, and those that the weights carry."""
    found = []
    results = weights.parent / "results.json"
    if results.is_file():
        day = datetime.fromtimestamp(results.stat().st_mtime, timezone.utc).strftime("%Y-%m-%d")
        for name, tasks in read_results(results).scores.items():
            found.append({"data": name, "date": day, "scores": _known(tasks), "source": "results.json"})
    carried = sidecar.get("metrics", {})
    if carried.get("scores"):
        day = datetime.fromtimestamp(weights.stat().st_mtime, timezone.utc).strftime("%Y-%m-%d")
        source = f"checkpoint, iteration {carried.get('iteration')}"
        found.append({"data": "validation", "date": day, "scores": _known(carried["scores"]), "source": source})
    return found


def _known(scores: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is nan, which stands for no score, or infinite, which JSON cannot hold."""
    nested = {key: _known(value) if isinstance(value, Mapping) else value for key, value in scores.items()}
    return {key: value for key, value in nested.items() if not isinstance(value, float) or math.isfinite(value)}


def _limits(cfg: CfgNode, exported: Exported | None, data: list[str]) -> list[str]:
    of = f" ({', '.join(data)})" if data else ""
    limits = [
        f"Learned from one kind of data{of}; on other cameras, scales or places its scores are not known.",
        "What belongs to none of its classes still gets one of them.",
    ]
    default = get_cfg().TEST
    wrapped = [key for key in _WRAPPERS if key in cfg.TEST and cfg.TEST[key] != default[key]]
    if wrapped:
        limits.append(
            f"The scores are with {', '.join(f'TEST.{key}' for key in wrapped)}; the model alone has other ones."
        )
    if exported is None:
        return limits
    if exported.graph.task != task_of(cfg):
        limits.append(f"The file holds the {exported.graph.task} half of a {task_of(cfg)} model.")
    if exported.graph.task != "semantic":
        limits.append(
            "It takes one image at a time; masks lie in their boxes, and panoptic fusion is left to the caller."
        )
    if resize_steps(_test_steps(cfg)):
        limits.append("Images are resized as said under Input before they go in; the file does not do that.")
    sizes = ", ".join(dict.fromkeys(f"{check.height}x{check.width}" for check in exported.checks))
    if not sizes:
        return [*limits, "Its 8-bit scores differ from the model's; what that costs is said under int8."]
    return [*limits, f"Equality with the model was shown at {sizes} pixels (height x width) on noise."]
