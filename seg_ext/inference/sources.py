"""What to predict: files, folders, globs, URLs, videos and cameras as a list of sources, and the images in each."""

from __future__ import annotations

import glob
import os
import re
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from seg_ext.data.files import is_tiff, naming, tiff_images
from seg_ext.data.image_io import CHANNELS, check_bands, read_image
from seg_ext.errors import UserError
from seg_ext.evaluation.output_files import path_hash

Array = NDArray[Any]

IMAGES = (".bmp", ".jpeg", ".jpg", ".npy", ".png", ".tif", ".tiff", ".webp")
VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")
_NUMBERED = re.compile(r"_\d{6}$")
_URLS = ("http://", "https://")
_WAIT = 30  # seconds for a server
_GREATEST = 1 << 28  # bytes of a file from the net


@dataclass(frozen=True)
class Source:
    """One input: a file, a URL or a camera.

    Attributes:
        key: as the user gave it, or the file found in a folder; unique.
        name: of its output files, without folder and suffix; unique.
        kind: "image", "url", "video" or "camera".
    """

    key: str
    name: str
    kind: str


@dataclass(frozen=True)
class Item:
    """One image of a source.

    Attributes:
        key: the source's, with "#" and the number of page or frame where there are several; unique.
        name: of its output files, likewise.
        source: that it belongs to.
        read: gives it, (H, W, C) in the model's format; raises UserError.
        rate: frames a second, of a video.
    """

    key: str
    name: str
    source: Source
    read: Callable[[], Array]
    rate: float = 0.0


def find_sources(inputs: Sequence[str], *, allow_urls: bool = False) -> list[Source]:
    """The sources behind arguments, in their order, each once.

    An argument is a file; a folder, of which the images and videos directly in it are taken, sorted; a pattern with
    ``*``, ``?``, ``[...]`` or ``**``; a URL; or the number of a camera.

    Raises:
        UserError: what does not exist, a folder or pattern without images, a URL while they are not allowed.
    """
    kinds: dict[str, str] = {}
    for given in inputs:
        if given.lower().startswith(_URLS):
            if not allow_urls:
                raise UserError(f"{given}: nothing is fetched from the net unless --allow-urls is given")
            kinds[given] = "url"
        elif os.path.isdir(given):
            kinds |= _kinds(given, (entry.path for entry in os.scandir(given) if entry.is_file()), "in this folder")
        elif os.path.isfile(given):
            kinds[given] = _kind(given) or "image"
        elif given.isdecimal():
            kinds[given] = "camera"
        elif glob.has_magic(given):
            kinds |= _kinds(given, filter(os.path.isfile, glob.iglob(given, recursive=True)), "of this pattern")
        else:
            raise UserError(f"{given}: no such file or folder")
    stems = {key: f"camera{key}" if kind == "camera" else _stem(key) for key, kind in kinds.items()}
    taken = {stem for stem, count in Counter(stems.values()).items() if count > 1}
    taken |= {stem[:-7] for stem in stems.values() if _NUMBERED.search(stem)}  # which pages and frames are called
    return [Source(k, f"{stems[k]}-{path_hash(k)}" if stems[k] in taken else stems[k], v) for k, v in kinds.items()]


def _kind(path: str) -> str | None:
    suffix = Path(path).suffix.lower()
    return "video" if suffix in VIDEOS else "image" if suffix in IMAGES else None


def _kinds(given: str, paths: Iterable[str], where: str) -> dict[str, str]:
    found = {path: kind for path in sorted(paths) if (kind := _kind(path))}
    if not found:
        raise UserError(f"{given}: no image {where}; takes {', '.join(IMAGES + VIDEOS)}")
    return found


def _stem(key: str) -> str:
    path = urllib.parse.unquote(urllib.parse.urlsplit(key).path) if key.lower().startswith(_URLS) else key
    return Path(path).stem.replace("..", "_").replace("/", "_") or "image"


def open_source(source: Source, format: str, *, bands: int, frames: int | None = None) -> Iterator[Item]:
    """The images of a source; those of files are read when asked for, frames at once.

    The pages of a TIFF are images, unless the model takes them together as its bands: with "BANDS", where a page has
    not as many as the model.

    Args:
        source: what to open.
        format: one of :data:`seg_ext.data.image_io.CHANNELS`.
        bands: channels that the model takes.
        frames: of a video or camera, at most.

    Raises:
        UserError: it cannot be opened; or, of a video, nothing can be read.
    """
    if source.kind in ("video", "camera"):
        yield from _frames(source, format, bands=bands, most=frames)
    elif source.kind == "url":
        yield Item(source.key, source.name, source, lambda: _fetch(source.key, format, bands))
    else:
        pages: list[int] = []
        if is_tiff(source.key):
            with naming(source.key):
                pages, samples = tiff_images(source.key)
            pages = [] if format == "BANDS" and samples != bands else pages
        if len(pages) < 2:
            yield Item(source.key, source.name, source, lambda: read_image(source.key, format, bands=bands))
            return
        for number, page in enumerate(pages):
            key, name = _numbered(source, number)
            yield Item(key, name, source, lambda page=page: read_image(source.key, format, bands=bands, page=page))  # type: ignore[misc]


def _numbered(source: Source, number: int) -> tuple[str, str]:
    return f"{source.key}#{number:06d}", f"{source.name}_{number:06d}"


def _frames(source: Source, format: str, *, bands: int, most: int | None) -> Iterator[Item]:
    capture = cv2.VideoCapture(int(source.key) if source.kind == "camera" else source.key)
    try:
        number = 0
        rate = capture.get(cv2.CAP_PROP_FPS) or 25.0
        while most is None or number < most:
            there, frame = capture.read()
            if not there:
                break
            image = as_channels(frame, format)
            check_bands(source.key, image, bands)
            yield Item(*_numbered(source, number), source, lambda image=image: image, rate)  # type: ignore[misc]
            number += 1
        if not number:
            what = "no such camera" if source.kind == "camera" else "not a video that can be read"
            raise UserError(f"{source.key}: {what}")
    finally:
        capture.release()


def as_channels(frame: Array, format: str) -> Array:
    """A frame (H, W, 3), BGR uint8, in an image format; "BANDS" takes it as RGB."""
    if CHANNELS[format] == 1:
        return cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)[..., None]
    return frame if format == "BGR" else np.ascontiguousarray(frame[..., ::-1])


def _fetch(url: str, format: str, bands: int) -> Array:
    """The image behind a URL, through a file that is gone afterwards."""
    suffix = Path(urllib.parse.urlsplit(url).path).suffix
    with NamedTemporaryFile(suffix=suffix if suffix.lower() in IMAGES else ".image") as file:
        try:
            with urllib.request.urlopen(url, timeout=_WAIT) as answer:
                content = answer.read(_GREATEST + 1)
        except (OSError, ValueError) as error:
            raise UserError(f"{url}: cannot be fetched: {error}") from error
        if len(content) > _GREATEST:
            raise UserError(f"{url}: more than {_GREATEST >> 20} MiB")
        file.write(content)
        file.flush()
        try:
            return read_image(file.name, format, bands=bands)
        except UserError as error:
            raise UserError(error.line.replace(file.name, url)) from error
