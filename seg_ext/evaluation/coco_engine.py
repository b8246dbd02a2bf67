"""COCO's protocol by hotcoco or pycocotools: precision and recall, boundary AP, and run lengths of masks."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from seg_ext.errors import UserError
from seg_ext.metrics.boundary_masks import boundary_band, boundary_width

AREAS = {"bbox": 4, "segm": 4, "boundary": 4, "keypoints": 3}  # all, small (but for keypoints), medium, large
_BACKENDS = ("auto", "hotcoco", "pycocotools")
_BAND_BYTES = 2**25  # of masks whose boundaries are found at once
_log = logging.getLogger(__name__)


def choose_backend(backend: str) -> str:
    """ "hotcoco" or "pycocotools"; "auto" is the former where it is installed, else the latter with a warning.

    Raises:
        UserError: an unknown name, or a package that is not installed.
    """
    if backend not in _BACKENDS:
        raise UserError(f"backend '{backend}': takes one of {', '.join(_BACKENDS)}")
    if find_spec("hotcoco") is not None:
        return "hotcoco" if backend == "auto" else backend
    if backend == "hotcoco":
        raise UserError("backend 'hotcoco' is not installed: pip install hotcoco, or take 'pycocotools'")
    if backend == "auto":
        _log.warning("hotcoco is not installed: AP comes from pycocotools, which is slower")
    return "pycocotools"


def encode_masks(masks: Tensor, backend: str) -> list[dict[str, Any]]:
    """Masks (n, H, W) as COCO's compressed RLEs.

    In one call; pycocotools wants columns first in memory, hotcoco takes any order.
    """
    if backend == "hotcoco":
        from hotcoco import mask

        return mask.encode(masks.bool().numpy().transpose(1, 2, 0))
    columns = masks.bool().transpose(1, 2).contiguous().numpy().view(np.uint8)
    return rle.encode(columns.transpose(2, 1, 0))


def match_detections(
    coco: Mapping[str, Any],
    results: list[dict[str, Any]],
    *,
    task: str,
    category_ids: Sequence[int],
    max_dets: Sequence[int],
    backend: str,
    sigmas: Sequence[float] = (),
) -> Any:
    """Match at least one detection with the ground truth by COCO's protocol; gives the engine's COCOeval.

    Args:
        coco: ground truth, COCO's dictionary.
        results: detections in COCO's result format, which the engine may write into; what the task does not compare
            may be left out.
        task: "bbox", "segm", "keypoints", or "boundary", which pycocotools matches whatever the backend.
        category_ids: the K classes that count.
        max_dets: M numbers of detections per image and class.
        backend: "hotcoco" or "pycocotools".
        sigmas: of the keypoints; empty for COCO's 17.
    """
    coco_class, evaluation_class = _engine("pycocotools" if task == "boundary" else backend)
    if coco_class is COCO:  # it writes into annotations
        coco = {**coco, "annotations": [{"iscrowd": 0, **annotation} for annotation in coco["annotations"]]}
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco_class()
        truth.dataset = coco
        truth.createIndex()
        found = truth.loadRes(results)
        if task == "boundary":
            evaluation = _BoundaryEval(truth, found, "segm")
        else:
            evaluation = evaluation_class(truth, found, task)
        if len(sigmas):
            evaluation.params.kpt_oks_sigmas = np.array(sigmas)
        evaluation.params.catIds = sorted(category_ids)
        evaluation.params.maxDets = list(max_dets)
        evaluation.evaluate()
    return evaluation


def accumulate(evaluation: Any, category_ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall of what :func:`match_detections` gives.

    Args:
        evaluation: of these K classes.
        category_ids: in the order that is wanted.

    Returns:
        precision (10 IoU thresholds, 101 recalls, K, A areas, M) and recall (10, K, A, M); -1 where there is no ground
        truth. A is 4, but 3 for keypoints, without the small ones.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.accumulate()
    place = np.argsort(np.argsort(category_ids))
    return evaluation.eval["precision"][:, :, place], evaluation.eval["recall"][:, place]


def _engine(backend: str) -> tuple[Any, Any]:
    """The classes COCO and COCOeval, which have the same interface in both packages."""
    if backend == "hotcoco":
        import hotcoco

        return hotcoco.COCO, hotcoco.COCOeval
    return COCO, COCOeval


class _BoundaryEval(COCOeval):
    """COCO's protocol on min(mask IoU, boundary IoU); a crowd region is compared by its mask alone.

    A pair below the least threshold by its masks cannot match, so it needs no boundaries. Those of one image and class
    are held at a time.
    """

    def computeIoU(self, imgId: Any, catId: Any) -> Any:
        """(D, G) for an image and a class, detections by falling score."""
        ious = super().computeIoU(imgId, catId)
        truth, found = self._gts[imgId, catId], self._dts[imgId, catId]
        if not truth or not found:
            return ious
        order = np.argsort([-d["score"] for d in found], kind="mergesort")
        crowd = np.array([bool(g["iscrowd"]) for g in truth])
        near = (ious >= self.params.iouThrs.min()) & ~crowd
        rows, columns = np.flatnonzero(near.any(axis=1)), np.flatnonzero(near.any(axis=0))
        if rows.size:
            ours = _boundaries([found[order[i]]["segmentation"] for i in rows])
            theirs = _boundaries([truth[i]["segmentation"] for i in columns])
            block = np.ix_(rows, columns)
            ious[block] = np.minimum(ious[block], rle.iou(ours, theirs, [0] * len(theirs)))
        return ious


def _boundaries(shapes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """RLEs of the boundaries of RLEs of one image."""
    height, width = shapes[0]["size"]
    step, distance = max(1, _BAND_BYTES // max(1, height * width)), boundary_width(height, width)
    bands = []
    for start in range(0, len(shapes), step):
        columns = rle.decode(list(shapes[start : start + step])).transpose(2, 1, 0)  # (n, W, H), as it lies in memory
        bands += rle.encode(np.ascontiguousarray(boundary_band(columns, distance)).transpose(2, 1, 0))
    return bands
