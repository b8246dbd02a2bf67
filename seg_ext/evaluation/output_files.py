"""Files that appear whole or not at all, and names for them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from seg_ext.errors import UserError


def path_hash(path: str) -> str:
    """Eight hexadecimal digits that tell paths apart."""
    return hashlib.sha1(os.fsencode(path), usedforsecurity=False).hexdigest()[:8]


def names_below(paths: Sequence[str]) -> list[str]:
    """The paths below the folder of all of them."""
    root = os.path.commonpath([os.path.dirname(path) for path in paths] or [""])
    return [Path(os.path.relpath(path, root or None)).as_posix() for path in paths]


def make_folder(folder: Path) -> None:
    """Make a folder for output, with those above it.

    Raises:
        UserError: it cannot be made, or nothing can be written in it.
    """
    probe = folder / f".writable-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"output folder {folder} cannot be written: {error.strerror or error}") from error


def write_picture(path: Path, picture: NDArray[Any]) -> None:
    """Write an (H, W, 3) RGB uint8 array as PNG, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(cv2.imencode(".png", picture[..., ::-1])[1].tobytes())


def write_array(path: Path, values: NDArray[Any]) -> None:
    """Write an array as .npy, whole or not at all."""
    with replacing(path) as temporary, temporary.open("wb") as stream:
        np.save(stream, values)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path in the same folder for the block to write to; what it wrote then takes the place of ``path`` at once.

    Raises:
        UserError: the folder or the file cannot be written.
    """
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
