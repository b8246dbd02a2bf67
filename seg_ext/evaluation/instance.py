"""Instance evaluator: average precision of boxes, masks and keypoints, detectron2's result keys."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from itertools import chain
from typing import Any

import numpy as np
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import BoxMode
from detectron2.utils import comm

from seg_ext.errors import UserError
from seg_ext.evaluation.coco_engine import choose_backend, encode_masks
from seg_ext.evaluation.ground_truth import InstanceTruth, RecordLookup, instance_truth
from seg_ext.evaluation.instance_scores import OnMatches, Prediction, check_known, coco_scores, tide_scores, voc_scores

TASKS = {"bbox": "pred_boxes", "segm": "pred_masks", "keypoints": "pred_keypoints"}  # fields of Instances
METRICS = ("coco", "boundary", "voc", "tide")
EXACT_BOXES = "xywh"  # field of Instances: (n, 4) float64 as a file gives them, where pred_boxes has 32 bits
_COCO_POINTS = 17
_log = logging.getLogger(__name__)


class InstanceEvaluator(DatasetEvaluator):
    """AP, AP50, AP75, AP by area, and AP per class where there are several, in percent; and more by ``metrics``.

    Ground truth is the metadata's ``json_file``, or, where there is none, the annotations of the data set's records.
    Predictions are kept as boxes and run lengths, the one state that grows with the number of images. An image that
    was never processed counts as one without predictions; detectron2's inference sampler repeats no image.

    Attributes:
        precision: task -> COCO's precision (10 IoU thresholds, 101 recalls, K), -1 where there is no ground truth; of
            "coco", set by :meth:`evaluate` on the main process.
        on_matches: called there, where it is set, with each task of "coco" and "boundary", the engine's COCOeval after
            the matching, and the ground truth.

    Args:
        dataset_name: its metadata give ``thing_classes``, and ``json_file`` with ``thing_dataset_id_to_contiguous_id``
            (categories in the order of their ids where absent).
        tasks: of "bbox", "segm" and "keypoints".
        metrics: of "coco"; "boundary", AP on min(mask IoU, boundary IoU) (Cheng et al., 2021); "voc", AP of boxes and
            masks by VOC's rules; "tide", the error breakdown (Bolya et al., 2020), which needs hotcoco.
        distributed: score the predictions of all processes; otherwise each scores its own.
        max_dets: detections counted per image and class, by score; COCO's 20 for keypoints and all for "voc".
        backend: "hotcoco", "pycocotools", or "auto": the former where it is installed. The numbers are the same.
        kpt_oks_sigmas: of the keypoints; empty for COCO's 17.

    Raises:
        UserError: an unknown task, metric or backend, one that needs a task or package that is not there, ground truth
            that cannot be read.
    """

    def __init__(
        self,
        dataset_name: str,
        *,
        tasks: Sequence[str] = ("bbox", "segm"),
        metrics: Sequence[str] = ("coco",),
        distributed: bool = True,
        max_dets: int = 100,
        backend: str = "auto",
        kpt_oks_sigmas: Sequence[float] = (),
    ) -> None:
        _check_choices(tasks, metrics, max_dets)
        self._tasks, self._metrics = tuple(tasks), tuple(metrics)
        self._max_dets = max_dets
        self._backend = choose_backend(backend)
        self._sigmas = tuple(kpt_oks_sigmas)
        self._distributed = distributed
        self._records = RecordLookup(dataset_name)
        self.on_matches: OnMatches | None = None
        scores_here = not distributed or comm.is_main_process()
        with_keypoints = "keypoints" in tasks
        self._truth = (
            instance_truth(dataset_name, with_masks="segm" in tasks, with_keypoints=with_keypoints)
            if scores_here
            else None
        )
        if with_keypoints and self._truth is not None:
            self._check_points(dataset_name, self._truth)
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._predictions: list[Prediction] = []
        self.precision: dict[str, np.ndarray] = {}

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Add a batch of images.

        Raises:
            UserError: instances, their boxes, masks or keypoints are missing, a score, box or keypoint is not finite,
                or the masks have another size than the image.
        """
        for image, output in zip(inputs, outputs, strict=True):
            name = image.get("file_name")
            if "instances" not in output:
                raise UserError(f"{name}: the model gives {sorted(output)}, takes instances")
            instances = output["instances"].to("cpu")
            image_id = self._records.value(image, "image_id")
            if len(instances):
                self._check(instances, image)
                self._predictions.append(self._prediction(instances, image_id))

    def evaluate(self) -> dict[str, dict[str, float]]:
        """``{task: {AP, AP50, AP75, APs, APm, APl, AP-<name>}}``; empty but on the main process.

        Keypoints have no APs. Other metrics come under ``boundary``, ``<task>_voc`` and ``<task>_tide``. nan stands for
        what cannot be computed: a class or an area without ground truth, or no prediction at all.

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
        check_known(predictions, self._truth)
        return self._score(predictions, self._truth)

    def _score(self, predictions: list[Prediction], truth: InstanceTruth) -> dict[str, dict[str, float]]:
        common: dict[str, Any] = {"max_dets": self._max_dets, "backend": self._backend, "on_matches": self.on_matches}
        regions = [task for task in self._tasks if task != "keypoints"]
        scores = {}
        if "coco" in self._metrics:
            for task in self._tasks:
                sigmas = self._sigmas if task == "keypoints" else ()
                scores[task] = coco_scores(predictions, truth, task, sigmas=sigmas, curves=self.precision, **common)
        if "boundary" in self._metrics:
            scores["boundary"] = coco_scores(predictions, truth, "boundary", **common)
        if "voc" in self._metrics:
            scores |= {f"{task}_voc": voc_scores(predictions, truth, task) for task in regions}
        if "tide" in self._metrics:
            tide = {t: tide_scores(predictions, truth, t, max_dets=self._max_dets) for t in regions}
            scores |= {f"{task}_tide": errors for task, errors in tide.items()}
        return scores

    def _prediction(self, instances: Any, image_id: Any) -> Prediction:
        boxes = counts = keypoints = None
        size = instances.image_size
        if instances.has(EXACT_BOXES):
            boxes = instances.get(EXACT_BOXES).numpy()
        elif instances.has("pred_boxes"):
            tensor = instances.pred_boxes.tensor
            boxes = BoxMode.convert(tensor, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS).numpy()
        if "segm" in self._tasks:
            size = instances.pred_masks.shape[1:]
            counts = [shape["counts"] for shape in encode_masks(instances.pred_masks, self._backend)]
        if "keypoints" in self._tasks:
            points = instances.pred_keypoints.clone()
            points[..., :2] -= 0.5  # from positions to pixel indices, as in the annotations
            keypoints = points.flatten(1).numpy()
        scores, classes = instances.scores.double().numpy().copy(), instances.pred_classes.numpy().copy()
        return Prediction(image_id, tuple(size), scores, classes, boxes, counts, keypoints)

    def _check(self, instances: Any, image: Mapping[str, Any]) -> None:
        name = image.get("file_name")
        for task in self._tasks:
            if not instances.has(TASKS[task]):
                raise UserError(f"{name}: instances without {TASKS[task]}, which the task '{task}' needs")
        numbers = [instances.scores]
        numbers += [instances.pred_boxes.tensor] if "bbox" in self._tasks else []
        numbers += [instances.pred_keypoints] if "keypoints" in self._tasks else []
        if not all(x.isfinite().all() for x in numbers):
            raise UserError(
                f"{name}: scores, boxes or keypoints are NaN; the model has diverged, take an earlier checkpoint"
            )
        size = (image.get("height"), image.get("width"))
        if "segm" in self._tasks and None not in size and tuple(instances.pred_masks.shape[1:]) != size:
            raise UserError(f"{name}: masks of {tuple(instances.pred_masks.shape[1:])} for an image of {size}")
        if "keypoints" in self._tasks and instances.pred_keypoints.shape[1] != self._points:
            given = instances.pred_keypoints.shape[1]
            raise UserError(f"{name}: {given} keypoints an instance, the data set has {self._points}")

    @property
    def _points(self) -> int:
        return len(self._sigmas) or _COCO_POINTS

    def _check_points(self, dataset_name: str, truth: InstanceTruth) -> None:
        for annotation in truth.coco.get("annotations", []):
            if len(annotation["keypoints"]) != 3 * self._points:
                raise UserError(
                    f"data set '{dataset_name}': annotation {annotation['id']} has {len(annotation['keypoints']) / 3:g}"
                    f" keypoints for {self._points} OKS sigmas; takes one each (TEST.KEYPOINT_OKS_SIGMAS)"
                )


def _check_choices(tasks: Sequence[str], metrics: Sequence[str], max_dets: int) -> None:
    for name, given, known in (("tasks", tasks, TASKS), ("metrics", metrics, METRICS)):
        if not given or any(choice not in known for choice in given):
            raise UserError(f"{name} {tuple(given)}: takes some of {tuple(known)}")
    if max_dets < 1:
        raise UserError(f"max_dets {max_dets}: takes a positive number")
    if "boundary" in metrics and "segm" not in tasks:
        raise UserError("metric 'boundary' compares masks, which the model does not give; leave it out")
    if "tide" in metrics and find_spec("hotcoco") is None:
        raise UserError("metric 'tide' comes from hotcoco, which is not installed: pip install hotcoco")
