"""Exports of what a config and its weights describe: the file with its proof, and int8."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from torch import nn

from seg_ext.config import embeds_instances
from seg_ext.engine.evaluate import evaluate_on
from seg_ext.engine.loaders import build_test_loader
from seg_ext.engine.predictor import Predictor
from seg_ext.engine.sidecar import task_of
from seg_ext.errors import UserError
from seg_ext.evaluation.output_files import replacing
from seg_ext.export import EXPORTERS, Check, Graph, InstanceGraph, SemanticGraph, verify
from seg_ext.export.document import describe
from seg_ext.export.formats import load_onnx
from seg_ext.export.onnx_model import OnnxModel
from seg_ext.export.verify import TOLERANCE


@dataclass(frozen=True)
class Exported:
    """A file that was kept, its graph and what showed that it equals the model."""

    file: Path
    format: str
    graph: Graph
    checks: list[Check]

    @property
    def summary(self) -> str:
        """What the comparison showed."""
        known = [check.difference for check in self.checks if check.difference is not None]
        by = f"scores differ from the model's by {max(known):.1e} at most, " if known else ""
        least = min(check.agreement for check in self.checks)
        return f"{by}{least:.4%} of labels the same at {len(self.checks)} sizes and batches"


def load(cfg: CfgNode) -> Predictor:
    """The model of a config on the CPU, in eager mode, with MODEL.WEIGHTS.

    Raises:
        UserError: no weights, weights that are not the model's, or TEST.PRUNE, which makes it another model.
    """
    if cfg.TEST.get("PRUNE"):
        raise UserError(f"TEST.PRUNE {cfg.TEST.PRUNE}: cut the weights with `seg-ext prune` first and export those")
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    return Predictor(cfg)


def export(
    predictor: Predictor,
    file: Path,
    *,
    format: str,
    task: str | None = None,
    preprocessing: bool = False,
    labels: bool = False,
    tolerance: float = TOLERANCE,
) -> Exported:
    """Write the model to ``file``, which is kept only where it gives what the model gives.

    Args:
        predictor: of :func:`load`.
        file: the name it is to have.
        format: one of :data:`seg_ext.export.EXPORTERS`.
        task: "semantic", "instance" or "panoptic"; None for the model's own.
        preprocessing: see :class:`seg_ext.export.SemanticGraph`.
        labels: likewise.
        tolerance: greatest difference of scores that passes.

    Raises:
        UserError: a model that the format does not take, packages that are missing, a file that differs from the model
            or cannot be written.
    """
    exporter, cfg = EXPORTERS[format], predictor.config
    exporter.check(format)
    graph = graph_of(cfg, predictor.model, format, task or task_of(cfg), preprocessing=preprocessing, labels=labels)
    document = describe(
        graph,
        image_format=cfg.INPUT.FORMAT,
        augmentations=predictor.mapper.augmentations.augs,
        metadata=predictor.metadata,
        ignore=cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
    )
    with replacing(file) as temporary:
        try:
            exporter.write(graph, temporary, json.dumps(document))
            run = exporter.load(temporary)
        except OSError:
            raise
        except Exception as error:  # each format has its own
            reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise UserError(f"--format {format} cannot hold this model: {reason}") from error
        checks = verify(graph, run, tolerance=tolerance)
    return Exported(file, format, graph, checks)


def quantize_export(
    cfg: CfgNode, exported: Exported, file: Path, *, data: str, images: int, max_drop: float
) -> dict[str, Any]:
    """Write the int8 form of an ONNX export, which is kept only where it costs no more than ``max_drop`` of mIoU.

    Args:
        cfg: of the model.
        exported: scores from normalised images, of format onnx.
        file: the name it is to have.
        data: data set whose first images set the ranges, and on all of whose images both forms are scored.
        images: that set the ranges, at most.
        max_drop: points of mIoU that float32 may be better by.

    Returns:
        The card's "int8".

    Raises:
        UserError: another export, a data set without label maps, or the cost passes the limit.
    """
    from seg_ext.export.quantize import latency_ratio, quantize

    graph = exported.graph
    if exported.format != "onnx" or graph.preprocessing or "scores" not in graph.outputs:
        raise UserError("--int8 goes with --format onnx, without --with-preprocessing and --labels")
    if data not in DatasetCatalog:
        raise UserError(f"--calibration {data}: no such data set; `seg-ext list datasets` names those that are known")
    inputs = _batches(cfg, graph, data)
    with replacing(file) as temporary:
        count = quantize(exported.file, temporary, islice(inputs, images))
        before, after = (_miou(cfg, graph, path, data) for path in (exported.file, temporary))
        found = {
            "bytes": temporary.stat().st_size,
            "float_bytes": exported.file.stat().st_size,
            "latency_ratio": latency_ratio(exported.file, temporary, next(_batches(cfg, graph, data))),
            "miou": after,
            "float_miou": before,
            "calibration": {"data": data, "images": count},
        }
        if not before - after <= max_drop:
            raise UserError(
                f"int8 costs {before - after:.2f} points of mIoU on {data} ({before:.2f} to {after:.2f}), more than "
                f"--max-drop {max_drop}: not kept; calibrate with more --images, or stay with float32"
            )
    return found


def graph_of(cfg: CfgNode, model: nn.Module, format: str, task: str, *, preprocessing: bool, labels: bool) -> Graph:
    """What of a model is exported for a task.

    Args:
        cfg: of the model.
        model: that it is taken of.
        format: of the file.
        task: "semantic", "instance" or "panoptic".
        preprocessing: see :class:`seg_ext.export.SemanticGraph`.
        labels: likewise.

    Raises:
        UserError: the model has no such task, or the format or an option does not take it.
    """
    own = task_of(cfg)
    if task not in (own, *(("semantic", "instance") if own == "panoptic" else ())):
        raise UserError(f"--task {task}: the config's model is of the task {own}")
    if preprocessing and cfg.INPUT.FORMAT == "BANDS":
        raise UserError("--with-preprocessing takes 8-bit images; INPUT.FORMAT BANDS has no range of its own")
    if task == "semantic":
        return SemanticGraph(model, preprocessing=preprocessing, labels=labels)
    half = "; --task semantic exports the semantic half" if own == "panoptic" else ""
    if embeds_instances(cfg):
        raise UserError(f"--task {task}: Panoptic-DeepLab's grouping of pixels is not part of a graph{half}")
    if EXPORTERS[format].refuses:
        raise UserError(
            f"--format {format} does not take Mask R-CNN: {EXPORTERS[format].refuses}; torchscript does{half}"
        )
    if preprocessing or labels:
        raise UserError(f"--with-preprocessing and --labels go with semantic models, not with --task {task}")
    return InstanceGraph(model, semantic=task == "panoptic")


def _batches(cfg: CfgNode, graph: Graph, data: str) -> Iterator[np.ndarray]:
    """The graph's input for each image of a data set."""
    for inputs in build_test_loader(cfg, data):
        yield ((inputs[0]["image"].float() - graph.pixel_mean) / graph.pixel_std)[None].numpy()


def _miou(cfg: CfgNode, graph: Graph, file: Path, data: str) -> float:
    cfg = cfg.clone()
    cfg.defrost()
    for head in (cfg.MODEL.ROI_HEADS, cfg.MODEL.PROPOSAL_GENERATOR, cfg.MODEL.INS_EMBED_HEAD):
        head.NAME = ""  # the file has none
    model = OnnxModel(load_onnx(file), pixel_mean=graph.pixel_mean, pixel_std=graph.pixel_std).eval()
    scores = evaluate_on(cfg, model, data, limit=len(DatasetCatalog.get(data))).get("sem_seg", {})
    if "mIoU" not in scores:
        raise UserError(f"--calibration {data}: has no label maps, which the mIoU of int8 is taken on")
    return float(scores["mIoU"])
