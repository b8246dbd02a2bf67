"""Scores of predictions that any tool saved: a folder of label maps, COCO results, or panoptic PNGs with their JSON."""

from __future__ import annotations

import mmap
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.evaluation import DatasetEvaluator

from seg_ext.data.files import naming
from seg_ext.data.image_io import image_size
from seg_ext.data.label_io import read_label, read_record_label
from seg_ext.errors import UserError
from seg_ext.evaluation.artifacts import Artifacts
from seg_ext.evaluation.instance import TASKS, InstanceEvaluator
from seg_ext.evaluation.output_files import names_below
from seg_ext.evaluation.panoptic import PanopticEvaluator
from seg_ext.evaluation.report import Scores
from seg_ext.evaluation.saved_objects import Pair, read_coco_results
from seg_ext.evaluation.saved_panoptic import count_panoptic_results, read_panoptic_results
from seg_ext.evaluation.semantic import NEED_SCORES, SemanticEvaluator

_SUFFIXES = {".png", ".tif", ".tiff", ".npy", ".bmp", ".gif"}  # of label maps


def read_label_folder(path: str | Path, name: str, *, raw_ids: bool = False) -> Iterator[Pair]:
    """The label map of each image of a data set that has ground truth.

    Args:
        path: folder of label maps, each with the path of its image below the folder of images, or with its stem. They
            hold train ids 0..K-1; the ignored id is for pixels without a class, which are wrong wherever they count.
        name: of the data set.
        raw_ids: they hold the ids of the data set's own files instead, or its colours.

    Returns:
        Pairs of a record and ``{"sem_seg_labels": (H, W)}`` for an evaluator's ``process``.

    Raises:
        UserError: at once: an image without a file or with two, a file that belongs to no image, a size that is not
            the ground truth's. On the way: a file that cannot be read, or an id that is no class.
    """
    folder, meta = Path(path), MetadataCatalog.get(name)
    records = [record for record in DatasetCatalog.get(name) if "sem_seg_file_name" in record]
    if not records:
        raise UserError(f"data set '{name}' has no label maps, which the predictions in {folder} could be scored on")
    files = _partners(folder, [record["file_name"] for record in records])
    for record, file in zip(records, files, strict=True):
        theirs, ours = image_size(file), image_size(record["sem_seg_file_name"])
        if theirs != ours:
            raise UserError(f"{file}: {theirs[0]}x{theirs[1]}; takes the ground truth's {ours[0]}x{ours[1]}")
    return (
        (dict(record), {"sem_seg_labels": torch.from_numpy(_label_map(file, record, meta, raw_ids=raw_ids))})
        for record, file in zip(records, files, strict=True)
    )


def _label_map(file: Path, record: Mapping[str, Any], meta: Metadata, *, raw_ids: bool) -> np.ndarray:
    """(H, W) train ids of a saved prediction for a record."""
    count, ignore = len(meta.get("stuff_classes") or ()), meta.get("ignore_label", 255)
    if raw_ids:
        return read_record_label(
            {**record, "sem_seg_file_name": str(file)}, meta, num_classes=count or None, ignore=ignore
        )
    labels = read_label(file)
    wrong = np.unique(labels[(labels >= count) & (labels != ignore)])[:8]
    if count and wrong.size:
        raise UserError(
            f"{file}: ids {', '.join(map(str, wrong))}; takes train ids 0..{count - 1}, or {ignore} for no class"
            " (--raw-ids reads the ids of the data set's own files)"
        )
    return labels


READERS: dict[str, Callable[..., Iterator[Pair]]] = {  # by the kind of what is saved
    "labels": read_label_folder,
    "coco": read_coco_results,
    "panoptic": read_panoptic_results,
}


def evaluate_saved(
    path: str | Path,
    name: str,
    folder: Path,
    *,
    kind: str | None = None,
    metrics: Sequence[str] | None = None,
    gallery: int = 0,
    per_image: bool = False,
    **options: Any,
) -> Scores:
    """Score saved predictions as those of a model are, and write what goes with the scores.

    Args:
        path: what is saved.
        name: of the data set.
        folder: for what :class:`Artifacts` writes.
        kind: of :data:`READERS`; None to tell it from the path.
        metrics: the evaluator's argument of this name; None for its default.
        gallery: worst images on the page; 0 for none.
        per_image: keep the counts or matches of every image.
        **options: of the reader.

    Returns:
        task -> metric -> percent.

    Raises:
        UserError: whatever is wrong with the predictions; nothing is written then.
    """
    kind = kind or kind_of(path)
    if kind == "panoptic" and not (gallery or per_image) and find_spec("hotcoco"):
        evaluator = PanopticEvaluator(name, **_options(kind, metrics))
        count_panoptic_results(path, name, evaluator)
        results = evaluator.evaluate()
        Artifacts(name, [evaluator], folder).write(results)
        return results
    pairs = READERS[kind](path, name, **options)
    first = next(pairs, None)
    if first is None:
        raise UserError(f"{path}: data set '{name}' has no images to score predictions on")
    evaluators = [_evaluator(kind, name, first[1], metrics)]
    artifacts = Artifacts(name, evaluators, folder, gallery=gallery, per_image=per_image)
    results = _scores(artifacts, chain([first], pairs))
    artifacts.write(results)
    return results


def _scores(artifacts: Artifacts, pairs: Iterable[Pair]) -> Scores:
    for evaluator in artifacts.chain:
        evaluator.reset()
    with artifacts:
        for record, output in pairs:
            for evaluator in artifacts.chain:
                evaluator.process([record], [output])
    results: Scores = {}
    for evaluator in artifacts.chain:
        results.update(evaluator.evaluate() or {})
    return results


def kind_of(path: str | Path) -> str:
    """What is saved at a path: of :data:`READERS`.

    Raises:
        UserError: nothing, or something else.
    """
    if os.path.isdir(path):
        return "labels"
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such file or folder; --predictions takes a folder of label maps or a JSON file")
    if not os.path.getsize(path):
        raise UserError(f"{path}: the file is empty; --predictions takes a folder of label maps or a JSON file")
    with naming(path), open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return "panoptic" if content.find(b'"segments_info"') >= 0 else "coco"


def _evaluator(kind: str, name: str, output: Mapping[str, Any], metrics: Sequence[str] | None) -> DatasetEvaluator:
    """The evaluator of a kind, for those tasks that a first output serves."""
    options = _options(kind, metrics)
    if kind == "panoptic":
        return PanopticEvaluator(name, **options)
    if kind == "labels":
        unserved = [metric for metric in metrics or () if metric in NEED_SCORES]
        if unserved:
            raise UserError(f"--metrics {unserved[0]} needs scores, which label maps do not have; leave it out")
        return SemanticEvaluator(name, **options)
    tasks = [task for task, field in TASKS.items() if output["instances"].has(field)]
    return InstanceEvaluator(name, tasks=tasks, **options)


def _options(kind: str, metrics: Sequence[str] | None) -> dict[str, Any]:
    """Of the evaluator of a kind."""
    if kind == "panoptic" and metrics is not None:
        raise UserError(f"--metrics {','.join(metrics)}: panoptic predictions have panoptic quality alone")
    return {"distributed": False} if metrics is None else {"distributed": False, "metrics": metrics}


def _partners(folder: Path, images: list[str]) -> list[Path]:
    """The label map of each image, by its path below the common folder, or else by its stem.

    Raises:
        UserError: an image without one or with two, or one of no image.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; takes one of label maps")
    found: dict[str, list[Path]] = defaultdict(list)
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in _SUFFIXES and file.is_file())
    for file in files:
        found[file.relative_to(folder).with_suffix("").as_posix()].append(file)
    stems = Counter(Path(image).stem for image in images)
    chosen, used = [], set()
    for image, name in zip(images, names_below(images), strict=True):
        key = Path(name).with_suffix("").as_posix()
        key = key if key in found or stems[Path(image).stem] > 1 else Path(image).stem
        if len(found.get(key, ())) > 1:
            raise UserError(f"{image} has two predictions, {found[key][0]} and {found[key][1]}; takes one")
        used.add(key)
        chosen += found.get(key, [])
    missing = sum(key not in found for key in used)
    if missing:
        first = next(key for key in sorted(used) if key not in found)
        raise UserError(f"{folder}: no label map {first}.png, {missing} of {len(images)} missing; takes one an image")
    extra = [file for key in found if key not in used for file in found[key]]
    if extra:
        raise UserError(f"{extra[0]} belongs to no image of the data set, as do {len(extra) - 1} others; remove them")
    return chosen
