"""Evaluation of a model on the sets of DATASETS.TEST."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.evaluation.evaluator import inference_context
from detectron2.utils import comm
from detectron2.utils.events import has_event_storage
from torch import nn
from tqdm import tqdm

from seg_ext.config import embeds_instances, has_instances, has_semantics
from seg_ext.engine.interrupt import STOP
from seg_ext.engine.loaders import build_test_loader
from seg_ext.engine.pictures import Pictures
from seg_ext.engine.predictors import build_predictor
from seg_ext.engine.setup import interactive
from seg_ext.engine.writers import shows_pictures
from seg_ext.errors import UserError
from seg_ext.evaluation import (
    EVALUATORS,
    InstanceEvaluator,
    PanopticEvaluator,
    SemanticEvaluator,
    VocBoxEvaluator,
    results_table,
)
from seg_ext.evaluation.artifacts import Artifacts
from seg_ext.evaluation.report import write_results

Results = dict[str, dict[str, float]]


def evaluate(cfg: CfgNode, model: nn.Module) -> Results:
    """Score ``model`` on every set of DATASETS.TEST; print a table, write ``results.json`` and what goes with it.

    Returns:
        By task, then metric (percent), as detectron2's evaluators name them; by data set first when there are several.
    """
    results = {}
    for name in cfg.DATASETS.TEST:
        results[name] = evaluate_on(cfg, model, name)
        if comm.is_main_process():
            print(f"\n{name}\n{results_table(results[name])}", flush=True)
    if comm.is_main_process() and results:
        write_results(Path(cfg.OUTPUT_DIR) / "results.json", results, config=yaml.safe_load(cfg.dump()))
    merged: Any = results[cfg.DATASETS.TEST[0]] if len(results) == 1 else results
    return merged


def evaluate_on(cfg: CfgNode, model: nn.Module, name: str, *, limit: int | None = None) -> Results:
    """Score ``model`` on one data set, or on ``limit`` images a process; empty on all processes but the first."""
    evaluators = build_evaluators(cfg, name)
    kept = {"gallery": cfg.TEST.GALLERY, "per_image": cfg.TEST.PER_IMAGE} if limit is None else {}
    artifacts = Artifacts(name, evaluators, Path(cfg.OUTPUT_DIR), several=len(cfg.DATASETS.TEST) > 1, **kept)
    shown = [Pictures(name, limit=cfg.TEST.PICTURES)] if has_event_storage() and shows_pictures(cfg) else []
    chain: list[DatasetEvaluator] = [*artifacts.chain, *shown]
    for evaluator in chain:
        evaluator.reset()
    loader = build_test_loader(cfg, name)
    predict = build_predictor(cfg, model)
    with artifacts, inference_context(model), torch.no_grad():
        progress = tqdm(
            islice(loader, limit),
            total=limit or len(loader),
            desc=f"evaluate {name}",
            unit="img",
            disable=not interactive(),
            leave=False,
        )
        for inputs in STOP.until(progress):
            outputs = predict(inputs)
            for evaluator in chain:
                evaluator.process(inputs, outputs)
    results: Results = {}
    for evaluator in chain:
        results.update(evaluator.evaluate() or {})
    if limit is None:
        artifacts.write(results)
    return results


def build_evaluators(cfg: CfgNode, name: str) -> list[DatasetEvaluator]:
    """The evaluators that the set's ground truth allows and the model's heads can serve.

    Raises:
        UserError: the data set states no evaluator type that seg_ext knows.
    """
    kind = getattr(MetadataCatalog.get(name), "evaluator_type", None)
    if kind not in EVALUATORS:
        raise UserError(f"data set {name}: evaluator_type {kind!r} in its metadata; takes {', '.join(EVALUATORS)}")
    semantics, instances = has_semantics(cfg), has_instances(cfg) or embeds_instances(cfg)
    masks = embeds_instances(cfg) or cfg.MODEL.MASK_ON
    tasks = ["bbox", *["segm"] * masks, *["keypoints"] * cfg.MODEL.KEYPOINT_ON]
    instance = partial(
        InstanceEvaluator,
        tasks=tasks,
        metrics=cfg.TEST.INSTANCE_METRICS,
        kpt_oks_sigmas=cfg.TEST.KEYPOINT_OKS_SIGMAS,
    )
    served: dict[type[DatasetEvaluator], Callable[[str], DatasetEvaluator] | None] = {
        SemanticEvaluator: partial(SemanticEvaluator, metrics=cfg.TEST.SEMANTIC_METRICS) if semantics else None,
        InstanceEvaluator: instance if instances else None,
        VocBoxEvaluator: VocBoxEvaluator if instances else None,
        PanopticEvaluator: PanopticEvaluator if semantics and instances and masks else None,
    }
    return [build(name) for evaluator in EVALUATORS[kind] if (build := served[evaluator])]
