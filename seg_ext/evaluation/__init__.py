"""Evaluators: detectron2's interface around the pure metrics; they compute, stream, and write nothing.

Each is exact over several processes as long as the sampler gives every image to one of them, as detectron2's does.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest
from math import isnan
from typing import Any

from detectron2.evaluation import DatasetEvaluator
from tabulate import tabulate

from seg_ext.evaluation.instance import InstanceEvaluator
from seg_ext.evaluation.panoptic import PanopticEvaluator
from seg_ext.evaluation.semantic import SemanticEvaluator

EVALUATORS: dict[str, tuple[type[DatasetEvaluator], ...]] = {  # by the data set's evaluator_type
    "sem_seg": (SemanticEvaluator,),
    "cityscapes_sem_seg": (SemanticEvaluator,),
    "coco": (InstanceEvaluator,),
    "coco_panoptic_seg": (SemanticEvaluator, InstanceEvaluator, PanopticEvaluator),
}

_HEADLINES = (  # task, key, column
    ("sem_seg", "mIoU", "mIoU"),
    ("sem_seg", "pACC", "pix acc"),
    ("bbox", "AP", "box AP"),
    ("bbox", "AP50", "AP50"),
    ("segm", "AP", "mask AP"),
    ("segm", "AP50", "AP50"),
    ("panoptic_seg", "PQ", "PQ"),
    ("panoptic_seg", "SQ", "SQ"),
    ("panoptic_seg", "RQ", "RQ"),
)
_MOST_CLASSES = 20
_WIDEST_NAME = 28
_AS_GIVEN: dict[str, Any] = {"disable_numparse": True}  # two digits stay two digits


def results_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The headline numbers that ``results`` hold, in percent, and the IoU of each class where they are 20 at most.

    Args:
        results: task -> metric -> value, as the evaluators give them.

    Returns:
        Lines of at most 80 columns; "-" stands for nan.
    """
    found = [(column, results[task][key]) for task, key, column in _HEADLINES if key in results.get(task, {})]
    if not found:
        return "no scores"
    columns, values = zip(*found, strict=True)
    table = tabulate([[_percent(value) for value in values]], columns, stralign="right", **_AS_GIVEN)
    ious = {k.removeprefix("IoU-"): v for k, v in results.get("sem_seg", {}).items() if k.startswith("IoU-")}
    if not 0 < len(ious) <= _MOST_CLASSES:
        return table
    cells = [(name[:_WIDEST_NAME], _percent(iou)) for name, iou in ious.items()]
    half = (len(cells) + 1) // 2
    rows = [[*left, *right] for left, right in zip_longest(cells[:half], cells[half:], fillvalue=("", ""))]
    block = tabulate(rows, ["class", "IoU"] * 2, colalign=("left", "right") * 2, **_AS_GIVEN)
    return f"{table}\n\n{block}"


def _percent(value: float) -> str:
    return "-" if isnan(value) else f"{value:.2f}"
