"""Pictures of predictions beside the ground truth, in a training's event storage for TensorBoard or W&B."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage

from seg_ext.data.image_io import read_picture
from seg_ext.errors import UserError
from seg_ext.visualize import Array, draw_scene, scene_from_output, scene_from_record

_LARGEST = 640  # longer side of an image in a picture, pixels
_TRUTH_KEYS = {"semantic": "sem_seg_file_name", "instance": "annotations", "panoptic": "pan_seg_file_name"}


class Pictures(DatasetEvaluator):
    """The first images of a set, the same in each evaluation: one picture a task, prediction beside ground truth.

    Args:
        dataset_name: its records are the ground truth, found by ``file_name``.
        limit: images, 0 for none.

    Raises:
        UserError: limit below 0.
    """

    def __init__(self, dataset_name: str, *, limit: int) -> None:
        if limit < 0:
            raise UserError(f"TEST.PICTURES {limit}: takes a number of images, 0 for none")
        self._name, self._metadata = dataset_name, MetadataCatalog.get(dataset_name)
        self._limit = limit if comm.is_main_process() else 0
        self.reset()

    def reset(self) -> None:
        """Begin with the first image again."""
        self._seen = 0
        self._records: dict[str, dict[str, Any]] | None = None

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Draw what is among the first images."""
        for entry, output in zip(inputs, outputs, strict=True):
            if self._seen >= self._limit:
                return
            for task, picture in self._drawn(entry, output).items():
                name = f"{self._name}/{self._seen}_{task}"
                get_event_storage().put_image(name, np.ascontiguousarray(picture.transpose(2, 0, 1)))
            self._seen += 1

    def evaluate(self) -> dict[str, Any]:
        """No scores."""
        return {}

    def _drawn(self, entry: Mapping[str, Any], output: Mapping[str, Any]) -> dict[str, Array]:
        """(h, 2 w, 3) RGB by task: prediction, ground truth where there is one."""
        if self._records is None:
            self._records = {record["file_name"]: record for record in DatasetCatalog.get(self._name)}
        guess = scene_from_output(output, min_score=0.5)
        unused = {key for task, key in _TRUTH_KEYS.items() if getattr(guess, task) is None}
        if len(unused) == len(_TRUTH_KEYS):
            return {}  # boxes alone: nothing to draw
        known = self._records.get(entry["file_name"], entry)
        record = {key: value for key, value in known.items() if key not in unused}
        image = read_picture(entry["file_name"])
        truth = draw_scene(image, scene_from_record(record, self._metadata), self._metadata)
        drawn = draw_scene(image, guess, self._metadata)
        return {task: _beside(picture, truth.get(task, image)) for task, picture in drawn.items()}


def _beside(first: Array, second: Array) -> Array:
    factor = min(1.0, _LARGEST / max(first.shape[:2]))
    size = [max(1, round(side * factor)) for side in first.shape[1::-1]]
    return np.hstack([cv2.resize(picture, size, interpolation=cv2.INTER_AREA) for picture in (first, second)])
