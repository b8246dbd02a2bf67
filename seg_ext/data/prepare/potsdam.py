"""ISPRS Potsdam's orthophotos, cut into crops of a size that a data loader can read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from seg_ext.data.datasets.potsdam import CLASSES, SPLITS
from seg_ext.data.label_io import image_size, read_image, write_label
from seg_ext.data.prepare.archive import opened
from seg_ext.data.prepare.outputs import Outputs, count_files, finish, is_finished, made, make, write_json
from seg_ext.data.prepare.report import Report
from seg_ext.errors import UserError

BANDS = ("RGB", "IRRG")
VOID = 255
KINDS = {"label": "labels", "label_noBoundary": "labels_eroded"}
WANTED = (
    "give --source DIR, a folder or archive with top_potsdam_2_10_RGB.tif (or _IRRG.tif), top_potsdam_2_10_label.tif,"
    " ... of the ISPRS 2D Semantic Labeling benchmark (isprs.org, Potsdam); unpack the archives inside it"
)
_NEAR = 32  # how far a channel of a label's colour may lie from 0 or 255
_SETTINGS = "tiles.json"


def prepare(root: Path, source: Path | None = None, *, tile: int = 512, overlap: int = 0, bands: str = "RGB") -> Report:
    """Make ``root/potsdam/{train,test}/{images,labels}`` and ``labels_eroded`` of the test areas.

    Crops start every ``tile - overlap`` pixels and end at the border, so that the last ones may be smaller; the test
    areas never overlap: each of their pixels counts once. Names are AREA_TOP_LEFT.png. Labels are looked up by
    colour, black is void; colours up to 32 off, which some areas hold, count as the class's. At most four files
    are mapped, or, where they are compressed, held in memory at a time.

    Args:
        root: folder of all data sets.
        source: folder or archive of the orthophotos, searched throughout; None where the crops are in place.
        tile: side of the crops in pixels.
        overlap: of neighbouring training crops in pixels, less than ``tile``.
        bands: of the images, "RGB" or "IRRG" (infrared, red, green).

    Raises:
        UserError: no source, an image without labels, an unknown colour, or crops of other settings are in place.
    """
    if tile < 1 or not 0 <= overlap < tile or bands not in BANDS:
        raise UserError(
            f"--tile {tile} --overlap {overlap} --bands {bands}: the overlap is less than the tile, bands are"
            f" {' or '.join(BANDS)}"
        )
    place = root / "potsdam"
    written = 0
    if source is None and not count_files(place / "train" / "images"):
        raise UserError(f"{place} holds no crops: {WANTED}")
    if source is not None:
        settings = {"tile": tile, "overlap": overlap, "bands": bands}
        _check_settings(place / _SETTINGS, settings)
        if not is_finished(place):
            with opened(source, made(place)) as folder:
                outputs = _outputs(place, folder, tile, overlap, bands)
                write_json(place / _SETTINGS, settings)
                try:
                    written = make(outputs, "potsdam")
                finally:
                    _image.cache_clear()
            finish(place, outputs)
    return Report(place, written > 0, [_line(place, split) for split in SPLITS])


def _check_settings(file: Path, settings: dict[str, Any]) -> None:
    if file.exists() and (text := file.read_text()) != json.dumps(settings):
        raise UserError(f"{file.parent} was made with {text}; move it away, or give the same settings")


def _outputs(place: Path, folder: Path, tile: int, overlap: int, bands: str) -> Outputs:
    pattern = re.compile(rf"top_potsdam_(\d+_\d+)_({'|'.join([bands, *KINDS])})\.tif")
    found = {(match[1], match[2]): f for f in sorted(folder.rglob("*.tif")) if (match := pattern.fullmatch(f.name))}
    outputs: dict[Path, Any] = {}
    for split, areas in SPLITS.items():
        for area in areas:
            if (area, bands) not in found and (area, "label") not in found:
                continue
            for kind in (bands, "label"):
                if (area, kind) not in found:
                    raise UserError(f"top_potsdam_{area}_{kind}.tif is not in the source, but its partner is: {WANTED}")
            image = found[area, bands]
            corners = list(_corners(*image_size(image), tile, overlap if split == "train" else 0))
            for kind, to in {bands: "images", **KINDS}.items():
                if (area, kind) not in found or (to == "labels_eroded" and split == "train"):
                    continue
                if image_size(found[area, kind]) != image_size(image):
                    raise UserError(f"{found[area, kind].name} and {image.name} differ in size; they must be equal")
                write = _write_image if to == "images" else _write_label
                outputs |= {
                    place / split / to / f"{area}_{top:04d}_{left:04d}.png": partial(
                        write, found[area, kind], top, left, tile
                    )
                    for top, left in corners
                }
    if not outputs:
        raise UserError(f"{folder} holds none of the benchmark's areas: {WANTED}")
    return outputs


def _corners(height: int, width: int, tile: int, overlap: int) -> Iterator[tuple[int, int]]:
    """Top and left of the crops that cover the image."""
    rows, columns = (range(0, max(side - overlap, 1), tile - overlap) for side in (height, width))
    return ((top, left) for top in rows for left in columns)


@lru_cache(maxsize=4)
def _image(path: Path) -> NDArray[Any]:
    """(H, W, 3), mapped from the file where it is not compressed."""
    try:
        pixels: NDArray[Any] = tifffile.memmap(path, mode="r")
    except ValueError:  # compressed
        pixels = read_image(path, "RGB")
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise UserError(f"{path}: a {pixels.dtype} array of {pixels.shape}; expected uint8 (H, W, 3)")
    return pixels


def _crop(path: Path, top: int, left: int, tile: int) -> NDArray[np.uint8]:
    return np.ascontiguousarray(_image(path)[top : top + tile, left : left + tile])


def _write_image(source: Path, top: int, left: int, tile: int, path: Path) -> None:
    Image.fromarray(_crop(source, top, left, tile)).save(path)


def _write_label(source: Path, top: int, left: int, tile: int, path: Path) -> None:
    write_label(path, to_ids(_crop(source, top, left, tile), source.name))


def to_ids(rgb: NDArray[np.uint8], name: str) -> NDArray[np.uint8]:
    """Class ids of a colour-coded label map.

    Args:
        rgb: (H, W, 3).
        name: of the file, for errors.

    Returns:
        (H, W), 0..5, and 255 where it is black.

    Raises:
        UserError: a colour is none of the benchmark's.
    """
    table = np.full(8, 254, np.uint8)
    table[0] = VOID
    table[[_code(color) for color in CLASSES.values()]] = range(len(CLASSES))
    ids = table[(rgb > 127) @ np.array([4, 2, 1], np.uint8)]
    wrong = (ids == 254) | ((rgb > _NEAR) & (rgb < 255 - _NEAR)).any(axis=2)
    if wrong.any():
        colors = np.unique(rgb[wrong], axis=0)[:4].tolist()
        raise UserError(f"{name} holds the colours {colors} (RGB); classes have {list(CLASSES.values())}, void black")
    return ids


def _code(color: tuple[int, int, int]) -> int:
    return sum(bit for bit, channel in zip((4, 2, 1), color, strict=True) if channel)


def _line(place: Path, split: str) -> str:
    names = [file.name for file in (place / split / "images").glob("*.png")]
    areas = len({"_".join(name.split("_")[:2]) for name in names})
    return f"potsdam_{split}: {len(names)} crops of {areas} of {len(SPLITS[split])} areas"
