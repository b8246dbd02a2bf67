"""Instance evaluator: COCO's average precision of boxes and masks, detectron2's result keys."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import BoxMode
from detectron2.utils import comm
from pycocotools import mask as rle
from torch import Tensor

from seg_ext.errors import UserError
from seg_ext.evaluation.ground_truth import InstanceTruth, RecordLookup, instance_truth

_TASKS = {"bbox": ("bbox", "pred_boxes"), "segm": ("segmentation", "pred_masks")}  # COCO's field, Instances' field
_BACKENDS = ("auto", "hotcoco", "pycocotools")
_log = logging.getLogger(__name__)


class _Prediction(NamedTuple):
    image_id: Any
    scores: np.ndarray  # (n,)
    classes: np.ndarray  # (n,)
    shapes: dict[str, list[Any]]  # task -> n boxes (x, y, w, h) or RLEs


class InstanceEvaluator(DatasetEvaluator):
    """AP, AP50, AP75, AP by area, and AP per class where there are several, in percent.

    Ground truth is the metadata's ``json_file``, or, where there is none, the annotations of the data set's records.
    Predictions are kept as boxes and RLEs, the one state that grows with the number of images. An image that was
    never processed counts as one without predictions; detectron2's inference sampler repeats no image.

    Args:
        dataset_name: its metadata give ``thing_classes``, and ``json_file`` with ``thing_dataset_id_to_contiguous_id``
            (categories in the order of their ids where absent).
        tasks: of "bbox" and "segm".
        distributed: score the predictions of all processes; otherwise each scores its own.
        max_dets: detections counted per image and class, by score.
        backend: "hotcoco", "pycocotools", or "auto": the former where it is installed. The numbers are the same.

    Raises:
        UserError: an unknown task or backend, a backend that is not installed, ground truth that cannot be read.
    """

    def __init__(
        self,
        dataset_name: str,
        *,
        tasks: Sequence[str] = ("bbox", "segm"),
        distributed: bool = True,
        max_dets: int = 100,
        backend: str = "auto",
    ) -> None:
        unknown = [task for task in tasks if task not in _TASKS]
        if unknown or not tasks:
            raise UserError(f"tasks {tuple(tasks)}: takes some of {tuple(_TASKS)}")
        if max_dets < 1:
            raise UserError(f"max_dets {max_dets}: takes a positive number")
        self._tasks = tuple(tasks)
        self._max_dets = max_dets
        self._backend = _choose_backend(backend)
        self._distributed = distributed
        self._records = RecordLookup(dataset_name)
        scores_here = not distributed or comm.is_main_process()
        self._truth = instance_truth(dataset_name, with_masks="segm" in tasks) if scores_here else None
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._predictions: list[_Prediction] = []

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Add a batch of images.

        Raises:
            UserError: instances, their boxes or their masks are missing, a score or box is not finite, or the masks
                have another size than the image.
        """
        for image, output in zip(inputs, outputs, strict=True):
            name = image.get("file_name")
            if "instances" not in output:
                raise UserError(f"{name}: the model gives {sorted(output)}, takes instances")
            instances = output["instances"].to("cpu")
            image_id = self._records.value(image, "image_id")
            if not len(instances):
                continue
            self._check(instances, image)
            shapes: dict[str, list[Any]] = {}
            if "bbox" in self._tasks:
                boxes = instances.pred_boxes.tensor
                shapes["bbox"] = BoxMode.convert(boxes, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS).tolist()
            if "segm" in self._tasks:
                shapes["segm"] = _encode(instances.pred_masks, self._backend)
            scores, classes = instances.scores.double().numpy(), instances.pred_classes.numpy()
            self._predictions.append(_Prediction(image_id, scores, classes, shapes))

    def evaluate(self) -> dict[str, dict[str, float]]:
        """``{task: {AP, AP50, AP75, APs, APm, APl, AP-<name>}}``; empty but on the main process.

        nan stands for what cannot be computed: a class or an area without ground truth, or no prediction at all.

        Raises:
            UserError: predictions for an image or of a class that the ground truth does not know.
        """
        parts = comm.gather(self._predictions) if self._distributed else [self._predictions]
        if self._truth is None:
            return {}
        if "annotations" not in self._truth.coco:
            _log.warning("the ground truth has no annotations: no AP is computed")
            return {}
        predictions = list(chain.from_iterable(parts))
        if not predictions:
            _log.warning("the model predicts no instance in any image: AP is nan")
        return {task: self._score(predictions, task, self._truth) for task in self._tasks}

    def _check(self, instances: Any, image: Mapping[str, Any]) -> None:
        name = image.get("file_name")
        for task in self._tasks:
            if not instances.has(_TASKS[task][1]):
                raise UserError(f"{name}: instances without {_TASKS[task][1]}, which the task '{task}' needs")
        numbers = [instances.scores] + ([instances.pred_boxes.tensor] if "bbox" in self._tasks else [])
        if not all(x.isfinite().all() for x in numbers):
            raise UserError(f"{name}: scores or boxes are NaN; the model has diverged, take an earlier checkpoint")
        size = (image.get("height"), image.get("width"))
        if "segm" in self._tasks and None not in size and tuple(instances.pred_masks.shape[1:]) != size:
            raise UserError(f"{name}: masks of {tuple(instances.pred_masks.shape[1:])} for an image of {size}")

    def _score(self, predictions: list[_Prediction], task: str, truth: InstanceTruth) -> dict[str, float]:
        precision = np.full((10, 101, len(truth.names), 4, 1), -1.0)
        if predictions:
            precision, _ = accumulate(
                truth.coco,
                _results(predictions, task, truth),
                task=task,
                category_ids=truth.category_ids,
                max_dets=(self._max_dets,),
                backend=self._backend,
            )
        whole, small, medium, large = np.moveaxis(precision[..., -1], -1, 0)  # (10 IoU, 101 recall, K) each
        cuts = {"AP": whole, "AP50": whole[0], "AP75": whole[5], "APs": small, "APm": medium, "APl": large}
        if len(truth.names) > 1:
            cuts.update({f"AP-{name}": whole[:, :, i] for i, name in enumerate(truth.names)})
        return {key: _mean(cut) for key, cut in cuts.items()}


def accumulate(
    coco: dict[str, Any],
    results: list[dict[str, Any]],
    *,
    task: str,
    category_ids: Sequence[int],
    max_dets: Sequence[int],
    backend: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall of at least one detection by COCO's protocol.

    Args:
        coco: ground truth, COCO's dictionary.
        results: detections in COCO's result format, with ``bbox`` or ``segmentation`` (RLE), not both.
        task: "bbox" or "segm".
        category_ids: the K classes that count.
        max_dets: M numbers of detections per image and class.
        backend: "hotcoco" or "pycocotools".

    Returns:
        precision (10 IoU thresholds, 101 recalls, K, 4 areas, M) and recall (10, K, 4, M), classes in the order of
        ``category_ids``; -1 where there is no ground truth.
    """
    coco_class, evaluation_class = _engine(backend)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco_class()
        truth.dataset = coco
        truth.createIndex()
        evaluation = evaluation_class(truth, truth.loadRes(results), task)
        evaluation.params.catIds = sorted(category_ids)
        evaluation.params.maxDets = list(max_dets)
        evaluation.evaluate()
        evaluation.accumulate()
    given = np.argsort(np.argsort(category_ids))
    return evaluation.eval["precision"][:, :, given], evaluation.eval["recall"][:, given]


def _choose_backend(backend: str) -> str:
    if backend not in _BACKENDS:
        raise UserError(f"backend '{backend}': takes one of {', '.join(_BACKENDS)}")
    if find_spec("hotcoco") is not None:
        return "hotcoco" if backend == "auto" else backend
    if backend == "hotcoco":
        raise UserError("backend 'hotcoco' is not installed: pip install hotcoco, or take 'pycocotools'")
    if backend == "auto":
        _log.warning("hotcoco is not installed: AP comes from pycocotools, which is slower")
    return "pycocotools"


def _engine(backend: str) -> tuple[Any, Any]:
    """The classes COCO and COCOeval, which have the same interface in both packages."""
    if backend == "hotcoco":
        import hotcoco

        return hotcoco.COCO, hotcoco.COCOeval
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    return COCO, COCOeval


def _encode(masks: Tensor, backend: str) -> list[dict[str, Any]]:
    """RLEs of masks (n, H, W) bool, in one call; pycocotools wants columns first in memory, hotcoco takes any order."""
    if backend == "hotcoco":
        from hotcoco import mask

        return mask.encode(masks.bool().numpy().transpose(1, 2, 0))
    columns = masks.bool().transpose(1, 2).contiguous().numpy().view(np.uint8)
    return rle.encode(columns.transpose(2, 1, 0))


def _results(predictions: list[_Prediction], task: str, truth: InstanceTruth) -> list[dict[str, Any]]:
    """COCO's result format. With boxes left out, the engines take a mask's size class from its own area."""
    unknown = [p.image_id for p in predictions if p.image_id not in truth.image_ids]
    if unknown:
        raise UserError(f"image_id {unknown[0]!r} was predicted, but the ground truth has no such image")
    classes = np.concatenate([p.classes for p in predictions])
    if classes.min() < 0 or classes.max() >= len(truth.category_ids):
        raise UserError(
            f"the model predicts classes {classes.min()}..{classes.max()}, the data set has {len(truth.category_ids)}"
        )
    field = _TASKS[task][0]
    return [
        {"image_id": truth.image_ids[p.image_id], "category_id": truth.category_ids[c], "score": score, field: shape}
        for p in predictions
        for c, score, shape in zip(p.classes.tolist(), p.scores.tolist(), p.shapes[task], strict=True)
    ]


def _mean(precision: np.ndarray) -> float:
    """Mean in percent of what could be computed."""
    valid = precision[precision > -1]
    return 100 * float(valid.mean()) if valid.size else float("nan")
