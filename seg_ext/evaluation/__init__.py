"""Evaluators: detectron2's interface around the pure metrics; they compute, stream, and write nothing.

Each is exact over several processes as long as the sampler gives every image to one of them, as detectron2's does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from math import isnan
from textwrap import fill
from typing import Any

from detectron2.evaluation import DatasetEvaluator
from tabulate import tabulate

from seg_ext.evaluation.instance import InstanceEvaluator
from seg_ext.evaluation.panoptic import PanopticEvaluator
from seg_ext.evaluation.semantic import SemanticEvaluator
from seg_ext.evaluation.voc import VocBoxEvaluator

EVALUATORS: dict[str, tuple[type[DatasetEvaluator], ...]] = {  # by the data set's evaluator_type
    "sem_seg": (SemanticEvaluator,),
    "cityscapes_sem_seg": (SemanticEvaluator,),
    "coco": (InstanceEvaluator,),
    "cityscapes_instance": (InstanceEvaluator,),  # COCO's AP, not Cityscapes' own
    "pascal_voc": (VocBoxEvaluator,),
    "coco_panoptic_seg": (SemanticEvaluator, InstanceEvaluator, PanopticEvaluator),
    "ade20k_panoptic_seg": (SemanticEvaluator, InstanceEvaluator, PanopticEvaluator),
    "cityscapes_panoptic_seg": (SemanticEvaluator, PanopticEvaluator),  # its records hold no instances
    "mapillary_vistas_panoptic_seg": (SemanticEvaluator, PanopticEvaluator),
}

HEADLINES = (  # task, key, column
    ("sem_seg", "mIoU", "mIoU"),
    ("sem_seg", "pACC", "pix acc"),
    ("bbox", "AP", "box AP"),
    ("bbox", "AP50", "AP50"),
    ("segm", "AP", "mask AP"),
    ("segm", "AP50", "AP50"),
    ("panoptic_seg", "PQ", "PQ"),
    ("panoptic_seg", "SQ", "SQ"),
    ("panoptic_seg", "RQ", "RQ"),
    ("keypoints", "AP", "keypoint AP"),
    ("boundary", "AP", "boundary AP"),
    ("segm_voc", "AP50", "AP^r 50"),
    ("segm_voc", "APvol", "AP^r vol"),
    ("sem_seg", "mDice", "Dice"),
    ("sem_seg", "mBoundaryIoU", "B-IoU"),
    ("sem_seg", "BF", "BF"),
    ("sem_seg", "TrimapIoU@5", "trimap@5"),
    ("sem_seg", "ECE", "ECE"),
    ("sem_seg", "AURC", "AURC"),
)
_MOST_COLUMNS = 9  # in 80 characters
_MOST_CLASSES = 20
_WIDEST_NAME = 28
_AS_GIVEN: dict[str, Any] = {"disable_numparse": True}  # two digits stay two digits


def results_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The headline numbers that ``results`` hold, in percent, and the IoU of each class where they are 20 at most.

    Classes that the ground truth does not have are named: no mean counts them.

    Args:
        results: task -> metric -> value, as the evaluators give them.

    Returns:
        Lines of at most 80 columns; "-" stands for nan.
    """
    found = [(column, results[task][key]) for task, key, column in HEADLINES if key in results.get(task, {})]
    if not found:
        return "no scores"
    rows = [found[i : i + _MOST_COLUMNS] for i in range(0, len(found), _MOST_COLUMNS)]
    table = "\n\n".join(_headlines(row) for row in rows)
    scores = results.get("sem_seg", {})
    names = [key.removeprefix("IoU-") for key in scores if key.startswith("IoU-")]
    blocks = [table, _classes(names, scores)] if 0 < len(names) <= _MOST_CLASSES else [table]
    absent = [name for name in names if isnan(scores[f"IoU-{name}"])]
    if absent:
        text = f"{len(absent)} of {len(names)} classes are not in the ground truth, and in no mean: {', '.join(absent)}"
        blocks.append(fill(text, 80))
    return "\n\n".join(blocks)


def _classes(names: Sequence[str], scores: Mapping[str, float]) -> str:
    """IoU of each class, and Boundary IoU where there is one, in two columns."""
    columns = {"IoU": "IoU", "BoundaryIoU": "B-IoU"} if f"BoundaryIoU-{names[0]}" in scores else {"IoU": "IoU"}
    cells = [
        (name[: _WIDEST_NAME - 8 * (len(columns) - 1)], *(_percent(scores[f"{key}-{name}"]) for key in columns))
        for name in names
    ]
    half = (len(cells) + 1) // 2
    rows = [[*left, *right] for left, right in zip_longest(cells[:half], cells[half:], fillvalue=[""] * len(cells[0]))]
    align = ("left", *["right"] * len(columns)) * 2
    return tabulate(rows, ["class", *columns.values()] * 2, colalign=align, **_AS_GIVEN)


def _headlines(row: Sequence[tuple[str, float]]) -> str:
    columns, values = zip(*row, strict=True)
    return tabulate([[_percent(value) for value in values]], columns, stralign="right", **_AS_GIVEN)


def _percent(value: float) -> str:
    return "-" if isnan(value) else f"{value:.2f}"
