"""``seg-ext``: finds the subcommand, and turns bad input into one line and exit status 2."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module

import seg_ext
from seg_ext.errors import UserError

SUBCOMMANDS = {
    "train": "seg_ext.cli.train",
    "eval": "seg_ext.cli.eval",
    "compare": "seg_ext.cli.compare",
    "predict": "seg_ext.cli.predict",
    "refine": "seg_ext.cli.refine",
    "prune": "seg_ext.cli.prune",
    "export": "seg_ext.cli.export",
    "card": "seg_ext.cli.card",
    "serve": "seg_ext.cli.serve",
    "data": "seg_ext.cli.data",
    "import-weights": "seg_ext.cli.import_weights",
    "export-weights": "seg_ext.cli.export_weights",
    "info": "seg_ext.cli.info",
    "list": "seg_ext.cli.list",
    "analyze": "seg_ext.cli.analyze",
    "install-detectron2": "seg_ext.cli.install_detectron2",
}


def build_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands; each module adds its own arguments."""
    parser = argparse.ArgumentParser(
        prog="seg-ext", description="Semantic, instance and panoptic segmentation on detectron2."
    )
    parser.add_argument("--version", action="version", version=f"seg-ext {seg_ext.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, home in SUBCOMMANDS.items():
        module = import_module(home)
        command = commands.add_parser(name, help=module.HELP, description=module.HELP)
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 for a failure, 2 for bad input, 130 when interrupted."""
    args = build_parser().parse_args(argv)
    try:
        return args.run(args)
    except UserError as error:
        if args.debug:
            raise
        print(f"seg-ext: error: {error.line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("seg-ext: interrupted", file=sys.stderr)
        return 130
