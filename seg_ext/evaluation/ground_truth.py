"""Ground truth as the evaluators need it: values of records, annotation files, COCO's dictionary."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from pycocotools import mask as rle

from seg_ext.data.instances import compressed_rle
from seg_ext.errors import UserError


class InstanceTruth(NamedTuple):
    """Annotated instances and how the model's classes and images are called in them."""

    coco: dict[str, Any]
    names: Sequence[str]  # of the model's classes
    category_ids: list[int]  # in coco, of the model's classes
    image_ids: dict[Any, int]  # in coco, of the records' image_id


class RecordLookup:
    """Values of a data set's records, for a model input that lost them; the records are read on the first need."""

    def __init__(self, dataset_name: str) -> None:
        self._dataset_name = dataset_name

    @cached_property
    def _by_file(self) -> dict[str, dict[str, Any]]:
        return {record["file_name"]: record for record in DatasetCatalog.get(self._dataset_name)}

    def holding(self, image: Mapping[str, Any], key: str) -> Mapping[str, Any]:
        """The image itself, or the data set's record of the same ``file_name``, whichever has the key.

        Raises:
            UserError: neither has.
        """
        if key in image:
            return image
        record = self._by_file.get(image.get("file_name", ""), {})
        if key not in record:
            raise UserError(f"{image.get('file_name')}: data set '{self._dataset_name}' gives it no {key}")
        return record

    def value(self, image: Mapping[str, Any], key: str) -> Any:
        """``image[key]``, or that of the data set's record of the same ``file_name``.

        Raises:
            UserError: neither has the key.
        """
        return self.holding(image, key)[key]


def load_json(path: str | Path, *, takes: str) -> Any:
    """What a JSON file holds.

    Raises:
        UserError: it is missing or no JSON; ``takes`` says what would be right.
    """
    try:
        return json.loads(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; takes {takes}") from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON, or cut off: {error}; takes {takes}") from error


def read_json(path: str | Path, keys: Sequence[str]) -> dict[str, Any]:
    """A JSON file that holds an object with these keys.

    Raises:
        UserError: it is missing, no JSON, or lacks a key.
    """
    content: dict[str, Any] = load_json(path, takes="an annotation file")
    missing = [key for key in keys if not isinstance(content, dict) or key not in content]
    if missing:
        raise UserError(f"{path}: no '{missing[0]}' at the top; takes an object with {', '.join(keys)}")
    return content


def instance_truth(dataset_name: str, *, with_masks: bool, with_keypoints: bool = False) -> InstanceTruth:
    """The metadata's ``json_file``, or, where there is none, the annotations of the data set's records.

    Args:
        dataset_name: of the data set.
        with_masks: every annotation must have one.
        with_keypoints: likewise.

    Raises:
        UserError: a file that cannot be read, or an annotation that lacks what the scores need.
    """
    meta = MetadataCatalog.get(dataset_name)
    if not meta.get("json_file"):
        return _truth_of_records(dataset_name, with_masks=with_masks, with_keypoints=with_keypoints)
    coco = read_json(meta.json_file, ("images", "categories"))
    needs = {"images": ("id", "height", "width") if with_masks else ("id",), "categories": ("id", "name")}
    for key, needed in needs.items():
        for index, entry in enumerate(coco[key]):
            require(entry, needed, f"{meta.json_file}: entry {index} of '{key}'")
    for annotation in coco.get("annotations", []):
        name = f"{meta.json_file}: annotation {annotation.get('id')}"
        require(annotation, ("id", "image_id", "category_id", "bbox", "area"), name)
        if with_masks:
            _require_mask(annotation, name)
        if with_keypoints:
            require(annotation, ("keypoints",), name)
            annotation.setdefault("num_keypoints", sum(v > 0 for v in annotation["keypoints"][2::3]))
    known = {category["id"]: category["name"] for category in coco["categories"]}
    to_class = meta.get("thing_dataset_id_to_contiguous_id") or {c: i for i, c in enumerate(sorted(known))}
    category_ids = sorted(to_class, key=to_class.__getitem__)
    absent = [c for c in category_ids if c not in known]
    if absent:
        raise UserError(f"{meta.json_file}: no category {absent[0]}, which the metadata of '{dataset_name}' list")
    names = meta.get("thing_classes") or [known[c] for c in category_ids]
    if len(names) != len(category_ids):
        raise UserError(
            f"data set '{dataset_name}' names {len(names)} thing_classes for {len(category_ids)} categories"
        )
    return InstanceTruth(coco, names, category_ids, {image["id"]: image["id"] for image in coco["images"]})


def _truth_of_records(dataset_name: str, *, with_masks: bool, with_keypoints: bool) -> InstanceTruth:
    """COCO's dictionary of detectron2's standard records; ids of images and annotations are counted from 1."""
    names = MetadataCatalog.get(dataset_name).get("thing_classes")
    if not names:
        raise UserError(f"data set '{dataset_name}' has neither json_file nor thing_classes in its metadata")
    records = dict(enumerate(DatasetCatalog.get(dataset_name), start=1))
    for record in records.values():
        require(record, ("image_id", "height", "width"), str(record.get("file_name")))
    annotations = [
        {"image_id": i, **_annotation(annotation, record, with_masks=with_masks, with_keypoints=with_keypoints)}
        for i, record in records.items()
        for annotation in record.get("annotations", [])
    ]
    coco = {
        "images": [{"id": i, "height": r["height"], "width": r["width"]} for i, r in records.items()],
        "categories": [{"id": c, "name": name} for c, name in enumerate(names)],
        "annotations": [{"id": i, **annotation} for i, annotation in enumerate(annotations, start=1)],
    }
    return InstanceTruth(coco, names, list(range(len(names))), {r["image_id"]: i for i, r in records.items()})


def _annotation(
    annotation: Mapping[str, Any], record: Mapping[str, Any], *, with_masks: bool, with_keypoints: bool
) -> dict[str, Any]:
    """COCO's annotation of detectron2's, with the area counted in the mask where there is one."""
    name = f"{record.get('file_name')}: an annotation"
    require(annotation, ("bbox", "bbox_mode", "category_id"), name)
    box = [float(x) for x in BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYWH_ABS)]
    common = {"category_id": annotation["category_id"], "iscrowd": int(annotation.get("iscrowd", 0)), "bbox": box}
    if with_keypoints:
        require(annotation, ("keypoints",), name)
        points = np.array(annotation["keypoints"], np.float64).reshape(-1, 3)
        points[:, :2] -= 0.5  # detectron2's records hold positions, COCO's files pixel indices
        common |= {"keypoints": points.ravel().tolist(), "num_keypoints": int((points[:, 2] > 0).sum())}
    if not with_masks and not annotation.get("segmentation"):
        return {**common, "area": box[2] * box[3]}
    _require_mask(annotation, name)
    shape = compressed_rle(annotation["segmentation"], (record["height"], record["width"]))
    return {**common, "segmentation": shape, "area": float(rle.area(shape))}


def require(given: Mapping[str, Any], keys: Sequence[str], name: str) -> None:
    """Raise UserError, beginning with ``name``, where a key is missing."""
    missing = [key for key in keys if key not in given]
    if missing:
        raise UserError(f"{name} has no '{missing[0]}'; takes {', '.join(keys)}")


def _require_mask(annotation: Mapping[str, Any], name: str) -> None:
    if not annotation.get("segmentation"):
        raise UserError(f"{name} has no 'segmentation', which the task 'segm' needs")
