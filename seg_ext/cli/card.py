"""``seg-ext card``: the model card of a checkpoint, as JSON and Markdown."""

from __future__ import annotations

import argparse
from pathlib import Path

from seg_ext.cli.arguments import add_config_arguments
from seg_ext.errors import UserError

HELP = "write the card of a checkpoint: classes, scores, data, licences, input, limits"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The checkpoint, and where the card goes."""
    parser.add_argument("weights", metavar="CHECKPOINT", help="of a trained model")
    parser.add_argument("--output", metavar="DIR", help="(default: the checkpoint's folder)")
    parser.add_argument("--licence", metavar="TEXT", help="of the training data")
    parser.add_argument("--trust-code", action="store_true", help="let the weights name a decoder outside seg_ext")
    add_config_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Write both files and name them."""
    import seg_ext

    seg_ext.register()
    from seg_ext.cli.export import config_for
    from seg_ext.engine.card import make_card
    from seg_ext.engine.setup import start_logging
    from seg_ext.export.card import write_card

    start_logging()
    weights = Path(args.weights)
    if not weights.is_file():
        raise UserError(f"weights {weights} not found: takes a checkpoint")
    folder = Path(args.output) if args.output else weights.parent
    cfg = config_for(args)
    for path in write_card(make_card(cfg, licence=args.licence), folder / weights.stem):
        print(path)
    return 0
