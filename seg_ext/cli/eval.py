"""``seg-ext eval``: score trained weights on the data sets a yaml names, or predictions that any tool saved."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from seg_ext.cli.arguments import (
    add_config_arguments,
    add_data_argument,
    add_launch_arguments,
    data_sets,
    require_known,
)
from seg_ext.errors import UserError

if TYPE_CHECKING:
    from detectron2.config import CfgNode

HELP = "score trained weights, or saved predictions"
KINDS = ("labels", "coco", "panoptic")
_IMAGES = 20  # on the page, where the config asks for none


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Config, weights and detectron2's launch flags; saved predictions and what they are scored on."""
    add_config_arguments(parser)
    add_data_argument(parser)
    add_launch_arguments(parser)
    parser.add_argument("--weights", metavar="FILE", help="instead of MODEL.WEIGHTS")
    parser.add_argument("--resume", action="store_true", help="score the last checkpoint in OUTPUT_DIR")
    parser.add_argument(
        "--html", action="store_true", help="write gallery/index.html: worst and best images, bars, confusions, curves"
    )
    parser.add_argument(
        "--per-image", action="store_true", help="keep each image's counts and matches, for `seg-ext compare`"
    )
    saved = parser.add_argument_group("saved predictions, without a model")
    saved.add_argument(
        "--predictions", metavar="PATH", help="folder of label maps, or JSON of COCO results or panoptic annotations"
    )
    saved.add_argument("--kind", choices=KINDS, help="of the predictions, where the path does not tell")
    saved.add_argument(
        "--raw-ids", action="store_true", help="label maps hold the ids of the data set's own files, not train ids"
    )
    saved.add_argument("--dataset", metavar="NAME", help="to score on; or --data, or a config with one DATASETS.TEST")
    saved.add_argument(
        "--metrics", metavar="A,B", help="what TEST.SEMANTIC_METRICS or TEST.INSTANCE_METRICS takes, where no model is"
    )
    saved.add_argument("--output", metavar="DIR", default="evaluation", help="for results.json (default: evaluation)")


def run(args: argparse.Namespace) -> int:
    """Read and check the config, then evaluate in as many processes as asked for; or score what is saved."""
    import seg_ext

    seg_ext.register()
    from seg_ext.engine.launch import launch
    from seg_ext.engine.setup import read_config, start_logging

    start_logging()
    if args.predictions:
        return _score_saved(args)
    for flag in ("kind", "dataset", "metrics", "raw_ids"):
        if getattr(args, flag):
            name = flag.replace("_", "-")
            raise UserError(f"--{name} goes with --predictions; of a model the config says it, below DATASETS and TEST")
    cfg = read_config(args)
    if args.html:
        cfg.TEST.GALLERY = cfg.TEST.GALLERY or _IMAGES
    cfg.TEST.PER_IMAGE = cfg.TEST.PER_IMAGE or args.per_image
    return launch(evaluate, cfg, args)


def evaluate(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Evaluate in this process."""
    from seg_ext.engine.class_weights import resolve_class_weights
    from seg_ext.engine.setup import prepare_data, start_run

    prepare_data(cfg)
    resolve_class_weights(cfg, training=False)
    start_run(cfg)
    evaluate_weights(cfg, resume=args.resume)


def evaluate_weights(cfg: CfgNode, *, resume: bool) -> None:
    """Load MODEL.WEIGHTS, or with ``resume`` the last checkpoint in OUTPUT_DIR, and score it.

    Raises:
        UserError: there are no weights or no data to score, or weights of other classes.
    """
    from detectron2.modeling import build_model

    from seg_ext.checkpoint import Checkpointer
    from seg_ext.engine.evaluate import evaluate

    if not cfg.DATASETS.TEST:
        raise UserError("DATASETS.TEST is empty: name at least one data set to score on")
    model = build_model(cfg)
    loading = cfg.MODEL.LOADING
    checkpointer = Checkpointer(model, cfg.OUTPUT_DIR, partial=loading.PARTIAL, table=loading.TABLE)
    if not cfg.MODEL.WEIGHTS and not (resume and checkpointer.has_checkpoint()):
        raise UserError("nothing to evaluate: give MODEL.WEIGHTS FILE, or --resume with a checkpoint in OUTPUT_DIR")
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    for name, (there, here) in checkpointer.report.mismatched.items():
        shapes = f"{name} is {there} there, {here} in the model"
        raise UserError(f"weights {cfg.MODEL.WEIGHTS}: {shapes}; does NUM_CLASSES in the config fit the weights?")
    evaluate(cfg, model)


def _score_saved(args: argparse.Namespace) -> int:
    """Score saved predictions, print the table and write results.json."""
    from seg_ext.evaluation import results_table
    from seg_ext.evaluation.report import write_results
    from seg_ext.evaluation.saved import evaluate_saved, kind_of

    kind = args.kind or kind_of(args.predictions)
    name, output = _data_set(args), Path(args.output)
    metrics = args.metrics.split(",") if args.metrics else None
    if args.raw_ids and kind != "labels":
        raise UserError(f"--raw-ids goes with label maps; {args.predictions} is of kind {kind}")
    options = {"raw_ids": True} if args.raw_ids else {}
    results = evaluate_saved(
        args.predictions,
        name,
        output,
        kind=kind,
        metrics=metrics,
        gallery=_IMAGES if args.html else 0,
        per_image=args.per_image,
        **options,
    )
    config = {"predictions": str(args.predictions), "kind": kind, "dataset": name, "metrics": metrics, **options}
    write_results(output / "results.json", {name: results}, config=config)
    print(f"{name}\n{results_table(results)}\n\n{output / 'results.json'}", flush=True)
    return 0


def _data_set(args: argparse.Namespace) -> str:
    """Register what the arguments name, and say which data set is meant."""
    from detectron2.data import DatasetCatalog

    from seg_ext.config import load_config
    from seg_ext.engine.setup import register_data

    tested: list[str] = []
    if args.config_file:
        cfg = load_config(args.config_file, args.opts)
        register_data(cfg)
        tested = list(cfg.DATASETS.TEST)
    elif args.opts:
        raise UserError(f"{' '.join(args.opts)}: KEY VALUE overrides go with --config-file")
    names = data_sets(args, tested)
    if len(names) != 1:
        raise UserError("--predictions are of one data set: give --dataset NAME, --data FILE, or a config with one")
    require_known(names)
    DatasetCatalog.get(names[0])  # derives what your own data lack
    return names[0]
