"""``seg-ext info``: what a checkpoint says of itself."""

from __future__ import annotations

import argparse

HELP = "what a checkpoint holds: classes, preprocessing, config, versions, scores"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The checkpoint, and what of it to print."""
    parser.add_argument("checkpoint", metavar="CKPT", help="file, URL or name, as MODEL.WEIGHTS takes them")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--config", action="store_true", help="print the config alone, a yaml for --config-file")
    what.add_argument("--json", action="store_true", help="print all of it as JSON")
    what.add_argument("--tensors", action="store_true", help="print name, shape and type of every tensor")


def run(args: argparse.Namespace) -> int:
    """Print the sidecar, or where there is none, what the tensors tell."""
    import json

    from seg_ext.checkpoint.files import read_checkpoint
    from seg_ext.checkpoint.locate import locate
    from seg_ext.checkpoint.sidecar import describe, read_sidecar
    from seg_ext.errors import UserError

    if args.tensors:
        state = read_checkpoint(locate(args.checkpoint), mapped=True)["model"]
        width = max(map(len, state))
        rows = (
            f"{k:{width}}  {str(tuple(x.shape)):20} {str(x.dtype).removeprefix('torch.')}" for k, x in state.items()
        )
        print("\n".join(rows))
        return 0
    sidecar = read_sidecar(args.checkpoint)
    if args.config:
        if not sidecar.get("config"):
            raise UserError(f"weights {args.checkpoint}: carries no config")
        print(sidecar["config"], end="")
        return 0
    if args.json:
        strict = json.loads(json.dumps(sidecar), parse_constant=lambda _: None)  # JSON has no NaN
        print(json.dumps(strict, indent=2))
        return 0
    state = read_checkpoint(locate(args.checkpoint), mapped=True)["model"]
    numbers = sum(x.numel() for x in state.values())
    print(f"{'file':14}{args.checkpoint}: {len(state)} tensors, {numbers:,} numbers")
    print(describe(sidecar) if sidecar else "carries no sidecar: written by another library or by an earlier seg_ext")
    return 0
