"""Aerial imagery of Dubai: colour masks of Kaggle's layout as class ids."""

from __future__ import annotations

import random
import re
import shutil
from functools import partial
from pathlib import Path

import numpy as np

from seg_ext.data.datasets.aerial_dubai import CLASSES, SPLITS, VOID
from seg_ext.data.label_io import read_image, write_label
from seg_ext.data.prepare.archive import opened
from seg_ext.data.prepare.outputs import Outputs, Writer, count_files, finish, is_finished, made, make
from seg_ext.data.prepare.report import Report
from seg_ext.errors import UserError

SEED = 0
HELD_OUT = 0.2  # of the parts
WANTED = (
    "give --source DIR, the folder or archive with Tile N/images/*.jpg and Tile N/masks/*.png from"
    " kaggle.com/datasets/humansintheloop/semantic-segmentation-of-aerial-imagery"
)


def prepare(root: Path, source: Path | None = None) -> Report:
    """Make ``root/aerial_dubai/{train,val}/{images,labels}`` from Kaggle's layout.

    A fifth of the parts, drawn with a fixed seed, is validation. Images are copied as they are.

    Args:
        root: folder of all data sets.
        source: folder or archive of the tiles; None where the data are in place.

    Raises:
        UserError: no source, an image without a mask, an unknown colour, or a place that cannot be written.
    """
    place = root / "aerial_dubai"
    written = 0
    if source is None and not all(count_files(place / split / "labels") for split in SPLITS):
        raise UserError(f"{place} holds no images: {WANTED}")
    if source is not None and not is_finished(place):
        with opened(source, made(place)) as folder:
            outputs = _outputs(place, folder)
            written = make(outputs, "aerial_dubai")
        finish(place, outputs)
    counts = {split: count_files(place / split / "images") for split in SPLITS}
    return Report(place, written > 0, [f"aerial_dubai_{split}: {count} images" for split, count in counts.items()])


def _outputs(place: Path, folder: Path) -> Outputs:
    pairs = {}
    for image in sorted(folder.rglob("Tile */images/*.jpg")):
        mask = image.parents[1] / "masks" / f"{image.stem}.png"
        number = re.search(r"\d+$", image.parents[1].name)
        if not mask.is_file() or not number:
            raise UserError(f"{image}: no mask {mask}; {WANTED}")
        pairs[f"tile{number[0]}_{image.stem.removeprefix('image_')}"] = image, mask
    if not pairs:
        raise UserError(f"{folder} holds no Tile N/images/*.jpg: {WANTED}")
    held_out = set(random.Random(SEED).sample(sorted(pairs), max(1, round(HELD_OUT * len(pairs)))))
    outputs: dict[Path, Writer] = {}
    for name, (image, mask) in pairs.items():
        base = place / ("val" if name in held_out else "train")
        outputs[base / "images" / f"{name}.jpg"] = partial(shutil.copyfile, image)
        outputs[base / "labels" / f"{name}.png"] = partial(_write_label, mask)
    return outputs


def _write_label(mask: Path, path: Path) -> None:
    rgb = read_image(mask, "RGB").astype(np.int32) @ np.array([65536, 256, 1], np.int32)
    ids = np.full(rgb.shape, -1, np.int32)
    for i, color in [*enumerate(CLASSES.values()), *((255, color) for color in VOID)]:
        ids[rgb == int.from_bytes(color, "big")] = i
    if (ids < 0).any():
        wrong = ", ".join(f"#{color:06x}" for color in np.unique(rgb[ids < 0])[:4].tolist())
        raise UserError(f"{mask} holds the colours {wrong}; none of the five classes' and not unlabelled")
    write_label(path, ids)
