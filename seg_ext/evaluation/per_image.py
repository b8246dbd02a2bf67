"""Counts of every image by class, in a file of a line an image, so that two runs can be compared image by image."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from detectron2.utils import comm

from seg_ext.errors import UserError
from seg_ext.evaluation.output_files import names_below, replacing

FILE = "per_image_{}.jsonl"  # by task


class ImageCounts(NamedTuple):
    """What such a file holds."""

    task: str
    classes: list[str]  # K
    things: int | None  # how many of the classes are things, which come first
    images: list[str]  # N
    counts: np.ndarray  # (N, K, C)


class PerImageFile:
    """Takes each image's counts as an evaluator hands them on, and keeps them on the disk, not in memory.

    The file's first line is ``{"task", "classes", "things"}``; each other ``{"image", "classes", "counts"}`` has the
    counts of those classes that have any. Images are named by their paths below the folder of all of them.

    Args:
        path: of the file, which appears when :meth:`finish` is called.
        task: that the counts are of, such as "sem_seg".
        classes: names of the K classes.
        things: how many of them are things, which come first; None where there is no such difference.
    """

    def __init__(self, path: Path, task: str, classes: Sequence[str], things: int | None = None) -> None:
        self._path = path
        self._head = {"task": task, "classes": list(classes), "things": things}
        self._lines = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115

    def __call__(self, image: Mapping[str, Any], counts: np.ndarray) -> None:
        """Keep the counts (K, C) of an image."""
        found = np.flatnonzero(counts.any(axis=1))
        name = str(image.get("file_name") or image.get("image_id"))
        line = {"image": name, "classes": found.tolist(), "counts": counts[found].tolist()}
        self._lines.write(json.dumps(line) + "\n")

    def finish(self) -> list[Path]:
        """Write the lines of all processes, on the main one, in the order of the images' names; returns the path."""
        self._lines.seek(0)
        parts = comm.gather(self._lines.read())
        self._lines.close()
        if comm.is_main_process():
            rows = [json.loads(line) for part in parts for line in part.splitlines()]
            for row, name in zip(rows, names_below([row["image"] for row in rows]), strict=True):
                row["image"] = name
            with replacing(self._path) as temporary, temporary.open("w", encoding="utf-8") as file:
                for row in [self._head, *sorted(rows, key=lambda row: row["image"])]:
                    file.write(json.dumps(row) + "\n")
        return [self._path]

    def discard(self) -> None:
        """Forget all counts; no file appears."""
        self._lines.close()


@contextmanager
def reading_lines(path: Path, what: str) -> Iterator[list[Any]]:
    """The values of a file of one JSON value a line; what goes wrong with them is a UserError that names the file."""
    try:
        yield [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; run `seg-ext eval --per-image` again") from error
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise UserError(f"{path}: not {what} of images ({error}); run `seg-ext eval --per-image` again") from error


def read_counts(path: Path) -> ImageCounts:
    """What a file of :class:`PerImageFile` holds.

    Raises:
        UserError: the file is missing, cut off, or another one.
    """
    with reading_lines(path, "counts") as (head, *rows):
        task, classes, things = head["task"], list(head["classes"]), head["things"]
        columns = next((len(row["counts"][0]) for row in rows if row["counts"]), 1)
        counts = np.zeros((len(rows), len(classes), columns))
        for image, row in zip(counts, rows, strict=True):
            image[row["classes"]] = np.reshape(row["counts"], (-1, columns))
        return ImageCounts(task, classes, things, [row["image"] for row in rows], counts)
