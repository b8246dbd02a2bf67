"""Semantic segmentation evaluator: a few arrays of counts over the data set, detectron2's result keys and more."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import Tensor

from seg_ext.data.label_io import read_record_label
from seg_ext.errors import UserError
from seg_ext.evaluation.ground_truth import RecordLookup
from seg_ext.evaluation.uncertainty import SHAPE, uncertainty_counts, uncertainty_scores
from seg_ext.metrics import (
    boundary_counts,
    calibration_counts,
    class_counts,
    class_scores,
    compact_labels,
    confusion_matrix,
    contour_f1,
    expected_calibration_error,
    semantic_scores,
    trimap_counts,
)
from seg_ext.metrics.boundary import WIDTHS
from seg_ext.metrics.calibration import BINS

METRICS = ("boundary", "bf", "trimap", "calibration", "uncertainty")  # beside what the confusion matrix gives
NEED_SCORES = ("calibration", "uncertainty")  # of them, what labels alone do not serve
OnImage = Callable[[Mapping[str, Any], np.ndarray], None]


class SemanticEvaluator(DatasetEvaluator):
    """mIoU, frequency-weighted IoU, accuracies, Dice, Boundary IoU and more, per class and as means, in percent.

    Ground truth is read from the record's ``sem_seg_file_name`` and mapped to train ids with the record's or the data
    set's ``label_map`` and ``label_colors``.
    The prediction is ``sem_seg_labels`` (H, W) where the model gives it, else the argmax of ``sem_seg`` (K, H, W).
    The state is a few arrays of K x K numbers at most, summed over processes.

    A class that no pixel of the ground truth has is nan, and left out of the means; pixels wrongly given to it count
    against the class they belong to. detectron2 does the same, but for Boundary IoU, which it takes of the label map
    eroded once: there an all-wrong prediction scores above 0, and a class that is predicted without being there is 0.

    Attributes:
        confusion: (K, K+1) pixel counts, rows ground truth, of all processes; set by :meth:`evaluate` on the main one.
        totals: likewise the counts of "calibration", "uncertainty" and the other metrics.
        class_names: of the K classes.

    Args:
        dataset_name: its metadata give ``stuff_classes``, ``ignore_label`` (255 where absent), ``label_map``
            and ``label_colors``.
        num_classes: K, for a data set whose classes have no names.
        distributed: sum over all processes; otherwise each scores what it has seen.
        metrics: of :data:`METRICS`, what to compute beside the confusion matrix. "boundary" is Boundary IoU, "bf" the
            contours' F1, "trimap" mIoU near the ground truth's boundaries, "calibration" the expected calibration
            error and "uncertainty" the accuracy of what is left without the most uncertain pixels, both of which need
            ``sem_seg``; all but the first cost more time than all else.
        on_image: called with each input and its (K, 3) counts: correct, ground-truth and predicted pixels.

    Raises:
        UserError: no classes, another number of them than ``num_classes``, or unknown metrics.
    """

    def __init__(
        self,
        dataset_name: str,
        *,
        num_classes: int | None = None,
        distributed: bool = True,
        metrics: Collection[str] = ("boundary",),
        on_image: OnImage | None = None,
    ) -> None:
        meta = MetadataCatalog.get(dataset_name)
        names = meta.get("stuff_classes") or [str(i) for i in range(num_classes or 0)]
        if not names:
            raise UserError(
                f"data set '{dataset_name}' has no stuff_classes in its metadata: give them, or num_classes"
            )
        if num_classes not in (None, len(names)):
            raise UserError(f"num_classes {num_classes}: data set '{dataset_name}' has {len(names)} stuff_classes")
        unknown = [metric for metric in metrics if metric not in METRICS]
        if unknown:
            raise UserError(f"semantic metric {unknown[0]!r}: takes some of {', '.join(METRICS)}")
        self.class_names: Sequence[str] = names
        self._metrics = frozenset(metrics)
        self.on_image = on_image
        self._ignore: int = meta.get("ignore_label", 255)
        self._metadata = meta
        self._distributed = distributed
        self._records = RecordLookup(dataset_name)
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        classes = len(self.class_names)
        shapes: dict[str, tuple[int, ...]] = {
            "boundary": (classes, 3),
            "bf": (2, classes + 1),  # sum and number of images, of the classes and of the images' means
            "trimap": (len(WIDTHS), classes, 3),
            "calibration": (3, BINS),
            "uncertainty": SHAPE,
        }
        self._counts = {"confusion": np.zeros((classes, classes + 1), np.int64)}
        for score in sorted(self._metrics):
            self._counts[score] = np.zeros(shapes[score], float if score in ("bf", "calibration") else np.int64)
        self.confusion = self._counts["confusion"]
        self.totals = self._counts

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Add a batch of images.

        Raises:
            UserError: a prediction that is missing, NaN, or of another size or number of classes than the ground truth.
        """
        classes = len(self.class_names)
        for image, output in zip(inputs, outputs, strict=True):
            record = self._records.holding(image, "sem_seg_file_name")
            path = record["sem_seg_file_name"]
            target = read_record_label(record, self._metadata, num_classes=classes, ignore=self._ignore)
            pred, best = self._labels(output, image.get("file_name", path))
            if pred.shape != target.shape:
                raise UserError(
                    f"{path}: label map of {_size(target)} for a prediction of {_size(pred)}, takes equal sizes"
                )
            maps = compact_labels(pred, target, classes, ignore=self._ignore)
            found = {"confusion": confusion_matrix(*maps, classes, ignore=classes + 1)}
            found |= self._boundaries(*maps)
            if "calibration" in self._metrics and best is not None:
                sure = (best - output["sem_seg"].logsumexp(dim=0)).float().exp().cpu().numpy()
                found["calibration"] = calibration_counts(sure, *maps, ignore=classes + 1)
            if "uncertainty" in self._metrics:
                name = image.get("file_name", path)
                found["uncertainty"] = uncertainty_counts(output, *maps, ignore=classes + 1, file_name=name)
            for key, counts in found.items():
                self._counts[key] += counts
            if self.on_image:
                self.on_image(image, class_counts(found["confusion"]))

    def evaluate(self) -> dict[str, dict[str, float]]:
        """``{"sem_seg": {mIoU, fwIoU, IoU-<name>, mACC, pACC, ACC-<name>, mDice, Dice-<name>, ...}}``.

        Further keys: BoundaryIoU-<name>, min(IoU, B-Iou)-<name> and mBoundaryIoU; BF and BF-<name>; TrimapIoU@<pixels>;
        ECE; KeptACC@<percent> and AURC. Empty but on the main process.
        """
        parts = comm.gather(self._counts) if self._distributed else [self._counts]
        if not parts:
            return {}
        counts = {key: np.sum([part[key] for part in parts], axis=0) for key in self._counts}
        self.confusion = counts["confusion"]
        scores = semantic_scores(self.confusion)
        per_class = {"IoU": scores.iou}
        if "boundary" in counts:
            inner, _, _ = class_scores(counts["boundary"])
            per_class |= {"BoundaryIoU": inner, "min(IoU, B-Iou)": np.minimum(scores.iou, inner)}
        result = {"mIoU": scores.miou, "fwIoU": scores.fwiou}
        result |= {f"{key}-{n}": v[i] for i, n in enumerate(self.class_names) for key, v in per_class.items()}
        result |= {"mACC": scores.macc, "pACC": scores.pacc, **self._named("ACC", scores.acc)}
        result |= {"mDice": scores.mdice, **self._named("Dice", scores.dice)}
        if "boundary" in counts:
            result["mBoundaryIoU"] = _mean(inner)
        if "bf" in counts:
            total, number = counts["bf"]
            means = np.divide(total, number, out=np.full_like(total, np.nan), where=number > 0)
            result |= {"BF": means[-1], **self._named("BF", means[:-1])}
        if "trimap" in counts:
            iou, _, _ = class_scores(counts["trimap"])
            result |= {f"TrimapIoU@{w}": _mean(x) for w, x in zip(WIDTHS, iou, strict=True)}
        if "calibration" in counts:
            result["ECE"] = expected_calibration_error(counts["calibration"])
        if "uncertainty" in counts:
            result |= uncertainty_scores(counts["uncertainty"])
        self.totals = counts
        return {"sem_seg": {key: 100 * float(value) for key, value in result.items()}}

    def _boundaries(self, pred: np.ndarray, target: np.ndarray) -> dict[str, np.ndarray]:
        """Counts of one image of those scores that look at boundaries and are asked for, of compact label maps."""
        classes, found = len(self.class_names), {}
        for score, count in (("boundary", boundary_counts), ("trimap", trimap_counts)):
            if score in self._metrics:
                found[score] = count(pred, target, classes, ignore=classes + 1)
        if "bf" in self._metrics:
            f1 = contour_f1(pred, target, classes, ignore=classes + 1)
            f1 = np.append(f1, _mean(f1))
            found["bf"] = np.stack([np.nan_to_num(f1), ~np.isnan(f1)])
        return found

    def _named(self, key: str, values: np.ndarray) -> dict[str, float]:
        return {f"{key}-{name}": value for name, value in zip(self.class_names, values.tolist(), strict=True)}

    def _labels(self, output: Mapping[str, Any], file_name: str) -> tuple[np.ndarray, Tensor | None]:
        """(H, W) predicted ids, and their scores where there are scores."""
        if "sem_seg_labels" in output:
            ids = output["sem_seg_labels"]
            known = output["sem_seg"].gather(0, ids[None].long())[0] if "sem_seg" in output else None
            return ids.cpu().numpy(), known
        if "sem_seg" not in output:
            raise UserError(f"{file_name}: the model gives {sorted(output)}, takes sem_seg or sem_seg_labels")
        scores, classes = output["sem_seg"], len(self.class_names)
        if len(scores) != classes:
            raise UserError(f"{file_name}: the model scores {len(scores)} classes, the data set has {classes}")
        best, labels = scores.max(dim=0)
        if best.isnan().any():
            raise UserError(f"{file_name}: the model's sem_seg holds NaN; it has diverged, take an earlier checkpoint")
        return labels.cpu().numpy(), best


def _mean(values: np.ndarray) -> float:
    """Mean of what is not nan; nan of nothing."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def _size(array: np.ndarray) -> str:
    return "x".join(map(str, array.shape))
