"""``seg-ext data``: prepare data sets, check them for faults, and look at what a model gets of them."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterable
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seg_ext.cli.arguments import add_data_argument, require_known
from seg_ext.errors import UserError

if TYPE_CHECKING:
    from detectron2.config import CfgNode

HELP = "prepare data sets, check them, look at them"
_TRAIN = re.compile("(^|_)train(val|aug|ing)?(_|$)")
PREPARED = (
    *("nuclei", "camvid", "voc", "isbi2012", "nerve", "dsb2018", "potsdam", "aerial_dubai"),
    *("ade20k", "coco", "coco_stuff", "cityscapes"),
)
OPTIONS = (
    ("tile", int, "potsdam: side of the crops in pixels (512)"),
    ("overlap", int, "potsdam: overlap of training crops in pixels (0)"),
    ("bands", str, "potsdam: RGB or IRRG (RGB)"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The actions and their arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    text = "Fetch a data set, or bring a downloaded one into its layout; a second call does what is missing."
    prepare = actions.add_parser("prepare", help="fetch or convert a data set", description=text)
    prepare.add_argument("name", metavar="NAME", help=f"{', '.join(PREPARED[:-1])} or {PREPARED[-1]}")
    prepare.add_argument(
        "--root", type=Path, metavar="DIR", help="folder of all data sets (default: $DETECTRON2_DATASETS, or datasets)"
    )
    prepare.add_argument("--source", type=Path, metavar="PATH", help="the downloaded file, archive or folder")
    for name, kind, text in OPTIONS:
        prepare.add_argument(f"--{name}", type=kind, help=text)

    text = "Look for faults in data sets before training: exit status 1 where there are errors."
    check = actions.add_parser("check", help="report faults and statistics", description=text)
    _add_names(check, "data sets to check; of several, those with train in their names are training data")
    check.add_argument("--json", metavar="FILE", help="write the whole report there; - for the terminal, alone")
    check.add_argument("--limit", type=int, default=5, metavar="N", help="files shown of each fault (default: 5)")
    check.add_argument("--workers", type=int, metavar="N", help="threads (default: one a core, 8 at most)")
    check.add_argument("--sheet", type=Path, metavar="FILE", help="draw images with labels, rarest classes first; .png")

    text = "Draw what the mapper gives a model: the augmented image with its labels, instances and targets."
    view = actions.add_parser("view", help="draw what a model gets", description=text)
    _add_names(view, "data set to draw, as it is; with --config-file it is DATASETS.TRAIN, augmented")
    view.add_argument("--output", type=Path, default=Path("grid.png"), metavar="FILE", help="default: grid.png")
    view.add_argument("--count", type=int, default=16, metavar="N", help="images (default: 16)")
    view.add_argument("--seed", type=int, default=0, metavar="S", help="of their choice and augmentation (default: 0)")
    view.add_argument("--test", action="store_true", help="DATASETS.TEST as the model gets it: the images alone")


def _add_names(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{text}; with it, KEY VALUE overrides")
    parser.add_argument("--config-file", default="", metavar="FILE", help="yaml of the experiment, which names them")
    add_data_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Do what the action says."""
    return {"prepare": _prepare, "check": _check, "view": _view}[args.action](args)


def _prepare(args: argparse.Namespace) -> int:
    """Prepare the named data set and print where it is and what it holds."""
    import seg_ext

    seg_ext.register()
    from seg_ext.data.datasets import data_root
    from seg_ext.data.prepare import PREPARE

    if args.name not in PREPARE:
        near = difflib.get_close_matches(args.name, PREPARE, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(PREPARE)}"
        raise UserError(f"data set {args.name} cannot be prepared; {hint}")
    prepare = PREPARE[args.name]
    options = {name: value for name, _, _ in OPTIONS if (value := getattr(args, name)) is not None}
    foreign = [name for name in options if name not in signature(prepare).parameters]
    if foreign:
        raise UserError(f"--{foreign[0]} is no option of data set {args.name}")
    report = prepare(args.root or data_root(), args.source, **options)
    print(f"{report.path}: {'ready' if report.fresh else 'complete already'}")
    for line in report.lines:
        print(f"  {line}")
    return 0


def _check(args: argparse.Namespace) -> int:
    """Check the data sets; 1 where there are errors."""
    _require_positive(limit=args.limit, workers=args.workers)
    _require_png("--sheet", args.sheet)
    cfg = _config(args)
    import json

    from seg_ext.data.check import as_dict, as_text, check_data
    from seg_ext.engine.setup import interactive

    if cfg is None:
        require_known(args.names)
        names = args.names
        train = [name for name in names if _TRAIN.search(name) and not name.endswith(("_val", "_test"))]
        test = [name for name in names if name not in train]
    else:
        train, test = list(cfg.DATASETS.TRAIN), list(cfg.DATASETS.TEST)
        names = [*train, *test]
    reports = check_data(
        list(dict.fromkeys(names)),
        train=train,
        test=test,
        image_format=None if cfg is None else cfg.INPUT.FORMAT,
        bands=None if cfg is None else len(cfg.MODEL.PIXEL_MEAN),
        num_workers=args.workers,
        progress=interactive(),
    )
    result = as_dict(reports)
    text = json.dumps(result, indent=2, allow_nan=False) + "\n" if args.json else ""
    if args.json == "-":
        print(text, end="")
    else:
        if args.json:
            _write("--json", Path(args.json), text.encode())
        print("\n\n".join(as_text(report, limit=args.limit) for report in reports))
    if args.sheet:
        from seg_ext.cli.contact_sheet import truth_sheet

        _write("--sheet", args.sheet, truth_sheet(reports))
    return 1 if result["errors"] else 0


def _view(args: argparse.Namespace) -> int:
    """Draw some images of a data set as the mapper gives them."""
    _require_positive(count=args.count)
    if args.seed < 0:
        raise UserError(f"--seed {args.seed}: takes a whole number of at least 0")
    _require_png("--output", args.output)
    cfg = _config(args)
    from detectron2.data import MetadataCatalog

    from seg_ext.cli.contact_sheet import mapped_sheet
    from seg_ext.data.mapper import SegMapper

    if cfg is None:
        require_known(args.names)
        names = args.names[: 1 if args.data else None]
        if len(names) > 1:
            raise UserError(f"{', '.join(names)}: seg-ext data view takes one data set")
        meta = MetadataCatalog.get(names[0])
        records = _records(names)
        objects = [annotation for _, record in records for annotation in record.get("annotations") or ()]
        mapper = SegMapper(
            not args.test,
            augmentations=[],
            num_classes=len(meta.get("stuff_classes") or ()) or None,
            ignore=meta.get("ignore_label", 255),
            masks=None if not objects else "bitmask" if any("segmentation" in a for a in objects) else "none",
        )
    else:
        names = list(cfg.DATASETS.TEST if args.test else cfg.DATASETS.TRAIN)
        if not names:
            raise UserError(f"DATASETS.{'TEST' if args.test else 'TRAIN'} is empty: name at least one data set")
        records, mapper = _records(names), SegMapper(cfg, is_train=not args.test)
    _write("--output", args.output, mapped_sheet(records, mapper, count=args.count, seed=args.seed))
    print(f"{args.output}: {min(args.count, len(records))} of {len(records)} images of {', '.join(names)}")
    return 0


def _config(args: argparse.Namespace) -> CfgNode | None:
    """Register the data sets; the config, if one is named."""
    if not (args.config_file or args.names or args.data):
        raise UserError(f"seg-ext data {args.action}: give the name of a data set, --config-file or --data FILE")
    import seg_ext

    seg_ext.register()
    from seg_ext.engine.setup import read_config, start_logging

    start_logging()
    if not args.config_file:
        args.names += _own(args.data) if args.data else []
        return None
    args.opts = [*args.names, "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""]
    return read_config(args)


def _own(file: str) -> list[str]:
    """Register the splits of a data.yaml; their names."""
    from seg_ext.data.datasets.own import read_data_file
    from seg_ext.data.datasets.own_register import register_own

    return register_own(read_data_file(file))


def _records(names: Iterable[str]) -> list[tuple[str, dict[str, Any]]]:
    """Pairs of data set and record."""
    from detectron2.data import DatasetCatalog

    records: list[tuple[str, dict[str, Any]]] = []
    for name in names:
        try:
            records += [(name, record) for record in DatasetCatalog.get(name)]
        except (OSError, AssertionError, KeyError) as error:
            raise UserError(f"data set {name} cannot be loaded: {' '.join(str(error).split())}") from error
    return records


def _require_positive(**options: int | None) -> None:
    for name, value in options.items():
        if value is not None and value < 1:
            raise UserError(f"--{name} {value}: takes a whole number of at least 1")


def _require_png(option: str, file: Path | None) -> None:
    if file is not None and file.suffix.lower() != ".png":
        raise UserError(f"{option} {file}: pictures are written as PNG; end the name in .png")


def _write(option: str, file: Path, content: bytes) -> None:
    try:
        file.write_bytes(content)
    except OSError as error:
        raise UserError(f"{option} {file}: cannot be written: {error.strerror}") from error
