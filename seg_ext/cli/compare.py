"""``seg-ext compare``: differences between two evaluations, with intervals over images, and a picture."""

from __future__ import annotations

import argparse
from pathlib import Path

from seg_ext.errors import UserError

HELP = "compare the scores of two runs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The two runs, and how intervals are made."""
    for name in ("A", "B"):
        parser.add_argument(
            name.lower(),
            metavar=name,
            help="folder of a run, or its results.json; with `eval --per-image`, intervals of IoU, PQ, AP and the like",
        )
    parser.add_argument("--output", metavar="DIR", default="comparison", help="default: comparison")
    parser.add_argument("--resamples", type=int, default=2000, metavar="N", help="bootstrap draws (default: 2000)")
    parser.add_argument("--confidence", type=float, default=95.0, metavar="PERCENT", help="default: 95")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the draws (default: 0)")


def run(args: argparse.Namespace) -> int:
    """Print the differences; write them and their picture."""
    if args.resamples < 1 or not 0 < args.confidence < 100 or args.seed < 0:
        raise UserError(
            f"--resamples {args.resamples} --confidence {args.confidence} --seed {args.seed}:"
            " takes 1 or more, a percentage between 0 and 100, and 0 or more"
        )
    import seg_ext

    seg_ext.register()
    from seg_ext.evaluation.compare import compare, comparison_table, write_comparison

    found = compare(args.a, args.b, resamples=args.resamples, confidence=args.confidence, seed=args.seed)
    for name, rows in found.items():
        print(f"{name}\n{comparison_table(rows)}\n")
    if all(row.low != row.low for rows in found.values() for row in rows):
        print("no intervals: they need `seg-ext eval --per-image` in both runs\n")
    print("\n".join(str(path) for path in write_comparison(Path(args.output), found)))
    return 0
