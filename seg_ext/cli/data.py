"""``seg-ext data prepare``: fetch a data set and bring it into the layout that it is registered with."""

from __future__ import annotations

import argparse
import difflib
from pathlib import Path

from seg_ext.errors import UserError

HELP = "prepare data sets"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The action and its arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    prepare = actions.add_parser("prepare", help="fetch a data set", description="Fetch a data set; once is enough.")
    prepare.add_argument("name", metavar="NAME", help="nuclei")
    prepare.add_argument(
        "--root", type=Path, metavar="DIR", help="folder of all data sets (default: $DETECTRON2_DATASETS, or datasets)"
    )
    prepare.add_argument("--source", type=Path, metavar="FILE", help="the downloaded file, where it is at hand")


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
    report = PREPARE[args.name](args.root or data_root(), args.source)
    print(f"{report.path}: {'ready' if report.fresh else 'complete already'}")
    for line in report.lines:
        print(f"  {line}")
    return 0
