"""The nuclei data set from the example image in StarDist's wheel (BSD-3), read as data: nothing of it is installed."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from seg_ext.data.derive import derive_coco
from seg_ext.data.label_io import write_label
from seg_ext.data.prepare.report import Report
from seg_ext.errors import UserError

VERSION = 1  # of the prepared tree
WHEEL = "stardist==0.9.2"
SHA256 = "2316c0feb7bd5621e7a277cb3868df475c338943c591925c420ee3622c42f023"
DOWNLOAD = [
    *("download", WHEEL, "--no-deps", "--only-binary=:all:", "--python-version=3.11", "--implementation=cp"),
    *("--abi=cp311", "--platform=manylinux_2_28_x86_64", "--disable-pip-version-check", "--retries=1"),
]
SIDE = 512  # pixels of the square image
ROWS = {"train": slice(0, 384), "test": slice(384, SIDE)}
SLIVER = 10  # pixels
PERCENTILES = (1, 99.8)
_MARKER = "prepared.json"


def prepare(root: Path, source: Path | None = None) -> Report:
    """Make ``root/nuclei``; a complete one is left as it is and nothing is downloaded.

    The upper 384 rows are the training image, the lower 128 the test image. Nuclei on the cut are in both, each with
    its own part; a part of fewer than 10 pixels becomes background. Pixel values are rescaled linearly to 8 bit,
    percentiles 1 and 99.8 of the training rows to 0 and 255.

    Args:
        root: folder of all data sets.
        source: the wheel, where it is at hand; None downloads it with pip (3 MB).

    Raises:
        UserError: no network, another wheel than the expected one, or something else is in the way.
    """
    place = root / "nuclei"
    fresh = not place.exists()
    if fresh:
        try:
            _make(place, source)
        except OSError as error:
            raise UserError(f"{place} cannot be made: {error.strerror or error}; --root names another place") from error
    return Report(place, fresh, _lines(_manifest(place)))


def _make(place: Path, source: Path | None) -> None:
    """Build the tree beside its place and move it there."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".nuclei-", dir=place.parent) as temporary:
        wheel = _checked(source or _download(Path(temporary)))
        tree = Path(temporary) / "nuclei"
        _write_tree(tree, *_read_wheel(wheel))
        os.replace(tree, place)


def _download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", *DOWNLOAD, f"--dest={folder}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        reason = [line for line in done.stderr.splitlines() if line.strip()][-1:] or ["pip gave no reason"]
        raise UserError(
            f"{WHEEL} could not be downloaded ({reason[0].removeprefix('ERROR: ')}); with a network elsewhere run"
            f" `python -m pip {' '.join(DOWNLOAD[:-2])}` and give the file with --source"
        )
    return wheels[0]


def _checked(wheel: Path) -> Path:
    if not wheel.is_file():
        raise UserError(f"{wheel}: no such file; give the wheel of {WHEEL}")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != SHA256:
        raise UserError(f"{wheel.name} has the sha256 {digest}; the wheel of {WHEEL} has {SHA256}")
    return wheel


def _read_wheel(wheel: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    with zipfile.ZipFile(wheel) as archive:
        files = (archive.read(f"stardist/data/images/{name}.tif") for name in ("img2d", "mask2d"))
        image, labels = (tifffile.imread(io.BytesIO(file)) for file in files)
    for name, array in (("img2d", image), ("mask2d", labels)):
        if array.shape != (SIDE, SIDE) or array.dtype != np.uint16:
            raise UserError(f"{wheel.name}: {name} is a {array.dtype} array of {array.shape}; expected uint16, 512x512")
    return image, labels


def _write_tree(tree: Path, image: NDArray[Any], labels: NDArray[Any]) -> None:
    low, high = np.percentile(image[ROWS["train"]], PERCENTILES)
    scaled = np.rint((image - low).clip(0, high - low) * (255 / (high - low))).astype(np.uint8)
    counts = {}
    for split, rows in ROWS.items():
        for kind in ("images", "labels"):
            (tree / split / kind).mkdir(parents=True)
        Image.fromarray(scaled[rows]).save(tree / split / "images" / "img2d.png")
        write_label(tree / split / "labels" / "img2d.png", _cut(labels, rows))
        counts[split] = derive_coco(tree, split, thing_class="nucleus")
    files = {p.relative_to(tree).as_posix(): _digest(p) for p in sorted(tree.rglob("*")) if p.is_file()}
    marker = {"version": VERSION, "source": WHEEL, "sha256": SHA256, "splits": counts, "files": files}
    (tree / _MARKER).write_text(json.dumps(marker, indent=1))


def _cut(labels: NDArray[Any], rows: slice) -> NDArray[np.uint16]:
    """The rows' labels, numbered 1..N, without slivers of nuclei that lie mostly in other rows."""
    whole = np.bincount(labels.ravel())
    here = np.bincount(labels[rows].ravel(), minlength=whole.size)
    kept = (here >= SLIVER) | ((here > 0) & (here == whole))
    kept[0] = False
    return (np.cumsum(kept) * kept).astype(np.uint16)[labels[rows]]


def _manifest(place: Path) -> dict[str, Any]:
    advice = "move it away, or delete it, and run again"
    try:
        manifest = json.loads((place / _MARKER).read_text())
        version, files = manifest["version"], manifest["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{place} exists, but this command did not make it; {advice}") from error
    if version != VERSION:
        raise UserError(f"{place} was made by another version of this command; {advice}")
    for name, digest in files.items():
        if not (place / name).is_file() or _digest(place / name) != digest:
            raise UserError(f"{place}: {name} is missing or changed; {advice}")
    return manifest


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _lines(manifest: dict[str, Any]) -> list[str]:
    heights = {split: rows.stop - rows.start for split, rows in ROWS.items()}
    return [
        f"nuclei_{split}: {counts['images']} image of {SIDE}x{heights[split]}, {counts['instances']} nuclei"
        for split, counts in manifest["splits"].items()
    ]
