"""Files made from a source: each one whole or not at all, and only those that are missing."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from seg_ext.errors import UserError

Writer = Callable[[Path], object]  # writes its content to the path it is given
Outputs = Mapping[Path, Writer]

_MARKER = "prepared.json"
WORKERS = min(4, os.cpu_count() or 1)


def make(outputs: Outputs, label: str, *, alone: bool = True) -> int:
    """Write the files that are missing, several at a time, each under another name first and then renamed.

    An interrupted call leaves whole files alone; the next one goes on from them.

    Args:
        outputs: file -> what writes it.
        label: of the progress bar, which a terminal shows.
        alone: whether the files' folders may hold nothing else.

    Returns:
        The number of files written.

    Raises:
        UserError: a folder holds files that are none of the outputs, or cannot be written.
    """
    folders = {file.parent for file in outputs}
    try:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            strangers = [f for f in folder.iterdir() if f not in outputs and not f.name.startswith(".")]
            if strangers and alone:
                raise UserError(f"{strangers[0]} does not come from this source; move {folder} away and run again")
        missing = [file for file in outputs if not file.exists()]
        with ThreadPoolExecutor(WORKERS) as pool:
            done = pool.map(lambda file: write(file, outputs[file]), missing)
            for _ in tqdm(done, total=len(missing), desc=label, unit="file", disable=None, leave=False):
                pass
    except OSError as error:
        raise UserError(f"{error.filename or label} cannot be written or read: {error.strerror or error}") from error
    return len(missing)


def write(file: Path, writer: Writer) -> None:
    """Write one file, whole or not at all."""
    partial = file.with_name(f".partial-{file.name}")
    try:
        writer(partial)
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)


def write_json(file: Path, content: Any) -> None:
    """Write one JSON file, whole or not at all."""
    write(file, lambda path: path.write_text(json.dumps(content)))


def finish(place: Path, outputs: Iterable[Path]) -> None:
    """Note in ``place`` how many files each folder of the complete outputs holds."""
    folders = dict.fromkeys(file.parent for file in outputs)
    write_json(place / _MARKER, {f.relative_to(place).as_posix(): count_files(f) for f in folders})


def is_finished(place: Path) -> bool:
    """Whether :func:`finish` was called and every folder still holds as many files."""
    try:
        counts = json.loads((place / _MARKER).read_text())
        return all(count_files(place / folder) == count for folder, count in counts.items())
    except (OSError, ValueError, AttributeError):
        return False


def count_files(folder: Path) -> int:
    """The files of a folder, hidden ones left out; 0 where there is no folder."""
    return sum(not f.name.startswith(".") for f in folder.iterdir()) if folder.is_dir() else 0


def made(folder: Path) -> Path:
    """The folder, made if need be.

    Raises:
        UserError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made: {error.strerror or error}; --root names another place") from error
    return folder
