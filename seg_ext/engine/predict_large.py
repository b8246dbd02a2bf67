"""Images that are too large to be predicted at once: windows, from file to file."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from seg_ext.data.files import is_numpy, is_tiff, naming, read_numpy, tiff_page
from seg_ext.engine.predictor import Predictor
from seg_ext.engine.setup import interactive
from seg_ext.errors import UserError
from seg_ext.evaluation.output_files import replacing
from seg_ext.inference.large_raster import predict_raster
from seg_ext.inference.sources import Source

WINDOW = (512, 512)  # where TEST.SLIDING_WINDOW has no SIZE
_SUFFIXES = {"labels": ".tif", "ids": ".tif", "probabilities": ".npy"}  # by kind of output


def is_large(source: Source, limit: float) -> bool:
    """Whether a TIFF or .npy has more than ``limit`` million pixels, by its header; False where that cannot be read."""
    if source.kind != "image" or not (is_tiff(source.key) or is_numpy(source.key)):
        return False
    try:
        height, width = _size(source.key)
    except UserError:  # said where it is read
        return False
    return height * width > limit * 1e6


def _size(path: str) -> tuple[int, int]:
    """Height and width, from the header alone."""
    with naming(path):
        if is_tiff(path):
            return tiff_page(path)[:2]
        sides = read_numpy(path).shape
    if len(sides) == 3 and sides[0] < sides[2]:
        return sides[1], sides[2]
    return (*sides, 1)[:2]


def predict_large(
    predictor: Predictor, source: Source, output: Path, *, save: frozenset[str], about: Mapping[str, Any]
) -> dict[str, Any]:
    """Write what a semantic model says of a large image: ``labels/x.tif``, ``ids/x.tif``, ``probabilities/x.npy``.

    A TIFF lies on the map where the image does. The windows are those of TEST.SLIDING_WINDOW, not resized; a run that
    was stopped goes on in the middle of the image.

    Returns:
        "image": COCO's entry of the image without id.

    Raises:
        UserError: it cannot be read or written, or nothing is asked for that a large image can have.
    """
    wanted = {kind: suffix for kind, suffix in _SUFFIXES.items() if kind in save}
    if not wanted:
        raise UserError(f"{source.key}: too large to be predicted at once; takes --save {', '.join(_SUFFIXES)}")
    keys = predictor.config.TEST.SLIDING_WINDOW
    for kind, suffix in wanted.items():
        target = output / kind / f"{source.name}{suffix}"
        if kind == "ids" and "labels" in wanted:
            with replacing(target) as path:
                shutil.copyfile(output / "labels" / target.name, path)
            continue
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{target} cannot be written: {error.strerror or error}") from error
        with tqdm(desc=f"{source.name} {kind}", unit="band", disable=not interactive(), leave=False) as bar:
            predict_raster(
                predictor.predict,
                source.key,
                target=target,
                format=predictor.mapper.image_format,
                bands=predictor.mapper.bands,
                about=about,
                window=keys.SIZE or WINDOW,
                overlap=keys.OVERLAP,
                blend=keys.BLEND,
                batch=keys.BATCH,
                output="probabilities" if kind == "probabilities" else "labels",
                progress=partial(_show, bar),
            )
    height, width = _size(source.key)
    return {"image": {"file_name": source.key, "height": height, "width": width}}


def _show(bar: tqdm[Any], done: int, total: int) -> None:
    bar.total, bar.n = total, done
    bar.refresh()
