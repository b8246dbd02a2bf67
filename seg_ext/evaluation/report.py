"""results.json: the scores, and with what versions, on what data and by what config they were made."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import detectron2
import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from seg_ext.errors import UserError
from seg_ext.evaluation.ground_truth import load_json
from seg_ext.evaluation.output_files import names_below, replacing

ABOUT = "about"  # the key beside the tasks, or the data sets
_PACKAGES = ("seg-ext", "torch", "torchvision", "timm", "numpy", "opencv-python-headless", "hotcoco", "pycocotools")
_LABEL_FILES = ("sem_seg_file_name", "pan_seg_file_name")
_JSON_FILES = ("json_file", "panoptic_json")
Scores = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Report:
    """A results.json: by data set the scores by task and metric, in percent, nan where there is none; the rest."""

    scores: dict[str, Scores]
    about: dict[str, Any]


def versions() -> dict[str, str]:
    """Of Python and of the packages that scores depend on, as far as they are installed."""
    found = {"python": platform.python_version(), "detectron2": detectron2.__version__}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def data_fingerprint(dataset_name: str) -> dict[str, Any]:
    """Number of images and SHA-256 of what scores on a data set depend on, wherever it lies.

    It covers the classes, the rules for labels, the name and size in bytes of each image, its annotations, and the
    contents of label maps and annotation files; not the pixels of the images.
    """
    meta, records = MetadataCatalog.get(dataset_name), DatasetCatalog.get(dataset_name)
    rules = {key: meta.get(key) for key in ("stuff_classes", "thing_classes", "ignore_label", "label_map")}
    digest = hashlib.sha256(_plain(rules))
    files = [meta.get(key) for key in _JSON_FILES if meta.get(key)]
    for file in files:
        digest.update(_content(file))
    records = sorted(records, key=lambda r: r["file_name"])
    names = names_below([record["file_name"] for record in records])
    for record, name in zip(records, names, strict=True):
        file = record["file_name"]
        size = os.path.getsize(file) if os.path.isfile(file) else None
        annotations = None if meta.get("json_file") else record.get("annotations")
        digest.update(_plain([name, size, annotations]))
        for key in _LABEL_FILES:
            if key in record:
                digest.update(_content(record[key]))
    return {"images": len(records), "sha256": digest.hexdigest()}


def write_results(
    path: Path, scores: Mapping[str, Scores], *, config: Mapping[str, Any], extra: Mapping[str, Any] | None = None
) -> None:
    """Write results.json at once; nan becomes null, which every JSON reader takes.

    The tasks stand at the top where there is one data set, else the data sets do; :data:`ABOUT` stands beside them.

    Args:
        path: of the file.
        scores: data set -> task -> metric -> percent.
        config: what the scores were made with.
        extra: more to keep below :data:`ABOUT`.

    Raises:
        UserError: the file cannot be written.
    """
    content: dict[str, Any] = dict(next(iter(scores.values())) if len(scores) == 1 else scores)
    data = {name: data_fingerprint(name) for name in scores}
    content[ABOUT] = {"versions": versions(), "data": data, "config": config, **(extra or {})}
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(_without_nan(content), indent=2, default=str, allow_nan=False) + "\n")


def read_results(path: str | Path) -> Report:
    """The results.json at ``path``, or in that folder.

    Raises:
        UserError: there is none, or it is not one.
    """
    file = Path(path) / "results.json" if Path(path).is_dir() else Path(path)
    content = load_json(file, takes="a results.json, or a folder that holds one")
    if not isinstance(content, dict) or not all(isinstance(value, dict) for value in content.values()):
        raise UserError(f"{file}: not the results of an evaluation; takes an object of tasks and their scores")
    about = content.pop(ABOUT, {})
    data = about.get("data", {})
    if not isinstance(data, dict) or not all(isinstance(entry, dict) for entry in data.values()):
        raise UserError(f"{file}: '{ABOUT}' has data {data!r}; takes an object by data set")
    nested = any(isinstance(value, dict) for task in content.values() for value in task.values())
    by_set = content if nested else {next(iter(data), "data"): content}
    try:
        scores = {
            name: {
                task: {key: float("nan") if value is None else float(value) for key, value in metrics.items()}
                for task, metrics in tasks.items()
            }
            for name, tasks in by_set.items()
        }
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{file}: not the results of an evaluation: {error}") from error
    return Report(scores, about)


def write_confusion(path: Path, confusion: np.ndarray, names: Sequence[str]) -> None:
    """Write a confusion matrix (K, K+1) as CSV: a row for each ground-truth class, the last column for no class.

    Raises:
        UserError: the file cannot be written.
    """
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["ground truth \\ prediction", *names, "no class"])
        rows.writerows([name, *row] for name, row in zip(names, confusion.tolist(), strict=True))


def _plain(value: Any) -> bytes:
    return json.dumps(_without_nan(value), sort_keys=True, default=_bytes_or_text).encode()


def _bytes_or_text(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else str(value)


def _content(file: str) -> bytes:
    """SHA-256 of a file, or of nothing where it is missing."""
    try:
        with open(file, "rb") as stream:
            digest = hashlib.sha256()
            while block := stream.read(1 << 20):
                digest.update(block)
            return digest.digest()
    except OSError:
        return b""


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
