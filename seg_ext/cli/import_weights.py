"""``seg-ext import-weights``: a whole network that another library saved, as config and weights of ours."""

from __future__ import annotations

import argparse

HELP = "turn a network of torchvision, smp, timm, mmseg or detectron2 into config and weights"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Library, checkpoint, folder."""
    parser.add_argument("checkpoint", metavar="CKPT", help="file, URL or name, as MODEL.WEIGHTS takes them")
    parser.add_argument(
        "--from", dest="source", required=True, metavar="LIBRARY", help="torchvision, smp, timm, mmseg or detectron2"
    )
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="for config.yaml and the weights")
    parser.add_argument("--arch", default="", metavar="NAME", help="resnet18.a1_in1k (timm), pspnet_r50-d32 (mmseg)")
    parser.add_argument("--classes", default="", metavar="A,B", help="their names, in the order of the ids")
    parser.add_argument("--format", default="safetensors", metavar="F", help="safetensors (default) or pth")
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="config overrides, in pairs")


def run(args: argparse.Namespace) -> int:
    """Import, and print what became of the tensors and what was written."""
    import seg_ext

    seg_ext.register()
    from seg_ext.engine.setup import start_logging
    from seg_ext.engine.weights import import_weights

    start_logging()
    line = import_weights(
        args.source,
        args.checkpoint,
        args.output,
        arch=args.arch,
        classes=[name.strip() for name in args.classes.split(",")] if args.classes else [],
        opts=args.opts,
        form=args.format,
    )
    print(f"{line}; {args.output}/config.yaml, {args.output}/model.{args.format}")
    return 0
