"""What every image's detections found, in a file of a line an image, and AP of images drawn from it."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from detectron2.utils import comm

from seg_ext.errors import UserError
from seg_ext.evaluation.bootstrap import means_of_known, paired_intervals
from seg_ext.evaluation.ground_truth import InstanceTruth
from seg_ext.evaluation.output_files import names_below, replacing
from seg_ext.evaluation.per_image import FILE, reading_lines
from seg_ext.metrics.average_precision import ClassMatches, weighted_ap

MATCHED_TASKS = ("bbox", "segm", "keypoints", "boundary")
_THRESHOLDS = [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]  # COCO's, of IoU
_COLUMNS = ("classes", "truths", "scores", "matched", "ignored")  # of a line, with an entry for each class


class ImageMatches(NamedTuple):
    """What such a file holds."""

    task: str
    classes: list[str]  # K
    images: list[str]  # N
    found: list[ClassMatches]  # K


class MatchFiles:
    """Takes the matching of each task from an evaluator, and keeps it on the disk, not in memory.

    A file's first line is ``{"task", "classes", "thresholds"}``; each other ``{"image", "classes", "truths", "scores",
    "matched", "ignored"}`` has a number of objects and a list of detections for each of the classes that have any: by
    falling score, bit t of ``matched`` and ``ignored`` for threshold t. Images are named as in the other files, or by
    their ids where the ground truth names none, and stand in the order of their ids, as the engines take them.

    Args:
        folder: of the files, which appear when :meth:`finish` is called.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lines: dict[str, IO[str]] = {}

    def __call__(self, task: str, evaluation: Any, truth: InstanceTruth) -> None:
        """Keep what :func:`seg_ext.evaluation.coco_engine.match_detections` gave for a task."""
        lines = self._lines[task] = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
        head = {"task": task, "classes": list(truth.names), "thresholds": _THRESHOLDS}
        for row in chain([head], _rows(evaluation, truth)):
            lines.write(json.dumps(row) + "\n")

    def finish(self) -> list[Path]:
        """Write the files, on the main process; returns their paths."""
        lines = {self._folder / FILE.format(task): lines for task, lines in self._lines.items()}
        for path, content in lines.items() if comm.is_main_process() else ():
            with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
                content.seek(0)
                shutil.copyfileobj(content, file)
        self.discard()
        return [*lines]

    def discard(self) -> None:
        """Forget all of it; no file appears."""
        for lines in self._lines.values():
            lines.close()
        self._lines.clear()


def read_matches(path: Path) -> ImageMatches:
    """What a file of :class:`MatchFiles` holds.

    Raises:
        UserError: the file is missing, cut off, or another one.
    """
    with reading_lines(path, "matches") as (head, *rows):
        if head["thresholds"] != _THRESHOLDS:
            raise ValueError(f"thresholds {head['thresholds']}")
        classes = list(head["classes"])
        return ImageMatches(head["task"], classes, [row["image"] for row in rows], _by_class(rows, len(classes)))


def match_intervals(
    files: Sequence[Path], *, resamples: int, confidence: float, seed: int
) -> dict[str, tuple[float, float]]:
    """Intervals of AP, AP50, AP75 and each class's AP, in percentage points, as :func:`paired_intervals` gives them.

    Raises:
        UserError: a file cannot be read, or the two are of other images, classes or ground truth.
    """
    first, second = map(read_matches, files)
    pairs = zip(first.found, second.found, strict=False)
    if first[:3] != second[:3] or not first.images or any((a.truths != b.truths).any() for a, b in pairs):
        raise UserError(f"{files[0]} and {files[1]} are of different images or classes; takes the same data set")
    scores = [partial(ap_of_draws, run) for run in (first, second)]
    return paired_intervals(scores, len(first.images), resamples=resamples, confidence=confidence, seed=seed)


def ap_of_draws(run: ImageMatches, draws: np.ndarray) -> dict[str, np.ndarray]:
    """AP in percent, each (R,), by detectron2's keys, of (R, N) how often each image is drawn."""
    ap = 100 * np.stack([weighted_ap(found, draws) for found in run.found], axis=2)  # (R, T, K)
    whole = ap.mean(axis=1)
    cuts = {"AP": whole, "AP50": ap[:, 0], "AP75": ap[:, 5]}
    means = {key: means_of_known(values) for key, values in cuts.items()}
    return means | {f"AP-{name}": whole[:, index] for index, name in enumerate(run.classes)}


def _rows(evaluation: Any, truth: InstanceTruth) -> Iterator[dict[str, Any]]:
    """A line of each image, whether or not anything is in it; of objects of all sizes."""
    whole = tuple(evaluation.params.areaRng[0])
    place = {category: index for index, category in enumerate(truth.category_ids)}
    found: dict[Any, list[dict[str, Any]]] = {image["id"]: [] for image in truth.coco["images"]}
    for entry in evaluation.evalImgs:
        if entry is not None and tuple(entry["aRng"]) == whole:
            found[entry["image_id"]].append(entry)
    called = {image_id: name for name, image_id in truth.image_ids.items()}
    images = sorted(truth.coco["images"], key=lambda image: image["id"])
    names = names_below([str(image.get("file_name") or called[image["id"]]) for image in images])
    for image, name in zip(images, names, strict=True):
        entries = sorted(found[image["id"]], key=lambda entry: place[entry["category_id"]])
        yield {
            "image": name,
            "classes": [place[entry["category_id"]] for entry in entries],
            "truths": [int((~np.asarray(entry["gtIgnore"], bool)).sum()) for entry in entries],
            "scores": [[float(score) for score in entry["dtScores"]] for entry in entries],
            "matched": [_packed(entry.get("dtMatched", entry["dtMatches"])) for entry in entries],  # hotcoco's flags
            "ignored": [_packed(entry["dtIgnore"]) for entry in entries],
        }


def _packed(flags: Any) -> list[int]:
    """(10, D) flags as D numbers."""
    bits = np.asarray(flags, bool).reshape(len(_THRESHOLDS), -1)
    return list(map(int, (1 << np.arange(len(bits))) @ bits))


def _by_class(rows: Sequence[dict[str, Any]], classes: int) -> list[ClassMatches]:
    """Detections of each class by falling score, else in the order of the lines."""
    columns = {key: list(chain.from_iterable(row[key] for row in rows)) for key in _COLUMNS}
    image = np.repeat(np.arange(len(rows)), [len(row["classes"]) for row in rows])  # of each class in each image
    truths = np.zeros((len(rows), classes), int)
    truths[image, columns["classes"]] = columns["truths"]
    sizes = [list(map(len, columns[key])) for key in ("scores", "matched", "ignored")]
    if sizes[1:] != sizes[:-1]:
        raise ValueError("lists of unequal length")
    labels = np.repeat(np.array(columns["classes"], int), sizes[0])
    scores = np.array(list(chain.from_iterable(columns["scores"])), float)
    order = np.lexsort((-scores, labels))
    scores, images = scores[order], np.repeat(image, sizes[0])[order]
    matched, ignored = (_unpacked(list(chain.from_iterable(columns[key])))[:, order] for key in ("matched", "ignored"))
    ends = np.searchsorted(labels[order], np.arange(classes + 1)).tolist()
    parts = [slice(*ends[index : index + 2]) for index in range(classes)]
    return [
        ClassMatches(scores[part], images[part], matched[:, part], ignored[:, part], truths[:, index])
        for index, part in enumerate(parts)
    ]


def _unpacked(packed: Sequence[int]) -> np.ndarray:
    """(10, D) flags of D numbers."""
    return (np.array(packed, int) >> np.arange(len(_THRESHOLDS))[:, None] & 1).astype(bool)
