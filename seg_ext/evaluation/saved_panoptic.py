"""Panoptic predictions that any tool saved: PNGs with their JSON, as models give them or counted file by file.

A JSON is checked as a whole before the first image comes, so that a fault late in it costs nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata

from seg_ext.data.label_io import read_panoptic_ids
from seg_ext.errors import UserError
from seg_ext.evaluation.ground_truth import panoptic_annotations
from seg_ext.evaluation.panoptic import PanopticEvaluator
from seg_ext.evaluation.panoptic_files import png_size
from seg_ext.evaluation.saved_objects import Pair, all_finite, first_few, sides_text

_AT_ONCE = 64  # images
_T = TypeVar("_T")


def read_panoptic_results(path: str | Path, name: str) -> Iterator[Pair]:
    """The panoptic map of each image that the data set's ``panoptic_json`` lists.

    Args:
        path: JSON in COCO's panoptic format. Its PNGs lie in the folder of the same name without ``.json``, or, where
            there is none, beside it.
        name: of the data set.

    Returns:
        Pairs of a record and ``{"panoptic_seg": (ids (H, W), segments)}`` for an evaluator's ``process``.

    Raises:
        UserError: at once, naming the file and the entry: no such JSON, a field that is missing, an image that is
            unknown, repeated or missing, an unknown category, a PNG that is missing or of another size; on the way, a
            PNG with other segments than the JSON.
    """
    return _pairs(_listed(path, name))


def count_panoptic_results(path: str | Path, name: str, evaluator: PanopticEvaluator) -> None:
    """What the evaluator's ``process`` does with :func:`read_panoptic_results`, from the files by hotcoco.

    Raises:
        UserError: as there.
    """
    listed = _listed(path, name)
    images = [*listed.found]
    for start in range(0, len(images), _AT_ONCE):
        here = images[start : start + _AT_ONCE]
        left = evaluator.process_files(
            {i: (listed.folder / listed.found[i]["file_name"], listed.found[i]["segments_info"]) for i in here}
        )
        for record, output in _pairs(listed._replace(found={i: listed.found[i] for i in left})) if left else ():
            evaluator.process([record], [output])


class _Listed(NamedTuple):
    folder: Path  # of the PNGs
    found: dict[str, Mapping[str, Any]]  # annotations by image id
    name: str  # of the data set


def _listed(path: str | Path, name: str) -> _Listed:
    """What a JSON lists, checked against the ground truth."""
    path, meta = Path(path), MetadataCatalog.get(name)
    if not meta.get("panoptic_json"):
        raise UserError(f"data set '{name}' has no panoptic_json in its metadata, which panoptic predictions need")
    folder = path.with_suffix("") if path.with_suffix("").is_dir() else path.parent
    truth = panoptic_annotations(meta.panoptic_json)
    if not truth:
        raise UserError(f"{meta.panoptic_json}: lists no image to score predictions on")
    found = _annotations(path, [str(a["image_id"]) for a in truth], {i for table in _tables(meta) for i in table})
    for expected in truth:
        file = folder / found[str(expected["image_id"])]["file_name"]
        theirs, ours = png_size(file), png_size(Path(meta.panoptic_root) / expected["file_name"])
        if theirs != ours:
            raise UserError(f"{file}: {sides_text(theirs)}; takes the image's {sides_text(ours)} (height x width)")
    return _Listed(folder, found, name)


def _pairs(listed: _Listed) -> Iterator[Pair]:
    """Records and outputs of what is listed."""
    records = {str(record["image_id"]): record for record in DatasetCatalog.get(listed.name)}
    tables = _tables(MetadataCatalog.get(listed.name))
    outputs = _ahead(partial(_output, annotation, listed.folder, *tables) for annotation in listed.found.values())
    return ((dict(records.get(i) or {"image_id": i}), o) for i, o in zip(listed.found, outputs, strict=True))


def _tables(meta: Metadata) -> tuple[dict[int, int], dict[int, int]]:
    """Contiguous ids of things and of stuff, by category id."""
    things, stuff = (meta.get(f"{kind}_dataset_id_to_contiguous_id") or {} for kind in ("thing", "stuff"))
    return things, stuff


def _annotations(path: Path, expected: Sequence[str], categories: set[int]) -> dict[str, Mapping[str, Any]]:
    """The annotation of each image, by image id, checked against the images and categories of the ground truth."""
    known = set(expected)
    found: dict[str, Mapping[str, Any]] = {}
    for index, annotation in enumerate(panoptic_annotations(path)):
        image_id = str(annotation["image_id"])
        entry = f"{path}: annotation {index} (image {image_id})"
        if image_id not in known:
            raise UserError(f"{entry}: the ground truth has no such image; takes its image ids, such as {expected[0]}")
        if image_id in found:
            raise UserError(f"{entry}: the image has an annotation before it; takes one an image")
        _check_segments(annotation["segments_info"], categories, entry)
        found[image_id] = annotation
    missing = [image_id for image_id in expected if image_id not in found]
    if missing:
        raise UserError(
            f"{path}: no annotation of image {missing[0]}, {len(missing)} missing; takes one for each of {len(known)}"
        )
    return found


def _check_segments(segments: Sequence[Mapping[str, Any]], known: set[int], entry: str) -> None:
    for segment in segments:
        if segment["category_id"] not in known:
            raise UserError(
                f"{entry}: segment {segment['id']} has the unknown category_id {segment['category_id']}; takes one of"
                f" {first_few(sorted(known))}"
            )
        if segment["id"] < 1:
            raise UserError(f"{entry}: segment id {segment['id']}; takes numbers from 1 on")
        if not all_finite([segment.get("score", 0)]):
            raise UserError(f"{entry}: segment {segment['id']} has score {segment['score']!r}; takes a finite number")


def _output(
    annotation: Mapping[str, Any], folder: Path, things: Mapping[int, int], stuff: Mapping[int, int]
) -> dict[str, Any]:
    """detectron2's output of one image, with contiguous category ids."""
    file = folder / annotation["file_name"]
    ids = read_panoptic_ids(file)
    listed = {segment["id"] for segment in annotation["segments_info"]}
    flat = ids.ravel()
    ends = np.flatnonzero(flat[1:] != flat[:-1])  # of runs of one id, but the last one
    extra = sorted(set(np.unique(flat[np.append(ends, flat.size - 1)]).tolist()) - listed - {0})
    if extra:
        raise UserError(
            f"{file}: segment id {extra[0]} is not in segments_info; takes those of the JSON, and 0 for void"
        )
    segments = []
    for segment in annotation["segments_info"]:
        isthing = segment["category_id"] in things
        contiguous = (things if isthing else stuff)[segment["category_id"]]
        segments.append({**segment, "category_id": contiguous, "isthing": isthing})
    return {"panoptic_seg": (torch.from_numpy(ids), segments)}


def _ahead(calls: Iterable[Callable[[], _T]]) -> Iterator[_T]:
    """Results in order, the next two of which another thread works on meanwhile."""
    with ThreadPoolExecutor(1) as pool:
        waiting: deque[Future[_T]] = deque()
        for call in calls:
            waiting.append(pool.submit(call))
            if len(waiting) > 2:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
