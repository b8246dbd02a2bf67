"""``seg-ext eval``: score trained weights on the data sets a yaml names."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from seg_ext.cli.arguments import add_config_arguments, add_data_argument, add_launch_arguments
from seg_ext.errors import UserError

if TYPE_CHECKING:
    from detectron2.config import CfgNode

HELP = "score trained weights"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Config, weights and detectron2's launch flags."""
    add_config_arguments(parser)
    add_data_argument(parser)
    add_launch_arguments(parser)
    parser.add_argument("--weights", metavar="FILE", help="instead of MODEL.WEIGHTS")
    parser.add_argument("--resume", action="store_true", help="score the last checkpoint in OUTPUT_DIR")


def run(args: argparse.Namespace) -> int:
    """Read and check the config, then evaluate in as many processes as asked for."""
    import seg_ext

    seg_ext.register()
    from seg_ext.engine.launch import launch
    from seg_ext.engine.setup import read_config, start_logging

    start_logging()
    return launch(evaluate, read_config(args), args)


def evaluate(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Evaluate in this process."""
    from seg_ext.engine.class_weights import resolve_class_weights
    from seg_ext.engine.setup import prepare_data, start_run

    prepare_data(cfg)
    resolve_class_weights(cfg, training=False)
    start_run(cfg)
    evaluate_weights(cfg, resume=args.resume)


def evaluate_weights(cfg: CfgNode, *, resume: bool) -> None:
    """Load MODEL.WEIGHTS, or with ``resume`` the last checkpoint in OUTPUT_DIR, and score it."""
    from detectron2.modeling import build_model

    from seg_ext.checkpoint import Checkpointer
    from seg_ext.engine.evaluate import evaluate

    model = build_model(cfg)
    checkpointer = Checkpointer(model, cfg.OUTPUT_DIR)
    if not cfg.MODEL.WEIGHTS and not (resume and checkpointer.has_checkpoint()):
        raise UserError("nothing to evaluate: give MODEL.WEIGHTS FILE, or --resume with a checkpoint in OUTPUT_DIR")
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    evaluate(cfg, model)
