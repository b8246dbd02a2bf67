"""Scores of predicted instances: COCO's AP, boundary AP, VOC's AP and TIDE, from run lengths and boxes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as rle

from seg_ext.data.instances import compressed_rle
from seg_ext.errors import UserError
from seg_ext.evaluation.coco_engine import AREAS, accumulate, match_detections
from seg_ext.evaluation.ground_truth import InstanceTruth
from seg_ext.metrics.voc_ap import VocImage, box_iou, voc_ap, voc_matches

_KEYPOINT_DETS = 20  # COCO's limit per image and class, whatever that of boxes and masks
_VOL = np.arange(1, 10) / 10  # thresholds of AP^r_vol
Scores = dict[str, float]
OnMatches = Callable[[str, Any, InstanceTruth], None]


class Prediction(NamedTuple):
    """The n instances of an image, in little memory."""

    image_id: Any  # of the data set's records
    size: tuple[int, int]  # of the masks, height and width
    scores: np.ndarray  # (n,) float64
    classes: np.ndarray  # (n,)
    boxes: np.ndarray | None  # (n, 4) x, y, width, height
    counts: list[bytes] | None  # n masks, compressed run lengths
    keypoints: np.ndarray | None  # (n, 3 * points) x and y as pixel indices, and a score

    def rles(self) -> list[dict[str, Any]]:
        """The masks as COCO's RLEs."""
        return [{"size": self.size, "counts": counts} for counts in self.counts or ()]


def check_known(predictions: Sequence[Prediction], truth: InstanceTruth) -> None:
    """Raise UserError where an image or a class is predicted that the ground truth does not know."""
    for found in predictions:
        if found.image_id not in truth.image_ids:
            raise UserError(f"image_id {found.image_id!r} was predicted, but the ground truth has no such image")
        if found.classes.min() < 0 or found.classes.max() >= len(truth.category_ids):
            raise UserError(
                f"image_id {found.image_id!r}: the model predicts classes {found.classes.min()}..{found.classes.max()},"
                f" the data set has {len(truth.category_ids)}"
            )


def coco_scores(
    predictions: Sequence[Prediction],
    truth: InstanceTruth,
    task: str,
    *,
    max_dets: int,
    backend: str,
    sigmas: Sequence[float] = (),
    curves: dict[str, np.ndarray] | None = None,
    on_matches: OnMatches | None = None,
) -> Scores:
    """detectron2's keys: AP, AP50, AP75, by area, and by class where there are several, in percent.

    Args:
        predictions: of images and classes that :func:`check_known` accepts.
        truth: with the masks or keypoints that the task needs.
        task: "bbox", "segm", "keypoints", or "boundary": masks by min(mask IoU, boundary IoU).
        max_dets: detections per image and class; 20 for keypoints, as COCO has it.
        backend: see :func:`seg_ext.evaluation.coco_engine.match_detections`.
        sigmas: likewise.
        curves: takes up the task's precision (10 IoU thresholds, 101 recalls, K), -1 without ground truth.
        on_matches: called with the task, what :func:`match_detections` gives, and the ground truth.
    """
    if not predictions:
        precision = np.full((10, 101, len(truth.names), AREAS[task], 1), -1.0)
    else:
        evaluation = match_detections(
            truth.coco,
            _results(predictions, task, truth),
            task=task,
            category_ids=truth.category_ids,
            max_dets=(_KEYPOINT_DETS if task == "keypoints" else max_dets,),
            backend=backend,
            sigmas=sigmas,
        )
        if on_matches:
            on_matches(task, evaluation, truth)
        precision, _ = accumulate(evaluation, truth.category_ids)
    whole, *by_area = np.moveaxis(precision[..., -1], -1, 0)  # (10 IoU, 101 recall, K) each
    if curves is not None:
        curves[task] = whole
    cuts = {"AP": whole, "AP50": whole[0], "AP75": whole[5]}
    cuts |= dict(zip(("APs", "APm", "APl")[-len(by_area) :], by_area, strict=True))
    if len(truth.names) > 1:
        cuts |= {f"AP-{name}": whole[:, :, i] for i, name in enumerate(truth.names)}
    return {key: _mean(cut) for key, cut in cuts.items()}


def tide_scores(predictions: Sequence[Prediction], truth: InstanceTruth, task: str, *, max_dets: int) -> Scores:
    """AP50 and what it would gain, in points, were errors of a kind mended (Bolya et al., 2020); their numbers as n-.

    Cls: wrong class. Loc: IoU in 0.1..0.5. Both. Dupe: a second time. Bkg: nothing there. Miss: not found. FP and FN:
    all of the ones and all of the others.

    Args:
        predictions: likewise, as the others, for :func:`coco_scores`.
    """
    kinds = ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss", "FP", "FN")
    if not predictions:
        return dict.fromkeys(("AP50", *kinds), float("nan"))
    evaluation = match_detections(
        truth.coco,
        _results(predictions, task, truth),
        task=task,
        category_ids=truth.category_ids,
        max_dets=(max_dets,),
        backend="hotcoco",
    )
    found = evaluation.tide_errors(pos_thr=0.5, bg_thr=0.1)
    scores = {"AP50": 100 * found["ap_base"], **{kind: 100 * found["delta_ap"][kind] for kind in kinds}}
    return {key: float(x) for key, x in scores.items()} | {f"n-{k}": float(n) for k, n in found["counts"].items()}


def voc_scores(predictions: Sequence[Prediction], truth: InstanceTruth, task: str) -> Scores:
    """AP by VOC's rules, in percent: means over the classes that have an object, and per class at IoU 0.5.

    Of boxes: AP50_07 with 11 points and AP50_12, the area under the curve. Of masks (AP^r): AP50 and AP70 by area,
    APvol their mean over IoU 0.1, 0.2, ..., 0.9, and with 11 points AP50_07 and AP70_07, which MNC and FCIS publish.
    Crowd regions are difficult objects.
    """
    matches, count = voc_matches(_voc_images(predictions, truth, task)), len(truth.names)
    area = {t: voc_ap(matches, count, threshold=t) for t in {0.5, 0.7, *_VOL.tolist()}}
    points = {t: voc_ap(matches, count, threshold=t, points=11) for t in (0.5, 0.7)}
    if task == "bbox":
        cuts = {"AP50_07": points[0.5], "AP50_12": area[0.5]}
    else:
        cuts = {"AP50": area[0.5], "AP70": area[0.7], "APvol": np.mean([area[t] for t in _VOL.tolist()], axis=0)}
        cuts |= {"AP50_07": points[0.5], "AP70_07": points[0.7]}
    scores = {key: mean_of_seen(cut) for key, cut in cuts.items()}
    return scores | {f"AP50-{name}": 100 * ap for name, ap in zip(truth.names, area[0.5].tolist(), strict=True)}


def mean_of_seen(values: np.ndarray) -> float:
    """Mean in percent of what is not nan; nan where nothing is left."""
    seen = values[~np.isnan(values)]
    return 100 * float(seen.mean()) if seen.size else float("nan")


def _voc_images(predictions: Sequence[Prediction], truth: InstanceTruth, task: str) -> Iterator[VocImage]:
    class_of = {category: index for index, category in enumerate(truth.category_ids)}
    objects, found = defaultdict(list), defaultdict(list)
    for annotation in truth.coco["annotations"]:
        if annotation["category_id"] in class_of:
            objects[annotation["image_id"]].append(annotation)
    for prediction in predictions:
        found[truth.image_ids[prediction.image_id]].append(prediction)
    for image in truth.coco["images"]:
        here = objects[image["id"]]
        classes = np.array([class_of[annotation["category_id"]] for annotation in here], int)
        difficult = np.array([bool(annotation.get("iscrowd")) for annotation in here], bool)
        parts = [(x.scores, x.classes, _iou(x, here, image, task)) for x in found[image["id"]]]
        yield classes, difficult, parts


def _iou(guess: Prediction, objects: Sequence[dict[str, Any]], image: Mapping[str, Any], task: str) -> np.ndarray:
    """(n, objects)."""
    if not objects:
        return np.zeros((len(guess.scores), 0))
    if task == "segm":
        size = (image["height"], image["width"])
        shapes = [compressed_rle(annotation["segmentation"], size) for annotation in objects]
        return np.asarray(rle.iou(guess.rles(), shapes, [0] * len(shapes)))
    a, b = np.asarray(guess.boxes, np.float64), np.array([annotation["bbox"] for annotation in objects], np.float64)
    return box_iou(*(np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1) for boxes in (a, b)))


def _results(predictions: Sequence[Prediction], task: str, truth: InstanceTruth) -> list[dict[str, Any]]:
    """COCO's result format. Beside masks there are no boxes, so that the engines count a mask's own area."""
    results = []
    for found in predictions:
        columns: dict[str, Any] = {"score": found.scores.tolist()}
        if task in ("segm", "boundary"):
            columns["segmentation"] = found.rles()
        elif found.boxes is not None:
            columns["bbox"] = found.boxes.tolist()
        if task == "keypoints" and found.keypoints is not None:
            columns["keypoints"] = found.keypoints.tolist()
        columns["image_id"] = [truth.image_ids[found.image_id]] * len(found.scores)
        columns["category_id"] = [truth.category_ids[index] for index in found.classes.tolist()]
        names = tuple(columns)
        results += [dict(zip(names, row)) for row in zip(*columns.values(), strict=True)]  # noqa: B905, a hot loop
    return results


def _mean(precision: np.ndarray) -> float:
    """Mean in percent of what could be computed."""
    valid = precision[precision > -1]
    return 100 * float(valid.mean()) if valid.size else float("nan")
