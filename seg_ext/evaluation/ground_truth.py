"""Ground truth as the evaluators need it: values of records, annotation files, COCO's dictionary."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence, Sized
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
    except (ValueError, RecursionError) as error:
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


def panoptic_annotations(path: str | Path) -> list[dict[str, Any]]:
    """What a JSON file of COCO's panoptic format says of each image.

    Returns:
        Objects with ``image_id``, the text ``file_name``, and ``segments_info``, whose ``id`` and ``category_id`` are
        whole numbers, the former each once.

    Raises:
        UserError: the file cannot be read, or an entry is not so.
    """
    annotations = read_json(path, ("annotations",))["annotations"]
    if not _are_objects(annotations):
        raise UserError(f"{path}: 'annotations' is no list of objects; takes COCO's panoptic format")
    for index, annotation in enumerate(annotations):
        require(annotation, ("image_id", "file_name", "segments_info"), f"{path}: annotation {index}")
        entry = f"{path}: annotation {index} (image {annotation['image_id']})"
        if not isinstance(annotation["file_name"], str):
            raise UserError(f"{entry}: file_name {annotation['file_name']!r}; takes the name of a PNG")
        _check_segments(annotation["segments_info"], entry)
    return annotations


def _check_segments(segments: Any, entry: str) -> None:
    if not _are_objects(segments):
        raise UserError(f"{entry}: segments_info is no list of objects")
    seen = set()
    for index, segment in enumerate(segments):
        require(segment, ("id", "category_id"), f"{entry}: segment {index}")
        if type(segment["id"]) is not int or segment["id"] in seen:
            raise UserError(f"{entry}: segment id {segment['id']!r}; takes whole numbers, each once")
        if type(segment["category_id"]) is not int:
            raise UserError(f"{entry}: segment {segment['id']}: category_id {segment['category_id']!r}; takes a number")
        seen.add(segment["id"])


def _are_objects(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, dict) for value in values)


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
    coco = _read_coco(meta.json_file, with_masks=with_masks, with_keypoints=with_keypoints)
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
    coco, image_ids = _numbered(coco)
    return InstanceTruth(coco, names, category_ids, image_ids)


def _read_coco(path: str, *, with_masks: bool, with_keypoints: bool) -> dict[str, Any]:
    """COCO's dictionary, each entry of which has what the scores need."""
    coco = read_json(path, ("images", "categories"))
    needs = {"images": ("id", "height", "width") if with_masks else ("id",), "categories": ("id", "name")}
    for key in (*needs, "annotations"):
        if not _are_objects(coco.get(key, [])):
            raise UserError(f"{path}: '{key}' is no list of objects; takes COCO's format")
    for key, needed in needs.items():
        for index, entry in enumerate(coco[key]):
            require(entry, needed, f"{path}: entry {index} of '{key}'")
            if type(entry["id"]) is not int and (key == "categories" or type(entry["id"]) is not str):
                raise UserError(f"{path}: entry {index} of '{key}' has the id {entry['id']!r}; takes a whole number")
    kinds = {type(image["id"]) for image in coco["images"]} or {int, str}
    sizes = {image["id"]: [image["height"], image["width"]] for image in coco["images"]} if with_masks else {}
    for annotation in coco.get("annotations", []):
        name = f"{path}: annotation {annotation.get('id')}"
        require(annotation, ("id", "image_id", "category_id", "bbox", "area"), name)
        _check_values(annotation, name, kinds)
        if with_masks:
            _require_mask(annotation, name, sizes.get(annotation["image_id"]))
        if with_keypoints:
            require(annotation, ("keypoints",), name)
            annotation.setdefault("num_keypoints", sum(v > 0 for v in annotation["keypoints"][2::3]))
    ids = [annotation["id"] for annotation in coco.get("annotations", [])]
    if not all(type(i) is int and i > 0 for i in ids) or len(set(ids)) < len(ids):  # engines need them so
        coco["annotations"] = [{**row, "id": place} for place, row in enumerate(coco["annotations"], start=1)]
    return coco


def _check_values(annotation: Mapping[str, Any], name: str, kinds: Collection[type]) -> None:
    """Raise UserError, beginning with ``name``, where a value is none that a COCO file has; image ids are of kinds."""
    box = annotation["bbox"]
    for key, fits, takes in (
        ("image_id", type(annotation["image_id"]) in kinds, "the id of an image"),
        ("category_id", type(annotation["category_id"]) is int, "the id of a category"),
        ("bbox", isinstance(box, list) and len(box) == 4 and all(map(_is_number, box)), "[x, y, width, height]"),
        ("area", _is_number(annotation["area"]), "a number of pixels"),
        ("iscrowd", annotation.get("iscrowd", 0) in (0, 1), "0 or 1"),
    ):
        if not fits:
            raise UserError(f"{name} has {key} {annotation.get(key)!r}; takes {takes}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < math.inf


def _numbered(coco: dict[str, Any]) -> tuple[dict[str, Any], dict[Any, int]]:
    """COCO's dictionary with numbers for images, which the engines want, and these by image id."""
    ids = [image["id"] for image in coco["images"]]
    if all(type(image_id) is int and image_id >= 0 for image_id in ids):
        return coco, {image_id: image_id for image_id in ids}
    places = {image_id: place for place, image_id in enumerate(ids, start=1)}
    moved = {"images": [{**image, "id": places[image["id"]]} for image in coco["images"]]}
    if "annotations" in coco:
        kept = [annotation for annotation in coco["annotations"] if annotation["image_id"] in places]
        moved["annotations"] = [{**annotation, "image_id": places[annotation["image_id"]]} for annotation in kept]
    return {**coco, **moved}, places


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


def _require_mask(annotation: Mapping[str, Any], name: str, size: Sequence[int] | None = None) -> None:
    """Of an image of this height and width."""
    shape = annotation.get("segmentation")
    if not shape:
        raise UserError(f"{name} has no 'segmentation', which the task 'segm' needs")
    if not isinstance(shape, list | dict):
        raise UserError(f"{name} has segmentation {shape!r}; takes polygons or an RLE")
    if isinstance(shape, list) and not any(isinstance(part, Sized) and len(part) >= 6 for part in shape):
        raise UserError(f"{name} has no polygon of three corners, which the task 'segm' needs")
    if isinstance(shape, dict) and size is not None and list(shape.get("size", ())) != list(size):
        raise UserError(f"{name} has a mask of {shape.get('size')}; takes the image's {size} (height, width)")
