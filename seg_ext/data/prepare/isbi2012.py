"""ISBI 2012's stacks of slices, one PNG a slice."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from seg_ext.data.label_io import write_label
from seg_ext.data.prepare.archive import opened
from seg_ext.data.prepare.outputs import count_files, finish, is_finished, made, make
from seg_ext.data.prepare.report import Report
from seg_ext.errors import UserError

STACKS = ("train-volume.tif", "train-labels.tif")
WANTED = (
    f"give --source DIR, the folder or archive of {' and '.join(STACKS)} from the ISBI 2012 challenge"
    " (imagej.net/events/isbi-2012-segmentation-challenge)"
)


def prepare(root: Path, source: Path | None = None) -> Report:
    """Make ``root/isbi2012/train/{images,labels}/NN.png`` from the challenge's stacks.

    The stacks' labels 255 (cell) and 0 (membrane) become 0 and 1.

    Args:
        root: folder of all data sets.
        source: folder or archive that holds both stacks; None where the data are in place.

    Raises:
        UserError: no source, stacks that do not fit, or a place that cannot be written.
    """
    place = root / "isbi2012"
    written = 0
    if source is None and not count_files(place / "train" / "labels"):
        raise UserError(f"{place} holds no slices: {WANTED}")
    if source is not None and not is_finished(place):
        with opened(source, made(place)) as folder:
            outputs = {
                place / "train" / kind / f"{i:02d}.png": partial(write, image)
                for kind, write, stack in zip(
                    ("images", "labels"), (_write_image, _write_label), _read(folder), strict=True
                )
                for i, image in enumerate(stack)
            }
            written = make(outputs, "isbi2012")
        finish(place, outputs)
    return Report(place, written > 0, [f"isbi2012_trainval: {count_files(place / 'train' / 'images')} slices"])


def _read(folder: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    """Images and labels, (N, H, W) uint8 each."""
    found = [sorted(folder.rglob(name))[:1] for name in STACKS]
    lacking = [name for name, files in zip(STACKS, found, strict=True) if not files]
    if lacking:
        raise UserError(f"{lacking[0]} is not in the source: {WANTED}")
    try:
        images, labels = (tifffile.imread(files[0]) for files in found)
    except (OSError, ValueError, tifffile.TiffFileError) as error:
        raise UserError(f"{found[0][0].parent}: its stacks cannot be read: {' '.join(str(error).split())}") from error
    for name, stack in zip(STACKS, (images, labels), strict=True):
        if stack.ndim != 3 or stack.dtype != np.uint8 or stack.shape != images.shape:
            raise UserError(f"{name}: a {stack.dtype} array of {stack.shape}; both stacks are uint8 (N, H, W)")
    wrong = np.setdiff1d(labels, (0, 255))
    if wrong.size:
        raise UserError(f"{STACKS[1]} holds the values {wrong[:8].tolist()}; labels are 255 cell and 0 membrane")
    return images, labels


def _write_image(image: NDArray[np.uint8], path: Path) -> None:
    Image.fromarray(image).save(path)


def _write_label(label: NDArray[np.uint8], path: Path) -> None:
    write_label(path, (label == 0).astype(np.uint8))
