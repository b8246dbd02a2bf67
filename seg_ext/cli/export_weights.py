"""``seg-ext export-weights``: weights for another library, or as safetensors."""

from __future__ import annotations

import argparse

HELP = "write a checkpoint's weights for torchvision, or as safetensors with its sidecar"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Checkpoint, form, file."""
    parser.add_argument("checkpoint", metavar="CKPT", help="file, URL or name, as MODEL.WEIGHTS takes them")
    parser.add_argument("--to", dest="target", required=True, metavar="FORM", help="torchvision or safetensors")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help=".pth for torchvision, or .safetensors")


def run(args: argparse.Namespace) -> int:
    """Export, and print what the file holds."""
    import seg_ext

    seg_ext.register()
    from seg_ext.engine.export_weights import export_weights
    from seg_ext.engine.setup import start_logging

    start_logging()
    print(export_weights(args.checkpoint, args.target, args.output))
    return 0
