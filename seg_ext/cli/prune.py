"""``seg-ext prune``: the smaller network inside a trained U-Net++, as weights and config of its own."""

from __future__ import annotations

import argparse
from pathlib import Path

from seg_ext.cli.arguments import add_config_arguments
from seg_ext.errors import UserError

HELP = "cut a trained U-Net++ down to one of its classifiers"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Weights, level, output folder."""
    parser.add_argument("--weights", required=True, metavar="FILE", help="of the whole network")
    parser.add_argument("--level", required=True, metavar="L1..L4", help="classifier that the part ends in")
    parser.add_argument(
        "--output", default="pruned", metavar="DIR", help="gets model_final.pth and config.yaml (default: pruned)"
    )
    add_config_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Write the part's checkpoint and config, and say how much smaller it is."""
    import seg_ext

    seg_ext.register()
    from seg_ext.checkpoint import Checkpointer, write_whole
    from seg_ext.checkpoint.sidecar import read_sidecar
    from seg_ext.config import refuse_foreign_code
    from seg_ext.engine.predictor import Predictor
    from seg_ext.engine.prune import prune
    from seg_ext.engine.setup import read_config, start_logging

    start_logging()
    output, beside = Path(args.output), Path(args.weights).parent / "config.yaml"
    if not args.config_file and not beside.is_file():
        raise UserError(f"{args.weights}: no config.yaml beside it; give its --config-file")
    if (output / "model_final.pth").exists():
        raise UserError(f"{output / 'model_final.pth'} is there already; give another --output")
    named, args.config_file = bool(args.config_file), args.config_file or str(beside)
    cfg = read_config(args)
    if not named:
        refuse_foreign_code(cfg, str(beside), "name the file by --config-file")
    cfg.TEST.PRUNE = ""
    whole = Predictor(cfg)
    small, part = prune(whole.config, whole.model, args.level)
    small.MODEL.SEM_SEG_HEAD.LOSSES = cfg.MODEL.SEM_SEG_HEAD.LOSSES  # a predictor's have lost named class weights
    small.MODEL.WEIGHTS = str(output / "model_final.pth")
    sidecar = {k: v for k, v in read_sidecar(args.weights).items() if k != "metrics"}
    try:
        output.mkdir(parents=True, exist_ok=True)
        write_whole(output / "config.yaml", lambda stream: stream.write(small.dump().encode()))
        Checkpointer(part, str(output), sidecar=sidecar and sidecar | {"config": small.dump()}).save("model_final")
    except OSError as error:
        raise UserError(f"{output} cannot be written: {error.strerror or error}") from error
    total, kept = (sum(x.numel() for x in net.parameters()) for net in (whole.model, part))
    print(f"{output / 'model_final.pth'}: {kept:,} of {total:,} parameters")
    return 0
