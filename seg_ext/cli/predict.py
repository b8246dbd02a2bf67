"""``seg-ext predict``: label maps, overlays, JSON, GeoJSON and probabilities for images, folders and videos."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from seg_ext.cli.arguments import add_config_arguments, add_data_argument
from seg_ext.errors import UserError

if TYPE_CHECKING:
    from detectron2.config import CfgNode

HELP = "predict images, folders and videos: label maps, overlays, COCO JSON, GeoJSON, probabilities"
KINDS = ("labels", "ids", "overlay", "json", "geojson", "probabilities", "uncertainty")
BACKENDS = ("auto", "eager", "compile", "onnxruntime")
_ON_GPU = 8  # images a batch
_OF_A_VIDEO = 500  # images, about


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Inputs, weights, output folder, and how to get from one to the other."""
    parser.add_argument(
        "--input",
        nargs="+",
        required=True,
        metavar="PATH",
        help="images, TIFF stacks, videos; folders of them; patterns such as 'a/**/*.png'; URLs; a camera's number",
    )
    parser.add_argument("--weights", metavar="FILE", help="checkpoint, instead of MODEL.WEIGHTS")
    parser.add_argument("--output", default="predictions", metavar="DIR", help="made if it is not there")
    parser.add_argument(
        "--save",
        nargs="+",
        choices=KINDS,
        default=["labels", "overlay", "json"],
        help="labels: PNG in the classes' colours; ids: grey PNG; json: COCO, panoptic with its PNG; geojson: polygons;"
        " probabilities: .npy; uncertainty: float TIFF and picture (default: labels overlay json). Sizes are those of"
        " the upright image, by its EXIF orientation",
    )
    parser.add_argument(
        "--uncertainty",
        type=_positive,
        metavar="N",
        help="mean of N passes with dropout on (TEST.MC_DROPOUT), and maps of how they differ (--save uncertainty)",
    )
    parser.add_argument("--batch-size", type=_positive, metavar="N", help="images of one size (default: 1, GPU 8)")
    parser.add_argument("--threads", type=_positive, default=2, metavar="N", help="that read, and that write")
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        default="auto",
        help="auto: BatchNorm folded, on the CPU then the fastest of what is there, measured on the first image",
    )
    parser.add_argument(
        "--large",
        type=float,
        default=64,
        metavar="MILLIONS",
        help="of pixels above which a TIFF or .npy is predicted in windows (TEST.SLIDING_WINDOW) from file to file, in"
        " its place on the map: labels, ids (.tif) and probabilities (default: 64)",
    )
    parser.add_argument("--frames", type=_positive, metavar="N", help="of a video or camera, at most")
    parser.add_argument("--resume", action="store_true", help="leave alone what an earlier run into --output has done")
    parser.add_argument("--allow-urls", action="store_true", help="fetch inputs that begin with http:// or https://")
    parser.add_argument(
        "--trust-code", action="store_true", help="let the config beside the weights name a decoder outside seg_ext"
    )
    add_config_arguments(parser)
    add_data_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Predict every input; one that fails is reported, and the rest are done (exit status 1 at the end)."""
    import seg_ext

    seg_ext.register()
    from tqdm import tqdm

    from seg_ext.engine.predict import FAILED, Shard, predict_sources
    from seg_ext.engine.predictor import Predictor
    from seg_ext.engine.setup import start_logging
    from seg_ext.inference.sources import find_sources

    start_logging()
    sources = find_sources(args.input, allow_urls=args.allow_urls)
    cfg, shard = _config(args), Shard.from_environment()
    if args.uncertainty:
        cfg.TEST.MC_DROPOUT.SAMPLES, args.save = args.uncertainty, [*args.save, "uncertainty"]
    elif "uncertainty" in args.save and not cfg.TEST.MC_DROPOUT.SAMPLES:
        raise UserError("--save uncertainty needs samples: give --uncertainty N, or TEST.MC_DROPOUT.SAMPLES N")
    on_gpu = cfg.MODEL.DEVICE.startswith("cuda")
    if on_gpu and "LOCAL_RANK" in os.environ:
        cfg.MODEL.DEVICE = f"cuda:{os.environ['LOCAL_RANK']}"
    images = sum(_OF_A_VIDEO if source.kind in ("video", "camera") else 1 for source in sources)
    outcome = predict_sources(
        Predictor(cfg, backend=args.backend, expected=images // shard.processes),
        sources,
        args.output,
        save=args.save,
        batch_size=args.batch_size or (_ON_GPU if on_gpu else 1),
        threads=args.threads,
        frames=args.frames,
        large=args.large,
        resume=args.resume,
        shard=shard,
        report=lambda line: tqdm.write(f"seg-ext: error: {line}", file=sys.stderr),
    )
    parts = [f"{outcome.images} images"]
    parts += [f"{outcome.skipped} inputs done before"] if outcome.skipped else []
    parts += [f"{len(outcome.failures)} failed, see {FAILED}"] if outcome.failures else []
    print(f"{', '.join(parts)}: {args.output}")
    return 1 if outcome.failures else 0


def _config(args: argparse.Namespace) -> CfgNode:
    """The config of the command line, or that of the weights."""
    from seg_ext.config import refuse_foreign_code
    from seg_ext.engine.predictor import find_config
    from seg_ext.engine.setup import read_config

    if not args.config_file and not args.weights:
        raise UserError("--weights FILE is missing: prediction needs a checkpoint, or --config-file with MODEL.WEIGHTS")
    if args.config_file:
        return read_config(args)
    beside = Path(args.weights).parent / "config.yaml"
    cfg = find_config(args.weights, opts=args.opts, trust_code=args.trust_code)
    if args.data:
        if not beside.is_file():
            raise UserError(f"--data goes with --config-file, or with weights that have a {beside.name} beside them")
        args.config_file = str(beside)
        cfg = read_config(args)
        if not args.trust_code:
            refuse_foreign_code(cfg, str(beside), "allow it with --trust-code")
    return cfg


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number}: takes a whole number from 1")
    return number
