"""Semantic scores that any tool saved, one (K, H, W) array of floats an image: .npy, .npz or TIFF."""

from __future__ import annotations

import struct
import zlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import tifffile
import torch
from torch import Tensor

from seg_ext.errors import UserError
from seg_ext.evaluation.output_files import names_below
from seg_ext.postprocess import probabilities_to_scores

SUFFIXES = (".npy", ".npz", ".tif", ".tiff")
_DAMAGED = (EOFError, IndexError, KeyError, BadZipFile, struct.error, zlib.error, tifffile.TiffFileError)


def read_scores(path: str | Path, *, logits: bool = False) -> Tensor:
    """The scores in a file.

    Args:
        path: (K, H, W) floats, K at least 2; in an .npz alone or by the name "sem_seg".
        logits: they are scores whose softmax is the probability; else they are the probabilities.

    Returns:
        (K, H, W) float32 scores.

    Raises:
        UserError: no such file, something else in it, values that are not finite, or probabilities that are none.
    """
    array = _read(Path(path))
    if array.ndim != 3 or array.dtype.kind != "f" or len(array) < 2:
        shape = "x".join(map(str, array.shape))
        raise UserError(f"{path}: {shape} {array.dtype}; takes (K, H, W) floats, a map for each of 2 or more classes")
    scores = torch.from_numpy(array.astype(np.float32))
    if not bool(scores.isfinite().all()):
        raise UserError(f"{path}: has values that are not finite")
    if logits:
        return scores
    try:
        return probabilities_to_scores(scores[None])[0]
    except ValueError as error:
        raise UserError(f"{path}: {error} (--logits takes scores before the softmax)") from error


def _read(path: Path) -> np.ndarray:
    try:
        if path.suffix.lower() in (".tif", ".tiff"):
            return np.asarray(tifffile.imread(path))
        with path.open("rb") as stream:
            found = np.load(stream, allow_pickle=False)
            if isinstance(found, np.ndarray):
                return found
            name = "sem_seg" if "sem_seg" in found.files or len(found.files) != 1 else found.files[0]
            return np.asarray(found[name])
    except (OSError, ValueError, *_DAMAGED) as error:
        raise UserError(f"{path}: cannot be read as scores: {' '.join(str(error).split())}") from error


def find_scores(folder: str | Path, images: Sequence[str | Path]) -> list[Path]:
    """The file of each image: below the folder by its path below the folder of images, or by its stem.

    Raises:
        UserError: no such folder, or an image without a file or with two.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; takes one of score maps ({', '.join(SUFFIXES)})")
    found: dict[str, list[Path]] = defaultdict(list)
    for file in sorted(root.rglob("*")):
        if file.suffix.lower() in SUFFIXES:
            key = file.relative_to(root).with_suffix("").as_posix()
            found[key].append(file)
    chosen = []
    for image, name in zip(images, names_below(list(map(str, images))), strict=True):
        key = Path(name).with_suffix("").as_posix()
        files = found.get(key) or found.get(Path(image).stem, [])
        if len(files) != 1:
            what = f"two maps, {files[0]} and {files[1]}" if files else f"no map {root / key}.npy, .npz or .tif"
            raise UserError(f"{image} has {what}; takes one")
        chosen += files
    if len(set(chosen)) < len(chosen):
        twice = next(file for file in chosen if chosen.count(file) > 1)
        raise UserError(f"{twice}: belongs to several images; give maps the paths of their images")
    return chosen
