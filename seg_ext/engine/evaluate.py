"""Evaluation of a model on the sets of DATASETS.TEST."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.evaluation.evaluator import inference_context
from detectron2.utils import comm
from torch import nn
from tqdm import tqdm

from seg_ext.config import has_instances, has_semantics
from seg_ext.engine.loaders import build_test_loader
from seg_ext.engine.setup import interactive
from seg_ext.errors import UserError
from seg_ext.evaluation import EVALUATORS, InstanceEvaluator, PanopticEvaluator, SemanticEvaluator, results_table
from seg_ext.evaluation.gallery import Gallery

logger = logging.getLogger(__name__)
Results = dict[str, dict[str, float]]


def evaluate(cfg: CfgNode, model: nn.Module) -> Results:
    """Score ``model`` on every set of DATASETS.TEST; print a table, write ``results.json``.

    Returns:
        By task, then metric (percent), as detectron2's evaluators name them; by data set first when there are several.
    """
    results = {}
    for name in cfg.DATASETS.TEST:
        results[name] = evaluate_on(cfg, model, name)
        if comm.is_main_process():
            print(f"\n{name}\n{results_table(results[name])}", flush=True)
    merged: Any = results[cfg.DATASETS.TEST[0]] if len(results) == 1 else results
    if comm.is_main_process() and results:
        file = Path(cfg.OUTPUT_DIR) / "results.json"
        partial = file.with_suffix(".json.partial")
        partial.write_text(json.dumps(merged, indent=2) + "\n")
        partial.replace(file)
    return merged


def evaluate_on(cfg: CfgNode, model: nn.Module, name: str) -> Results:
    """Score ``model`` on one data set; empty on all processes but the first."""
    evaluators = build_evaluators(cfg, name)
    folder = Path(cfg.OUTPUT_DIR) / "gallery" / (name if len(cfg.DATASETS.TEST) > 1 else "")
    gallery = Gallery(name, folder, limit=cfg.TEST.GALLERY) if cfg.TEST.GALLERY else None
    chain: list[DatasetEvaluator] = [*evaluators, gallery] if gallery else list(evaluators)
    for evaluator in chain:
        evaluator.reset()
    loader = build_test_loader(cfg, name)
    with inference_context(model), torch.no_grad():
        for inputs in tqdm(loader, desc=f"evaluate {name}", unit="img", disable=not interactive(), leave=False):
            outputs = model(inputs)
            for evaluator in chain:
                evaluator.process(inputs, outputs)
    results: Results = {}
    for evaluator in chain:
        results.update(evaluator.evaluate() or {})
    if gallery and comm.is_main_process():
        logger.info("gallery: %s", gallery.write_summary(results))
    return results


def build_evaluators(cfg: CfgNode, name: str) -> list[DatasetEvaluator]:
    """The evaluators that the set's ground truth allows and the model's heads can serve.

    Raises:
        UserError: the data set states no evaluator type that seg_ext knows.
    """
    kind = getattr(MetadataCatalog.get(name), "evaluator_type", None)
    if kind not in EVALUATORS:
        raise UserError(f"data set {name}: evaluator_type {kind!r} in its metadata; takes {', '.join(EVALUATORS)}")
    semantics, instances = has_semantics(cfg), has_instances(cfg)
    tasks = ("bbox", "segm") if cfg.MODEL.MASK_ON else ("bbox",)
    served: dict[type[DatasetEvaluator], Callable[[str], DatasetEvaluator] | None] = {
        SemanticEvaluator: SemanticEvaluator if semantics else None,
        InstanceEvaluator: partial(InstanceEvaluator, tasks=tasks) if instances else None,
        PanopticEvaluator: PanopticEvaluator if semantics and instances and cfg.MODEL.MASK_ON else None,
    }
    return [build(name) for evaluator in EVALUATORS[kind] if (build := served[evaluator])]
