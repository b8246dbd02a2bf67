"""``seg-ext predict``: label maps, overlays and COCO-style JSON for images and folders."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from seg_ext.cli.arguments import add_config_arguments, add_data_argument
from seg_ext.errors import UserError

HELP = "predict images: palette PNG labels, overlays, COCO-style JSON"
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".npy"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Inputs, weights, output folder."""
    parser.add_argument("--input", nargs="+", required=True, metavar="PATH", help="image files and folders")
    parser.add_argument("--weights", metavar="FILE", help="instead of MODEL.WEIGHTS")
    parser.add_argument("--output", default="predictions", metavar="DIR", help="made if it is not there")
    parser.add_argument(
        "--trust-code", action="store_true", help="let the config beside the weights name a decoder outside seg_ext"
    )
    add_config_arguments(parser)
    add_data_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Predict every image; one that cannot be read is reported, and the rest are done (exit status 1 at the end)."""
    import seg_ext

    seg_ext.register()
    from tqdm import tqdm

    from seg_ext.data.image_io import as_picture, read_image
    from seg_ext.engine.class_weights import resolve_class_weights
    from seg_ext.engine.setup import interactive, read_config, start_logging
    from seg_ext.evaluation.prediction_writer import PredictionWriter
    from seg_ext.inference.predictor import Predictor

    start_logging()
    files = find_images(args.input)
    beside = not args.config_file and args.weights
    if beside:
        args.config_file = str(Path(args.weights).parent / "config.yaml")
    cfg = read_config(args)
    resolve_class_weights(cfg, training=False)
    decoder = cfg.MODEL.SEM_SEG_HEAD.DECODER.NAME
    if beside and ":" in decoder and not args.trust_code:
        raise UserError(f"{args.config_file}: DECODER.NAME {decoder} is foreign code; allow it with --trust-code")
    predictor = Predictor(cfg)
    writer = PredictionWriter(args.output, predictor.metadata)
    failed = 0
    for file in tqdm(files, desc="predict", unit="img", disable=not interactive()):
        try:
            image = read_image(file, cfg.INPUT.FORMAT, bands=len(cfg.MODEL.PIXEL_MEAN))
        except UserError as error:
            print(f"seg-ext: error: {error.line}", file=sys.stderr)
            failed += 1
            continue
        writer.write(file, as_picture(image, cfg.INPUT.FORMAT), predictor(image))
    print(f"{len(files) - failed} of {len(files)} images: {writer.finish()}")
    return 1 if failed else 0


def find_images(paths: list[str]) -> list[Path]:
    """The files themselves, and the images directly in the folders, sorted.

    Raises:
        UserError: a path that does not exist, a folder without images.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
            if not found:
                raise UserError(f"{path}: no image in this folder; takes {', '.join(sorted(IMAGE_SUFFIXES))}")
            files += found
        elif path.is_file():
            files.append(path)
        else:
            raise UserError(f"{path}: no such file or folder")
    return files
