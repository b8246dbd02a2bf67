"""What is known of one image, to be drawn: from a model's output, or from the files of a data-set record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.data.catalog import Metadata
from detectron2.structures import BoxMode
from numpy.typing import NDArray
from pycocotools import mask as mask_util

from seg_ext.data.instances import compressed_rle
from seg_ext.data.label_io import read_panoptic_ids, read_record_label
from seg_ext.errors import UserError

Array = NDArray[Any]


@dataclass(frozen=True)
class Objects:
    """Instances: masks (N, H, W) bool, classes (N,), boxes (N, 4) xyxy pixels, scores (N,), crowd regions (H, W)."""

    masks: Array
    classes: Array
    boxes: Array | None = None
    scores: Array | None = None
    crowd: Array | None = None


@dataclass(frozen=True)
class Scene:
    """What is known of one image, each or None: semantic ids (H, W), objects, panoptic ids (H, W) with segments."""

    semantic: Array | None = None
    instance: Objects | None = None
    panoptic: tuple[Array, list[dict[str, Any]]] | None = None


def scene_from_output(output: Mapping[str, Any], *, min_score: float = 0.0) -> Scene:
    """The arrays of a model's output for one image.

    Instances scored below ``min_score`` are left out, and so are boxes without masks and panoptic ids without segments.
    """
    labels = objects = panoptic = None
    if "sem_seg_labels" in output or "sem_seg" in output:
        found = output["sem_seg_labels"] if "sem_seg_labels" in output else output["sem_seg"].max(dim=0).indices
        labels = found.cpu().numpy()
    if "instances" in output and output["instances"].has("pred_masks"):
        found = output["instances"].to("cpu")
        found = found[found.scores >= min_score]
        boxes = found.pred_boxes.tensor.numpy() if found.has("pred_boxes") else None
        objects = Objects(found.pred_masks.bool().numpy(), found.pred_classes.numpy(), boxes, found.scores.numpy())
    if "panoptic_seg" in output and output["panoptic_seg"][1] is not None:
        ids, segments = output["panoptic_seg"]
        panoptic = ids.cpu().numpy(), list(segments)
    return Scene(labels, objects, panoptic)


def scene_from_record(record: Mapping[str, Any], metadata: Metadata) -> Scene:
    """The ground truth of a data-set record, read from its files; crowds become one region.

    Raises:
        UserError: an annotation file cannot be read or holds ids out of range.
    """
    semantic = objects = panoptic = None
    if "sem_seg_file_name" in record:
        semantic = read_record_label(
            record,
            metadata,
            num_classes=len(metadata.get("stuff_classes") or ()) or None,
            ignore=metadata.get("ignore_label", 255),
        )
    if record.get("annotations") is not None:
        objects = _annotated_objects(record)
    if "pan_seg_file_name" in record:
        panoptic = read_panoptic_ids(record["pan_seg_file_name"]), list(record["segments_info"])
    return Scene(semantic, objects, panoptic)


def _annotated_objects(record: Mapping[str, Any]) -> Objects:
    annotations = [a for a in record["annotations"] if a.get("segmentation")]
    crowd = np.array([a.get("iscrowd", 0) for a in annotations], bool)
    masks = np.zeros((len(annotations), record["height"], record["width"]), bool)
    for mask, annotation in zip(masks, annotations, strict=True):
        rle = compressed_rle(annotation["segmentation"], mask.shape)
        if tuple(rle["size"]) != mask.shape:
            raise UserError(f"{record.get('file_name')}: a mask of {tuple(rle['size'])} on an image of {mask.shape}")
        x, y, width, height = mask_util.toBbox(rle).astype(int)
        window = np.s_[y : y + height, x : x + width]
        mask[window] = mask_util.decode(rle)[window]
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
    return Objects(
        masks[~crowd],
        np.array([a["category_id"] for a in annotations], int)[~crowd],
        np.array(boxes, float).reshape(-1, 4)[~crowd],
        crowd=masks[crowd].any(0) if crowd.any() else None,
    )
