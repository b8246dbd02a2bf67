"""What ``seg-ext refine`` works on: a data set or a folder of images, and the saved scores of each."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seg_ext.cli.arguments import data_sets, require_known
from seg_ext.errors import UserError

_IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}


def data_set(args: argparse.Namespace, tested: Sequence[str]) -> str:
    """The data set that the arguments mean; "" where a folder of images serves without one.

    Raises:
        UserError: none or several where one is needed, or an unknown one.
    """
    names = data_sets(args, tested)
    if args.images and not args.search and not (args.dataset or args.data):
        return ""
    if len(names) != 1:
        what = "--search needs one data set with ground truth" if args.search else "give --images DIR, or one data set"
        raise UserError(f"{what}: --dataset NAME, --data FILE, or a config with one DATASETS.TEST")
    require_known(names)
    return names[0]


def records_of(args: argparse.Namespace, name: str) -> list[dict[str, Any]]:
    """A record for each image, of the data set or with nothing but a file name."""
    from detectron2.data import DatasetCatalog

    if args.images:
        folder = Path(args.images)
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; --images takes one of images")
        found = [{"file_name": str(file)} for file in sorted(folder.rglob("*")) if file.suffix.lower() in _IMAGES]
    else:
        found = list(DatasetCatalog.get(name))
    if not found:
        raise UserError(f"{args.images or name}: no image to refine the map of")
    if args.limit and args.limit < len(found):
        found = [found[i * len(found) // args.limit] for i in range(args.limit)]
    return found


def read_pair(args: argparse.Namespace, record: dict[str, Any], file: Path) -> tuple[Any, Any]:
    """Scores (K, H, W) and image (B, H, W) of a record."""
    import torch

    from seg_ext.data.image_io import read_image
    from seg_ext.inference.saved_scores import read_scores

    scores = read_scores(file, logits=args.logits)
    image = torch.from_numpy(read_image(record["file_name"], args.format)).permute(2, 0, 1)
    if image.shape[1:] != scores.shape[1:]:
        ours, theirs = ("x".join(map(str, x.shape[1:])) for x in (scores, image))
        raise UserError(f"{file}: a map of {ours} for {record['file_name']} of {theirs}; takes equal sizes")
    return scores, image
