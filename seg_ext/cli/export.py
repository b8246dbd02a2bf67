"""``seg-ext export``: a trained model as a file for another runtime, with the proof that it gives the same."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from seg_ext.cli.arguments import add_config_arguments, add_data_argument
from seg_ext.errors import UserError

if TYPE_CHECKING:
    from detectron2.config import CfgNode

HELP = "write a trained model as ONNX, torch.export or TorchScript, compared with the model, with its card"
FORMATS = ("onnx", "torch-export", "torchscript")
TASKS = ("semantic", "instance", "panoptic")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Weights, format, what goes into the graph, int8."""
    parser.add_argument("--weights", metavar="FILE", help="instead of MODEL.WEIGHTS")
    parser.add_argument("--format", choices=FORMATS, default="onnx", help="(default: onnx)")
    parser.add_argument("--output", metavar="FILE", help="(default: beside the weights, under their name)")
    parser.add_argument(
        "--task", choices=TASKS, help="of a panoptic model, also its semantic half (default: the model's)"
    )
    parser.add_argument(
        "--with-preprocessing", action="store_true", help="take raw uint8 (N, H, W, C), normalise inside"
    )
    parser.add_argument("--labels", action="store_true", help="give label maps (N, H, W) instead of scores")
    parser.add_argument(
        "--tolerance", type=float, default=1e-4, metavar="X", help="greatest difference of scores (default: 1e-4)"
    )
    parser.add_argument("--licence", metavar="TEXT", help="of the training data, for the card")
    parser.add_argument("--trust-code", action="store_true", help="let the weights name a decoder outside seg_ext")
    int8 = parser.add_argument_group("int8, of --format onnx")
    int8.add_argument("--int8", action="store_true", help="also write the file with 8-bit weights and activations")
    int8.add_argument(
        "--calibration", metavar="NAME", help="data set with label maps (default: the first DATASETS.TEST)"
    )
    int8.add_argument("--images", type=int, default=64, metavar="N", help="that set the ranges (default: 64)")
    int8.add_argument(
        "--max-drop", type=float, default=2.0, metavar="POINTS", help="of mIoU that int8 may cost (default: 2)"
    )
    add_config_arguments(parser)
    add_data_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Export, compare, write the card, and print what was found."""
    import seg_ext

    seg_ext.register()
    from dataclasses import replace

    from seg_ext.engine.card import make_card
    from seg_ext.engine.export import export, load, quantize_export
    from seg_ext.engine.setup import start_logging
    from seg_ext.export import EXPORTERS
    from seg_ext.export.card import write_card

    start_logging()
    cfg = config_for(args)
    suffix = EXPORTERS[args.format].suffix
    if not args.output and not Path(cfg.MODEL.WEIGHTS).is_file():
        raise UserError(f"--output is missing: {cfg.MODEL.WEIGHTS} is no file that the export could lie beside")
    file = Path(args.output) if args.output else Path(cfg.MODEL.WEIGHTS).with_suffix(suffix)
    stem = file.with_name(file.name.removesuffix(suffix))
    data = _calibration(args, cfg) if args.int8 else ""
    exported = export(
        load(cfg),
        file,
        format=args.format,
        task=args.task,
        preprocessing=args.with_preprocessing,
        labels=args.labels,
        tolerance=args.tolerance,
    )
    print(f"{file}: {exported.format}, {file.stat().st_size:,} bytes; {exported.summary}")
    print(f"card: {write_card(make_card(cfg, exported=exported, licence=args.licence), stem)[1]}")
    if args.int8:
        small = stem.with_name(f"{stem.name}.int8{suffix}")
        found = quantize_export(cfg, exported, small, data=data, images=args.images, max_drop=args.max_drop)
        print(
            f"{small}: {found['bytes']:,} bytes, {found['bytes'] / found['float_bytes']:.0%} of float32's; "
            f"{found['latency_ratio']:.2f} of its time; mIoU {found['miou']:.2f}, float32 {found['float_miou']:.2f}"
        )
        card = make_card(cfg, exported=replace(exported, file=small, checks=[]), int8=found, licence=args.licence)
        print(f"card: {write_card(card, small.with_suffix(''))[1]}")
    return 0


def config_for(args: argparse.Namespace) -> CfgNode:
    """The config that goes with ``--weights``, or that of ``--config-file``, which then names them.

    Raises:
        UserError: neither is given, or what is wrong with it.
    """
    from seg_ext.config import load_config
    from seg_ext.engine.predictor import find_config

    weights = args.weights or (load_config(args.config_file, args.opts).MODEL.WEIGHTS if args.config_file else "")
    if not weights:
        raise UserError(
            "--weights is missing: give the checkpoint of a trained model, or a --config-file that names it"
        )
    return find_config(weights, args.config_file, args.opts, trust_code=args.trust_code)


def _calibration(args: argparse.Namespace, cfg: CfgNode) -> str:
    """The data set that int8 is calibrated and scored on."""
    from seg_ext.data.datasets.own import read_data_file, split_names
    from seg_ext.data.datasets.own_register import register_own

    names = list(cfg.DATASETS.TEST)
    if args.data:
        entry = read_data_file(args.data)
        register_own(entry)
        splits = split_names(entry)
        names = [next(splits[split] for split in ("val", "test", "train") if split in splits)]
    name = args.calibration or next(iter(names), "")
    if not name:
        raise UserError("--int8 needs images: give --calibration NAME or --data FILE")
    if args.images < 1:
        raise UserError(f"--images {args.images}: takes 1 or more")
    return name
