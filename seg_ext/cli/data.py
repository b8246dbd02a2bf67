"""``seg-ext data prepare``: fetch a data set, or take a downloaded one, and bring it into its registered layout."""

from __future__ import annotations

import argparse
import difflib
from inspect import signature
from pathlib import Path

from seg_ext.errors import UserError

HELP = "prepare data sets"
OPTIONS = (
    ("tile", int, "potsdam: side of the crops in pixels (512)"),
    ("overlap", int, "potsdam: overlap of training crops in pixels (0)"),
    ("bands", str, "potsdam: RGB or IRRG (RGB)"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The action and its arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    text = "Fetch a data set, or bring a downloaded one into its layout; a second call does what is missing."
    prepare = actions.add_parser("prepare", help="fetch or convert a data set", description=text)
    prepare.add_argument("name", metavar="NAME", help="nuclei, isbi2012, dsb2018, potsdam, aerial_dubai, voc or coco")
    prepare.add_argument(
        "--root", type=Path, metavar="DIR", help="folder of all data sets (default: $DETECTRON2_DATASETS, or datasets)"
    )
    prepare.add_argument("--source", type=Path, metavar="PATH", help="the downloaded file, archive or folder")
    for name, kind, text in OPTIONS:
        prepare.add_argument(f"--{name}", type=kind, help=text)


def run(args: argparse.Namespace) -> int:
    """Prepare the named data set and print where it is and what it holds."""
    import seg_ext

    seg_ext.register()
    from seg_ext.data.datasets import data_root
    from seg_ext.data.prepare import PREPARE

    if args.name not in PREPARE:
        near = difflib.get_close_matches(args.name, PREPARE, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(PREPARE)}"
        raise UserError(f"data set {args.name} cannot be prepared; {hint}")
    prepare = PREPARE[args.name]
    options = {name: value for name, _, _ in OPTIONS if (value := getattr(args, name)) is not None}
    foreign = [name for name in options if name not in signature(prepare).parameters]
    if foreign:
        raise UserError(f"--{foreign[0]} is no option of data set {args.name}")
    report = prepare(args.root or data_root(), args.source, **options)
    print(f"{report.path}: {'ready' if report.fresh else 'complete already'}")
    for line in report.lines:
        print(f"  {line}")
    return 0
