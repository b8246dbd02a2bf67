"""Instances that any tool saved in COCO's result format, as models give them.

A file is checked as a whole before the first image comes, so that a fault late in it costs nothing.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from pycocotools import mask as rle

from seg_ext.data.instances import compressed_rle
from seg_ext.errors import UserError
from seg_ext.evaluation.ground_truth import instance_truth, load_json, require
from seg_ext.evaluation.instance import EXACT_BOXES
from seg_ext.metrics.rle import rle_totals

Pair = tuple[dict[str, Any], dict[str, Any]]  # a record of the data set, the model's output
_PARTS = ("bbox", "segmentation", "keypoints")
_GREATEST = 1e38  # of a number: twice as much still fits into 32 bits
_FURTHEST = 1e6  # pixels, of a polygon's corner: what draws one needs memory for every pixel of its sides


def read_coco_results(path: str | Path, name: str) -> Iterator[Pair]:
    """Instances of each image of a data set, none where the file has none for it.

    Args:
        path: JSON, a list of COCO's results or an object with them as ``annotations``, category ids those of the data
            set's files. A result has ``bbox``, ``segmentation`` (RLE or polygons) or ``keypoints``; what one has, all
            have. A missing box is that of the mask or of the keypoints.
        name: of the data set.

    Returns:
        Pairs of a record and ``{"instances": Instances}`` for an evaluator's ``process``; masks are decoded on the way.

    Raises:
        UserError: at once, naming the file and the entry: no such JSON, a field that is missing or cannot be, an image
            or category that the data set does not have, a mask of another size.
    """
    results = _results(path)
    known = DatasetCatalog.get(name)
    for record in known:
        require(record, ("image_id", "height", "width"), str(record.get("file_name")))
    records = {record["image_id"]: record for record in known}
    classes = _thing_classes(name)
    present = {part for part in _PARTS if results and isinstance(results[0], dict) and part in results[0]}
    found = defaultdict(list)
    for index, result in enumerate(results):
        problem = _problem(result, records, classes, present)
        if problem:
            image = f" (image {result['image_id']})" if isinstance(result, dict) and "image_id" in result else ""
            raise UserError(f"{path}: result {index}{image}: {problem}")
        found[result["image_id"]].append(result)
    if "segmentation" in present:
        _check_runs(path, results)
    lengths = {len(result["keypoints"]) for result in results if "keypoints" in present}
    if len(lengths) > 1:
        raise UserError(f"{path}: results of {first_few(sorted(n // 3 for n in lengths))} keypoints; takes one number")
    points = max(lengths, default=0) // 3
    return (
        (dict(record), {"instances": _instances(found[i], record, classes, "segmentation" in present, points)})
        for i, record in records.items()
    )


def _results(path: str | Path) -> list[Any]:
    """The list of results, whichever way the file holds it."""
    content = load_json(path, takes="a file of COCO results")
    results = content.get("annotations") if isinstance(content, dict) else content
    if not isinstance(results, list):
        raise UserError(f"{path}: takes a list of COCO results, or an object that has it as 'annotations'")
    images = content.get("images", []) if isinstance(content, dict) else []
    counts = Counter(image.get("id") for image in images if isinstance(image, dict))
    repeated = next((image_id for image_id, count in counts.items() if count > 1), None)
    if repeated is not None:
        raise UserError(f"{path}: image id {repeated!r} stands twice in 'images'; takes one entry an image")
    return results


def _thing_classes(name: str) -> dict[int, int]:
    """Category id in the data set's files -> the model's class."""
    meta = MetadataCatalog.get(name)
    if meta.get("thing_dataset_id_to_contiguous_id"):
        return dict(meta.thing_dataset_id_to_contiguous_id)
    return {category: i for i, category in enumerate(instance_truth(name, with_masks=False).category_ids)}


def _problem(result: Any, records: Mapping[Any, Any], classes: Mapping[int, int], present: set[str]) -> str:
    """What is wrong with a result and what would be right; empty where nothing is."""
    if not isinstance(result, dict):
        return f"{type(result).__name__}; takes an object"
    missing = [key for key in ("image_id", "category_id", "score") if key not in result]
    if missing:
        return f"no '{missing[0]}'; takes image_id, category_id, score and one of {', '.join(_PARTS)}"
    if type(result["image_id"]) not in (int, str) or result["image_id"] not in records:
        return f"the data set has no such image; takes its image ids, such as {next(iter(records), None)!r}"
    if type(result["category_id"]) is not int or result["category_id"] not in classes:
        return f"unknown category_id {result['category_id']!r}; takes one of {first_few(sorted(classes))}"
    if not all_finite([result["score"]]):
        return f"score {result['score']!r}; takes a finite number"
    given = {part for part in _PARTS if part in result}
    if not given or given != present:
        first = first_few(sorted(present))
        return f"has {first_few(sorted(given))}, the first result {first}; takes the same in all, and one at least"
    if "bbox" in given and not (all_finite(result["bbox"], 4) and min(result["bbox"][2:]) >= 0):
        return f"bbox {result['bbox']!r}; takes [x, y, width, height]"
    if "keypoints" in given and not (
        all_finite(result["keypoints"]) and len(result["keypoints"]) % 3 == 0 < len(result["keypoints"])
    ):
        return "keypoints that are no finite numbers; takes [x, y, score, x, y, score, ...]"
    record = records[result["image_id"]]
    return _mask_problem(result["segmentation"], (record["height"], record["width"])) if "segmentation" in given else ""


def _mask_problem(shape: Any, size: tuple[int, int]) -> str:
    """Likewise, of a segmentation for an image of height and width."""
    if isinstance(shape, list):
        fits = shape and all(all_finite(part) and len(part) >= 6 and len(part) % 2 == 0 for part in shape)
        if not fits:
            return "a segmentation that is no list of polygons [[x, y, x, y, x, y, ...], ...]"
        furthest = max(map(abs, chain.from_iterable(shape)))
        return f"a polygon's corner at {furthest:g}; takes pixels of the image" if furthest > _FURTHEST else ""
    if not isinstance(shape, dict) or not isinstance(shape.get("size"), list) or "counts" not in shape:
        return "segmentation without size or counts; takes an RLE or polygons"
    if shape["size"] != list(size) or not all(isinstance(side, int) for side in shape["size"]):
        return f"mask of {sides_text(shape['size'])}; takes the image's {sides_text(size)} (height x width)"
    counts = shape["counts"]
    if isinstance(counts, str):
        return "" if counts.isascii() else "counts that are no compressed run lengths"
    fits = isinstance(counts, list) and all(isinstance(run, int) and run >= 0 for run in counts)
    return "" if fits and sum(counts) == math.prod(size) else f"counts that do not fill {sides_text(size)} pixels"


def _check_runs(path: str | Path, results: Sequence[Mapping[str, Any]]) -> None:
    """Compressed run lengths must fill their images."""
    shapes = [(i, r["segmentation"]) for i, r in enumerate(results) if isinstance(r["segmentation"], dict)]
    packed = [(i, shape) for i, shape in shapes if isinstance(shape["counts"], str)]
    totals = rle_totals([shape["counts"].encode() for _, shape in packed])
    for (index, shape), total in zip(packed, totals.tolist(), strict=True):
        if total != math.prod(shape["size"]):
            raise UserError(
                f"{path}: result {index} (image {results[index]['image_id']}): counts that do not fill"
                f" {sides_text(shape['size'])} pixels"
            )


def _instances(
    results: Sequence[Mapping[str, Any]],
    record: Mapping[str, Any],
    classes: Mapping[int, int],
    with_masks: bool,
    points: int,
) -> Instances:
    """detectron2's instances of one image."""
    size = (record["height"], record["width"])
    found = Instances(size)
    found.scores = torch.tensor([float(result["score"]) for result in results], dtype=torch.float64)
    found.pred_classes = torch.tensor([classes[result["category_id"]] for result in results], dtype=torch.int64)
    boxes = np.zeros((0, 4))
    if points:
        keypoints = np.array([result["keypoints"] for result in results], np.float64).reshape(len(results), points, 3)
        low, high = keypoints[..., :2].min(axis=1), keypoints[..., :2].max(axis=1)
        boxes = np.concatenate([low, high - low], axis=1)
        keypoints[..., :2] += 0.5  # from pixel indices to positions
        found.pred_keypoints = torch.from_numpy(keypoints)
    if with_masks:
        shapes = [compressed_rle(result["segmentation"], size) for result in results]
        masks = rle.decode(shapes) if shapes else np.zeros((*size, 0), np.uint8)
        found.pred_masks = torch.from_numpy(masks.transpose(2, 0, 1).astype(bool))
        boxes = rle.toBbox(shapes).reshape(-1, 4) if shapes else boxes
    if results and "bbox" in results[0]:
        boxes = np.array([result["bbox"] for result in results], np.float64)
    found.pred_boxes = Boxes(torch.from_numpy(np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)))
    found.set(EXACT_BOXES, torch.from_numpy(boxes))
    return found


def all_finite(values: Any, count: int | None = None) -> bool:
    """Whether these are finite numbers, also in 32 bits, ``count`` of them."""
    if not isinstance(values, list) or len(values) != (len(values) if count is None else count):
        return False
    return all(isinstance(x, int | float) and not isinstance(x, bool) and abs(x) <= _GREATEST for x in values)


def first_few(values: Sequence[Any]) -> str:
    """Five of them at most, for a message."""
    return ", ".join(map(str, values[:5])) + (", ..." if len(values) > 5 else "") if values else "nothing"


def sides_text(sides: Any) -> str:
    """Height x width, for a message."""
    return "x".join(map(str, sides))
