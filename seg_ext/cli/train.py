"""``seg-ext train``: train and evaluate what a yaml describes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from seg_ext.cli.arguments import add_config_arguments, add_data_argument, add_launch_arguments

if TYPE_CHECKING:
    from detectron2.config import CfgNode

HELP = "train a model, then evaluate it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """detectron2's flags."""
    add_config_arguments(parser)
    add_data_argument(parser)
    add_launch_arguments(parser)
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in OUTPUT_DIR")
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS and stop")
    parser.add_argument("--dry-run", action="store_true", help="build all, try a step and an image, print time, memory")
    parser.add_argument("--replay", metavar="FILE", help="say where a kept batch of a run stops being finite, and stop")


def run(args: argparse.Namespace) -> int:
    """Read and check the config, then train in as many processes as asked for."""
    import seg_ext

    seg_ext.register()
    from seg_ext.engine.finite import NotFinite
    from seg_ext.engine.interrupt import Interrupted
    from seg_ext.engine.launch import launch
    from seg_ext.engine.setup import read_config, start_logging

    start_logging()
    if args.replay:
        return replay(args)
    try:
        return launch(train, read_config(args), args)
    except Interrupted as error:
        print(f"seg-ext: {error}", file=sys.stderr)
        return 130
    except NotFinite as error:
        if error.told_here:
            print(f"seg-ext: error: {error.line}", file=sys.stderr)
        return 1


def replay(args: argparse.Namespace) -> int:
    """Run a kept batch once more, with --config-file or the config.yaml beside it, and print what is not finite."""
    from seg_ext.config import refuse_foreign_code
    from seg_ext.engine.class_weights import resolve_class_weights
    from seg_ext.engine.replay import read
    from seg_ext.engine.replay import replay as run_again
    from seg_ext.engine.setup import prepare_data, read_config

    saved = read(args.replay)
    beside = not args.config_file
    if beside:
        args.config_file = str(Path(args.replay).parent / "config.yaml")
    cfg = read_config(args)
    if beside:
        refuse_foreign_code(cfg, args.config_file, "name the file by --config-file")
    prepare_data(cfg)
    resolve_class_weights(cfg, training=True)
    print("\n".join(run_again(cfg, saved, args.replay)))
    return 0


def train(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Train, or only evaluate, in this process."""
    from seg_ext.engine.class_weights import resolve_class_weights
    from seg_ext.engine.setup import prepare_data, start_run
    from seg_ext.engine.trainer import Trainer

    prepare_data(cfg)
    resolve_class_weights(cfg, training=not args.eval_only)
    if args.dry_run:
        from seg_ext.engine.dry_run import dry_run

        dry_run(cfg, resume=args.resume)
        return
    start_run(cfg, training=not args.eval_only, resume=args.resume)
    if args.eval_only:
        from seg_ext.cli.eval import evaluate_weights

        evaluate_weights(cfg, resume=args.resume)
        return
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    trainer.train()
