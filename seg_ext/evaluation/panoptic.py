"""Panoptic evaluator: panoptic quality over the data set, detectron2's result keys."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from seg_ext.data.label_io import read_panoptic_ids
from seg_ext.errors import UserError
from seg_ext.evaluation.ground_truth import RecordLookup, panoptic_annotations
from seg_ext.evaluation.panoptic_files import SegmentFile, count_files
from seg_ext.metrics import PanopticStat, panoptic_quality, pq_scores

_log = logging.getLogger(__name__)


class PanopticEvaluator(DatasetEvaluator):
    """PQ, SQ and RQ of all classes, of things (``_th``) and stuff (``_st``), and of each class, in percent.

    The classes are those of ``thing_dataset_id_to_contiguous_id``, then those of ``stuff_dataset_id_to_contiguous_id``
    that are no things. Predictions are ``panoptic_seg``: a map of ids (H, W), 0 = void, and its segments, with
    contiguous category ids (the data set's own where a segment has no ``isthing``); segments of None mean that an id
    is ``semantic class * label_divisor + instance``, and -1 void. The state is a few arrays of K numbers. Images that
    were never processed do not count, which is logged.

    Attributes:
        class_names: of the K classes, things first.
        things: how many of them are things.
        on_image: called, where it is set, with each input and its (K, 4) sum of IoU, TP, FP and FN.

    Args:
        dataset_name: its metadata give ``panoptic_json``, ``panoptic_root``, the two maps above, and ``thing_classes``
            and ``stuff_classes``; ``label_divisor`` where segments are None.
        distributed: sum over all processes; otherwise each scores what it has seen.

    Raises:
        UserError: metadata are missing, or the JSON file cannot be read or has a category they do not know.
    """

    def __init__(self, dataset_name: str, *, distributed: bool = True) -> None:
        meta = MetadataCatalog.get(dataset_name)
        for key in ("panoptic_json", "panoptic_root", "thing_classes", "stuff_classes"):
            if not meta.get(key):
                raise UserError(f"data set '{dataset_name}' has no {key} in its metadata")
        things = meta.get("thing_dataset_id_to_contiguous_id") or {}
        stuff = meta.get("stuff_dataset_id_to_contiguous_id") or {}
        names = {category: meta.thing_classes[i] for category, i in things.items()}
        names |= {category: meta.stuff_classes[i] for category, i in stuff.items() if category not in names}
        self.class_names: Sequence[str] = list(names.values())
        self.things = len(things)
        self.on_image: Callable[[Mapping[str, Any], np.ndarray], None] | None = None
        self._is_thing = np.arange(len(names)) < len(things)
        self._class_of = {category: index for index, category in enumerate(names)}
        self._thing_class = {i: self._class_of[category] for category, i in things.items()}
        self._stuff_class = {i: self._class_of[category] for category, i in stuff.items()}
        self._label_divisor: int | None = meta.get("label_divisor")
        self._root = Path(meta.panoptic_root)
        self._truth = self._read_truth(meta.panoptic_json)
        self._distributed = distributed
        self._records = RecordLookup(dataset_name)
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._stat = PanopticStat.zeros(len(self.class_names))
        self._images = 0

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Add a batch of images.

        Raises:
            UserError: an image that the JSON file does not list, a prediction that is missing or of another size than
                the ground truth, a segment without a known category.
        """
        for image, output in zip(inputs, outputs, strict=True):
            image_id = str(self._records.value(image, "image_id"))
            if image_id not in self._truth:
                raise UserError(f"{image.get('file_name')}: image_id {image_id} is not in the panoptic_json")
            truth = self._truth[image_id]
            path = truth.path
            if "panoptic_seg" not in output:
                raise UserError(f"{path}: the model gives {sorted(output)}, takes panoptic_seg")
            target = read_panoptic_ids(path)
            try:
                pred, classes = self._prediction(*output["panoptic_seg"])
                stat = panoptic_quality(
                    pred,
                    target,
                    pred_classes=classes,
                    target_classes=truth.classes,
                    num_classes=len(self.class_names),
                    crowd=truth.crowd,
                )
            except ValueError as error:
                raise UserError(f"{path}: {error}") from error
            self._stat += stat
            self._images += 1
            if self.on_image:
                self.on_image(image, np.stack([stat.iou_sum, stat.tp, stat.fp, stat.fn], axis=1))

    def process_files(self, found: Mapping[str, tuple[Path, Sequence[Mapping[str, Any]]]]) -> list[str]:
        """Add images from PNGs of their predictions through hotcoco: the same counts, several times as fast.

        Args:
            found: PNG and segments, with the data set's own category ids, by image id.

        Returns:
            The images that were not added, which :meth:`process` counts or names the fault of: those with two crowd
            regions of a class, or all, where a file and its list do not agree.
        """
        left = [i for i in found if _repeats(self._truth[i])]
        there = [i for i in found if i not in left]
        files = [
            SegmentFile(path, {segment["id"]: self._class_of[segment["category_id"]] for segment in segments})
            for path, segments in (found[i] for i in there)
        ]
        try:
            stat = count_files([self._truth[i] for i in there], files, len(self.class_names))
        except (ValueError, OSError):
            return [*found]
        self._stat += stat
        self._images += len(there)
        return left

    def evaluate(self) -> dict[str, dict[str, float]]:
        """``{"panoptic_seg": {PQ, SQ, RQ, PQ_th, ..., RQ_st, PQ-<name>, SQ-<name>, RQ-<name>}}``.

        Empty but on the main process. nan stands for a class, or a group of classes, without a segment.
        """
        state = self._stat, self._images
        parts = comm.gather(state) if self._distributed else [state]
        if not parts:
            return {}
        stats, images = zip(*parts, strict=True)
        if sum(images) != len(self._truth):
            _log.warning("panoptic quality over %d images, the ground truth has %d", sum(images), len(self._truth))
        scores = pq_scores(reduce(add, stats), self._is_thing)
        groups = {"": scores.all, "_th": scores.things, "_st": scores.stuff}
        result = {
            f"{name}{suffix}": 100 * value
            for suffix, group in groups.items()
            for name, value in zip(("PQ", "SQ", "RQ"), group, strict=True)
        }
        for key, values in (("PQ", scores.pq), ("SQ", scores.sq), ("RQ", scores.rq)):
            result |= {f"{key}-{name}": 100 * x for name, x in zip(self.class_names, values.tolist(), strict=True)}
        return {"panoptic_seg": result}

    def _prediction(self, ids: Any, segments: Sequence[Mapping[str, Any]] | None) -> tuple[np.ndarray, dict[int, int]]:
        """Map of ids with 0 = void, and the class of each id."""
        array = ids.cpu().numpy()
        if segments is not None:
            return array, {segment["id"]: self._class(segment) for segment in segments}
        if self._label_divisor is None:
            raise ValueError("panoptic_seg has no segments, and the metadata no label_divisor to read the ids with")
        semantic = {int(i): int(i) // self._label_divisor for i in np.unique(array) if i >= 0}
        known = {**self._thing_class, **self._stuff_class}
        return array + 1, {i + 1: known.get(category, -1) for i, category in semantic.items()}

    def _class(self, segment: Mapping[str, Any]) -> int:
        """Class of a predicted segment; -1 where it is unknown, which the metric refuses."""
        isthing = segment.get("isthing")
        table = self._class_of if isthing is None else self._thing_class if isthing else self._stuff_class
        return table.get(segment["category_id"], -1)

    def _read_truth(self, path: str) -> dict[str, SegmentFile]:
        truth = {}
        for annotation in panoptic_annotations(path):
            segments = annotation["segments_info"]
            unknown = {segment["category_id"] for segment in segments} - self._class_of.keys()
            if unknown:
                raise UserError(f"{path}: category {min(unknown)} is in neither *_dataset_id_to_contiguous_id")
            truth[str(annotation["image_id"])] = SegmentFile(
                self._root / annotation["file_name"],
                {segment["id"]: self._class_of[segment["category_id"]] for segment in segments},
                frozenset(segment["id"] for segment in segments if segment.get("iscrowd")),
            )
        return truth


def _repeats(file: SegmentFile) -> bool:
    """Whether a class has several crowd regions."""
    return max(Counter(file.classes[segment] for segment in file.crowd).values(), default=0) > 1
