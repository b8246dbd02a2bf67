"""A page of the worst and best images and the worst objects of an evaluation, beside their ground truth."""

from __future__ import annotations

import heapq
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from pycocotools import mask as mask_util

from seg_ext.data.image_io import read_picture
from seg_ext.errors import UserError
from seg_ext.evaluation.gallery_page import GUESS_RGB, MIN_SCORE, TRUTH_RGB, Case, Tile, page_html
from seg_ext.evaluation.output_files import path_hash, replacing, write_picture
from seg_ext.metrics import confusion_matrix, panoptic_quality, pq_scores, semantic_scores
from seg_ext.visualize import Array, Objects, Scene, class_name, draw_scene, scene_from_output, scene_from_record

_TRUTH_KEYS = {"semantic": "sem_seg_file_name", "instance": "annotations", "panoptic": "pan_seg_file_name"}
_OBJECTS = 24  # on the page
_TILE, _LARGEST = 240, 1600  # longer side of an object's picture, and the most of an image's, pixels
_TILE_FILE = "object-{:02d}.png"
_UNFINISHED = "pictures.partial"
_DARK_RGB = (10, 10, 10)


class _Worst:
    """The ``limit`` items of greatest badness among those added, in a heap of (badness, item)."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.heap: list[tuple[tuple[Any, ...], Any]] = []

    def admits(self, badness: tuple[Any, ...]) -> bool:
        if len(self.heap) >= self.limit and badness <= self.heap[0][0]:
            return False
        return all(badness != other for other, _ in self.heap)

    def add(self, badness: tuple[Any, ...], item: Any) -> Any:
        """Add an item that is admitted; returns the one that leaves for it, or None."""
        heapq.heappush(self.heap, (badness, item))
        return heapq.heappop(self.heap)[1] if len(self.heap) > self.limit else None


class Gallery(DatasetEvaluator):
    """Keeps pictures of the worst and best images and worst objects it sees and writes ``index.html``; gives no scores.

    An image's score is the mean over its tasks of: mean IoU over the classes of its ground truth; F1 of its instances
    at IoU above 0.5; panoptic quality. Only the pictures on the page stay, on the disk and in memory. They lie in
    ``output_dir/pictures`` once all images are seen; the page refers to nothing else.

    Args:
        dataset_name: its records are the ground truth, found by ``file_name``; an input not among them is its own.
        output_dir: made if it is missing.
        limit: worst images on the page.
        best: best images on the page, those that are not among the worst.

    Raises:
        UserError: limit below 1, best below 0.
    """

    def __init__(
        self, dataset_name: str, output_dir: str | os.PathLike[str], *, limit: int = 50, best: int = 0
    ) -> None:
        if limit < 1 or best < 0:
            raise UserError(f"a gallery of {limit} worst images and {best} best: takes 1 or more, and 0 or more")
        self._name = dataset_name
        self._metadata = MetadataCatalog.get(dataset_name)
        self._dir = Path(output_dir)
        self._limit, self._most_best = limit, best
        self.reset()

    def reset(self) -> None:
        """Forget what was seen; pictures stay until the next :meth:`evaluate`."""
        self._seen = 0
        self._cases, self._lost, self._alarms = _Worst(self._limit), _Worst(_OBJECTS), _Worst(_OBJECTS)
        self._best = _Worst(self._most_best)
        self._page: tuple[int, list[Case], list[Case], dict[str, Tile]] | None = None

    @cached_property
    def _records(self) -> dict[str, dict[str, Any]]:
        known = self._name in DatasetCatalog
        return {record["file_name"]: record for record in DatasetCatalog.get(self._name)} if known else {}

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Score a batch of images and keep the pictures of those that are among the worst so far.

        Raises:
            UserError: an input without ``file_name``, a file that cannot be read, sizes or ids that do not fit.
        """
        for entry, output in zip(inputs, outputs, strict=True):
            if "file_name" not in entry:
                raise UserError(f"a gallery needs the file_name of every input, one has only {sorted(entry)}")
            self._seen += 1
            file_name = entry["file_name"]
            guess = scene_from_output(output, min_score=MIN_SCORE)
            unused = {key for task, key in _TRUTH_KEYS.items() if getattr(guess, task) is None}
            if len(unused) == len(_TRUTH_KEYS):
                continue  # boxes alone: nothing to draw
            record = {k: v for k, v in self._records.get(file_name, entry).items() if k not in unused}
            truth, image = scene_from_record(record, self._metadata), read_picture(file_name)
            try:
                self._add(file_name, image, truth, guess)
            except ValueError as error:
                raise UserError(f"{file_name}: {error}") from error

    def evaluate(self) -> dict[str, Any]:
        """Gather what the ranks kept, write the page, and remove the pictures that are not on it; no scores."""
        parts = comm.gather((self._seen, self._cases.heap, self._best.heap, self._lost.heap, self._alarms.heap))
        if comm.is_main_process():
            seen, *heaps = zip(*parts, strict=True)
            cases, best, lost, alarms = (
                [item for _, item in sorted(chain.from_iterable(heap), key=itemgetter(0), reverse=True)]
                for heap in heaps
            )
            cases, alarms = cases[: self._limit], alarms[: max(_OBJECTS // 2, _OBJECTS - len(lost))]
            shown = {case.file_name for case in cases}
            best = [case for case in best[: self._most_best] if case.file_name not in shown]
            tiles = {_TILE_FILE.format(i): t for i, t in enumerate(lost[: _OBJECTS - len(alarms)] + alarms)}
            for name, tile in tiles.items():
                write_picture(self._path(name), tile.picture)
            self._page = sum(seen), cases, best, tiles
            self._show({*tiles, *(name for case in cases + best for name in case.files)})
            self.write_summary({})
        comm.synchronize()
        return {}

    def write_summary(
        self,
        results: Mapping[str, Any],
        *,
        figures: Mapping[str, str] | None = None,
        pictures: Mapping[str, Array] | None = None,
    ) -> Path:
        """Write the page with the evaluators' results, ``{task: {metric: value}}``, on top; returns its path.

        Does nothing before :meth:`evaluate` and on processes other than the main one.

        Args:
            results: of the evaluators.
            figures: heading -> HTML, after the results.
            pictures: heading -> (H, W, 3) RGB uint8, after the figures.
        """
        path = self._dir / "index.html"
        if self._page is not None:
            blocks = dict(figures or {})
            for heading, picture in (pictures or {}).items():
                name = f"{re.sub(r'[^a-z]+', '_', heading.lower())}.png"
                write_picture(self._dir / "pictures" / name, picture)
                blocks[heading] = f'<img src="pictures/{name}" alt="{heading}" loading="lazy">'
            with replacing(path) as temporary:
                text = page_html(self._name, results, *self._page, figures=blocks)
                temporary.write_text(text, encoding="utf-8", errors="replace")  # file names may be no UTF-8
        return path

    def discard(self) -> None:
        """Remove the pictures of an evaluation that did not come to its end; an earlier page stays."""
        shutil.rmtree(self._dir / _UNFINISHED, ignore_errors=True)

    def _show(self, kept: set[str]) -> None:
        """Put the pictures of this page in the place of an earlier one's."""
        folder = self._dir / "pictures"
        for path in folder.glob("*.png"):
            if re.search(r"-[0-9a-f]{8}_\w+\.png$|^object-\d\d\.png$", path.name):
                path.unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        for name in kept:
            self._path(name).replace(folder / name)
        self.discard()

    def _add(self, file_name: str, image: Array, truth: Scene, guess: Scene) -> None:
        scores = _scores(truth, guess, self._metadata.get("ignore_label", 255))
        if truth.instance is not None and guess.instance is not None:
            scores["instance"], best, alarms = compare_objects(truth.instance, guess.instance)
            self._keep_objects(file_name, image, truth.instance, guess.instance, best, alarms)
        score = float(np.mean(list(scores.values()))) if scores else 2.0
        places = [(self._cases, (-score, file_name)), (self._best, (score, file_name))][: 1 + bool(scores)]
        places = [(heap, key) for heap, key in places if heap.limit and heap.admits(key)]
        shown = {case.file_name: case for heap in (self._cases, self._best) for _, case in heap.heap}
        if not places or file_name in shown:
            return
        case = self._draw(file_name, image, truth, guess, scores)
        left = [out for heap, key in places if (out := heap.add(key, case))]
        still = {case.file_name for heap in (self._cases, self._best) for _, case in heap.heap}
        for name in (name for out in left if out.file_name not in still for name in out.files):
            self._path(name).unlink(missing_ok=True)

    def _draw(self, file_name: str, image: Array, truth: Scene, guess: Scene, scores: dict[str, float]) -> Case:
        stem = re.sub(r"[^\w.-]", "_", Path(file_name).stem, flags=re.ASCII)[:60]
        slug = f"{stem}-{path_hash(os.path.abspath(file_name))}"
        expected, found = draw_scene(image, truth, self._metadata), draw_scene(image, guess, self._metadata)
        pictures = {f"{slug}_image.png": image, **{f"{slug}_{task}.png": picture for task, picture in found.items()}}
        pictures |= {f"{slug}_{task}_truth.png": picture for task, picture in expected.items()}
        for name, picture in pictures.items():
            factor = min(1.0, _LARGEST / max(picture.shape[:2]))
            size = [max(1, round(side * factor)) for side in picture.shape[1::-1]]
            write_picture(self._path(name), cv2.resize(picture, size, interpolation=cv2.INTER_AREA))
        rows = {t: (f"{slug}_{t}_truth.png" if t in expected else None, f"{slug}_{t}.png") for t in found}
        return Case(file_name, scores, f"{slug}_image.png", rows)

    def _keep_objects(
        self, file_name: str, image: Array, truth: Objects, guess: Objects, best: Array, alarms: Array
    ) -> None:
        names = self._metadata.get("thing_classes") or ()
        areas, scores = truth.masks.sum((1, 2)), np.asarray(guess.scores)
        badness: tuple[Any, ...]
        for index in np.lexsort((-areas, best))[:_OBJECTS].tolist():
            badness = (1 - float(best[index]), int(areas[index]), file_name, index)
            if areas[index] and self._lost.admits(badness):
                text = f"IoU {best[index]:.2f}" if best[index] > 0 else "missed"
                picture = _tile(image, truth.masks[index], truth.masks[index : index + 1], guess.masks)
                self._lost.add(badness, Tile(file_name, _caption(names, truth.classes[index], text), picture))
        for index in alarms[np.argsort(-scores[alarms], kind="stable")][:_OBJECTS].tolist():
            badness = (float(scores[index]), file_name, index)
            if guess.masks[index].any() and self._alarms.admits(badness):
                text = f"false alarm {scores[index]:.2f}"
                picture = _tile(image, guess.masks[index], truth.masks, guess.masks[index : index + 1])
                self._alarms.add(badness, Tile(file_name, _caption(names, guess.classes[index], text), picture))

    def _path(self, name: str) -> Path:
        """Of a picture, until all images are seen."""
        return self._dir / _UNFINISHED / name


def _scores(truth: Scene, guess: Scene, ignore: int) -> dict[str, float]:
    """Mean IoU and PQ of an image, where it has the ground truth."""
    scores = {}
    if truth.semantic is not None and guess.semantic is not None:
        count = 1 + int(truth.semantic[truth.semantic != ignore].max(initial=0))  # others are wrong all the same
        counts = confusion_matrix(guess.semantic, truth.semantic, count, ignore=ignore)
        scores["semantic"] = semantic_scores(counts).miou
    if truth.panoptic is not None and guess.panoptic is not None:
        (target, target_info), (pred, pred_info) = truth.panoptic, guess.panoptic
        shift = 1 + max((s["category_id"] for s in [*target_info, *pred_info]), default=0)
        stat = panoptic_quality(
            pred,
            target,
            pred_classes={s["id"]: s["category_id"] + shift * (not s["isthing"]) for s in pred_info},
            target_classes={s["id"]: s["category_id"] + shift * (not s["isthing"]) for s in target_info},
            num_classes=2 * shift,
            crowd=[s["id"] for s in target_info if s.get("iscrowd")],
        )
        scores["panoptic"] = pq_scores(stat, np.zeros(2 * shift, bool)).all.pq
    return {task: score for task, score in scores.items() if not np.isnan(score)}


def compare_objects(truth: Objects, guess: Objects) -> tuple[float, Array, Array]:
    """Match instances of one class at IoU above 0.5; predictions mostly inside a crowd region do not count.

    Returns:
        F1, 1 where nothing was to be found and nothing was; (N,) each true object's best IoU; indices of the
        predictions that match nothing, without those that are the best attempt at an object.

    Raises:
        ValueError: masks of different sizes.
    """
    ious = _ious(truth.masks, guess.masks) * (truth.classes[:, None] == guess.classes)
    best, closest = ious.max(1, initial=0), ious.argmax(1) if ious.size else np.zeros(len(truth.masks), int)
    matched = np.unique(closest[best > 0.5])
    wrong = np.ones(len(guess.masks), bool)
    wrong[matched] = False
    if truth.crowd is not None:
        wrong &= (guess.masks & truth.crowd).sum((1, 2)) <= 0.5 * guess.masks.sum((1, 2))
    total = len(truth.masks) + len(matched) + int(wrong.sum())
    attempts = np.isin(np.arange(len(wrong)), closest[best > 0])
    return 2 * len(matched) / total if total else 1.0, best, np.flatnonzero(wrong & ~attempts)


def _ious(first: Array, second: Array) -> Array:
    """(N, M) IoU of masks (N, H, W) and (M, H, W); on transposed masks, which are columns first without a copy."""
    if first.shape[1:] != second.shape[1:]:
        raise ValueError(f"masks of {second.shape[1:]} for ground truth of {first.shape[1:]}; takes equal sizes")
    if not len(first) or not len(second):
        return np.zeros((len(first), len(second)))
    rles = [mask_util.encode(np.asfortranarray(m.transpose(2, 1, 0).view(np.uint8))) for m in (first, second)]
    return np.asarray(mask_util.iou(*rles, [0] * len(second)))


def _caption(names: Sequence[str], category: int, text: str) -> str:
    return f"{class_name(names, category)} · {text}" if len(names) > 1 else text


def _tile(image: Array, mask: Array, truths: Array, guesses: Array) -> Array:
    """An object with as much around it as it is large, its own and the touching outlines of the other side."""
    spans = [np.flatnonzero(mask.any(axis))[[0, -1]] for axis in (1, 0)]
    side = max(24, 2 * max(int(last - first + 1) for first, last in spans))
    middles = [int(first + last + 1) // 2 for first, last in spans]
    starts = [max(0, min(m - side // 2, n - side)) for m, n in zip(middles, mask.shape, strict=True)]
    rows, columns = (slice(start, start + side) for start in starts)
    crop = image[rows, columns]
    factor = _TILE / max(crop.shape[:2])
    size = max(1, round(crop.shape[1] * factor)), max(1, round(crop.shape[0] * factor))
    picture = cv2.resize(crop, size, interpolation=cv2.INTER_CUBIC if factor > 1 else cv2.INTER_AREA)
    for masks, color in ((truths, TRUTH_RGB), (guesses, GUESS_RGB)):
        near = masks[:, rows, columns]
        outlines: list[Any] = []
        for part in near[(near & mask[rows, columns]).any((1, 2))].astype(np.uint8) * 255:
            smooth = (cv2.resize(part, size, interpolation=cv2.INTER_LINEAR) > 127).view(np.uint8)
            outlines += cv2.findContours(smooth, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)[0]
        cv2.drawContours(picture, outlines, -1, _DARK_RGB, 4, cv2.LINE_AA)
        cv2.drawContours(picture, outlines, -1, color, 2, cv2.LINE_AA)
    return picture
