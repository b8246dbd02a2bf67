"""``seg-ext refine``: dense CRF and morphology over saved probability maps, and the search for the CRF's parameters."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seg_ext.cli.arguments import add_config_arguments, add_data_argument
from seg_ext.errors import UserError

HELP = "refine saved probability maps by dense CRF and morphology, or search the CRF's parameters"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Maps and their images, what is done to them, and the search."""
    parser.add_argument(
        "--maps", required=True, metavar="DIR", help="of .npy, .npz or float TIFF (K, H, W), named as their images"
    )
    parser.add_argument("--images", metavar="DIR", help="of the maps; or a data set's, by --dataset or --data")
    parser.add_argument("--dataset", metavar="NAME", help="images, ground truth, names and colours of the classes")
    parser.add_argument("--output", default="refined", metavar="DIR", help="for labels/*.png (default: refined)")
    parser.add_argument("--logits", action="store_true", help="maps hold scores before the softmax")
    parser.add_argument("--format", default="RGB", help="of the images: RGB, L or BANDS (default: RGB)")
    search = parser.add_argument_group("parameters of the CRF, searched by mIoU on a data set with ground truth")
    search.add_argument("--search", action="store_true", help="write search.json in place of label maps")
    search.add_argument(
        "--grid", nargs="+", default=[], metavar="KEY=A,B", help="first grid, such as bi_w=3,5 bi_xy_std=30,50,80"
    )
    search.add_argument("--rounds", type=int, default=2, metavar="N", help="grids, each finer (default: 2)")
    search.add_argument("--limit", type=int, metavar="N", help="take N images, evenly spread")
    add_config_arguments(parser)
    add_data_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Refine every map, or search; the steps are TEST.REFINE of the config and the overrides, else dense_crf."""
    import seg_ext

    seg_ext.register()
    from seg_ext.cli.refine_inputs import data_set
    from seg_ext.cli.refine_search import search
    from seg_ext.config import load_config, parse_config
    from seg_ext.engine.setup import register_data, start_logging
    from seg_ext.evaluation.output_files import make_folder

    start_logging()
    if args.config_file:
        cfg = load_config(args.config_file, args.opts)
    else:
        cfg = parse_config("VERSION: 2", "the command line", args.opts)
    register_data(cfg)
    if args.rounds < 1 or (args.limit is not None and args.limit < 1):
        raise UserError("--rounds and --limit take whole numbers from 1")
    if args.grid and not args.search:
        raise UserError("--grid goes with --search")
    name = data_set(args, list(cfg.DATASETS.TEST))
    steps = list(cfg.TEST.REFINE) or [{"NAME": "dense_crf"}]
    make_folder(Path(args.output))
    return search(args, name, steps) if args.search else refine(args, name, steps)


def refine(args: argparse.Namespace, name: str, steps: Sequence[Any]) -> int:
    """Write the label map of every image; one that does not fit is reported, and the rest are done."""
    import sys

    from detectron2.data import MetadataCatalog
    from tqdm import tqdm

    from seg_ext.cli.refine_inputs import read_pair, records_of
    from seg_ext.data.label_io import write_label
    from seg_ext.engine.setup import interactive
    from seg_ext.evaluation.output_files import replacing
    from seg_ext.inference.refine import Refiner
    from seg_ext.inference.saved_scores import find_scores
    from seg_ext.visualize import stuff_colors

    records = records_of(args, name)
    files = find_scores(args.maps, [record["file_name"] for record in records])
    refiners: dict[int, Refiner] = {}
    failed = 0
    for record, file in zip(tqdm(records, desc="refine", unit="img", disable=not interactive()), files, strict=True):
        try:
            scores, image = read_pair(args, record, file)
        except UserError as error:
            print(f"seg-ext: error: {error.line}", file=sys.stderr)
            failed += 1
            continue
        classes = len(scores)
        if classes not in refiners:
            refiners[classes] = Refiner(steps, num_classes=classes)
        try:
            refined, labels = refiners[classes](scores, image)
        except ValueError as error:
            raise UserError(f"{file}: {error}") from error
        found = (refined.argmax(0) if labels is None else labels).numpy()
        colors = stuff_colors(MetadataCatalog.get(name), classes).tolist() if name and classes <= 256 else None
        target = Path(args.output) / "labels" / file.relative_to(args.maps).with_suffix(".png")
        with replacing(target) as path:
            write_label(path, found, colors)
    print(f"{len(files) - failed} of {len(files)} maps: {Path(args.output) / 'labels'}")
    return 1 if failed else 0
