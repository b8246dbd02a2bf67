"""Semantic segmentation evaluator: one confusion matrix over the data set, detectron2's result keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from seg_ext.data.label_io import read_record_label
from seg_ext.errors import UserError
from seg_ext.evaluation.ground_truth import RecordLookup
from seg_ext.metrics import confusion_matrix, semantic_scores


class SemanticEvaluator(DatasetEvaluator):
    """mIoU, frequency-weighted IoU, mean and pixel accuracy, and IoU and accuracy per class, in percent.

    Ground truth is read from the record's ``sem_seg_file_name`` and mapped to train ids with the record's or the data
    set's ``label_map`` and ``label_colors``.
    The prediction is ``sem_seg_labels`` (H, W) where the model gives it, else the argmax of ``sem_seg`` (K, H, W).
    The state is one (K, K+1) array, summed over processes.

    Attributes:
        confusion: (K, K+1) pixel counts, rows ground truth, of all processes; set by :meth:`evaluate` on the main one.

    Args:
        dataset_name: its metadata give ``stuff_classes``, ``ignore_label`` (255 where absent), ``label_map``
            and ``label_colors``.
        num_classes: K, for a data set whose classes have no names.
        distributed: sum over all processes; otherwise each scores what it has seen.

    Raises:
        UserError: no classes, or another number of them than ``num_classes``.
    """

    def __init__(self, dataset_name: str, *, num_classes: int | None = None, distributed: bool = True) -> None:
        meta = MetadataCatalog.get(dataset_name)
        names = meta.get("stuff_classes") or [str(i) for i in range(num_classes or 0)]
        if not names:
            raise UserError(
                f"data set '{dataset_name}' has no stuff_classes in its metadata: give them, or num_classes"
            )
        if num_classes not in (None, len(names)):
            raise UserError(f"num_classes {num_classes}: data set '{dataset_name}' has {len(names)} stuff_classes")
        self._names: Sequence[str] = names
        self._ignore: int = meta.get("ignore_label", 255)
        self._metadata = meta
        self._distributed = distributed
        self._records = RecordLookup(dataset_name)
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._counts = np.zeros((len(self._names), len(self._names) + 1), np.int64)
        self.confusion = self._counts

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Add a batch of images.

        Raises:
            UserError: a prediction that is missing, NaN, or of another size or number of classes than the ground truth.
        """
        for image, output in zip(inputs, outputs, strict=True):
            record = self._records.holding(image, "sem_seg_file_name")
            path = record["sem_seg_file_name"]
            target = read_record_label(record, self._metadata, num_classes=len(self._names), ignore=self._ignore)
            pred = self._labels(output, image.get("file_name", path))
            if pred.shape != target.shape:
                raise UserError(
                    f"{path}: label map of {_size(target)} for a prediction of {_size(pred)}, takes equal sizes"
                )
            self._counts = self._counts + confusion_matrix(pred, target, len(self._names), ignore=self._ignore)

    def evaluate(self) -> dict[str, dict[str, float]]:
        """``{"sem_seg": {mIoU, fwIoU, IoU-<name>, mACC, pACC, ACC-<name>}}``; empty but on the main process."""
        parts = comm.gather(self._counts) if self._distributed else [self._counts]
        if not parts:
            return {}
        self.confusion = np.sum(parts, axis=0)
        scores = semantic_scores(self.confusion)
        return {
            "sem_seg": {
                "mIoU": 100 * scores.miou,
                "fwIoU": 100 * scores.fwiou,
                **{f"IoU-{name}": 100 * iou for name, iou in zip(self._names, scores.iou.tolist(), strict=True)},
                "mACC": 100 * scores.macc,
                "pACC": 100 * scores.pacc,
                **{f"ACC-{name}": 100 * acc for name, acc in zip(self._names, scores.acc.tolist(), strict=True)},
            }
        }

    def _labels(self, output: Mapping[str, Any], file_name: str) -> np.ndarray:
        """(H, W) predicted ids."""
        if "sem_seg_labels" in output:
            return output["sem_seg_labels"].cpu().numpy()
        if "sem_seg" not in output:
            raise UserError(f"{file_name}: the model gives {sorted(output)}, takes sem_seg or sem_seg_labels")
        scores = output["sem_seg"]
        if len(scores) != len(self._names):
            raise UserError(f"{file_name}: the model scores {len(scores)} classes, the data set has {len(self._names)}")
        best, labels = scores.max(dim=0)
        if best.isnan().any():
            raise UserError(f"{file_name}: the model's sem_seg holds NaN; it has diverged, take an earlier checkpoint")
        return labels.cpu().numpy()


def _size(array: np.ndarray) -> str:
    return "x".join(map(str, array.shape))
