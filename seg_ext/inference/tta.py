"""Test-time augmentation: means over sizes and mirror images (DeepLab, 2017), for semantics, instances and both."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.layers import batched_nms
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import Tensor

from seg_ext.errors import UserError
from seg_ext.inference.contract import UNFUSED, Predict, as_output, dense_maps, mirror_map, output_size

_CHUNK = 1 << 24  # elements of a temporary


class ScalesAndFlips:
    """A predictor that shows another one each image at several sizes, as it is and mirrored.

    Probabilities, the heat and offsets of Panoptic-DeepLab and maps of uncertainty are means over these views, at the
    size of the output. Instances are merged, see :func:`merge_views`.
    """

    def __init__(
        self, predict: Predict, scales: Sequence[float], *, flip: bool = False, nms: float = 0.5, most: int = 100
    ) -> None:
        """Hold what is wrapped.

        Args:
            predict: gets one view at a time.
            scales: factors on the image's height and width; none is 1 alone.
            flip: show each mirrored too.
            nms: see :func:`merge_views`; likewise ``most``.
            most: likewise.

        Raises:
            UserError: a scale that is not above 0, or an IoU outside 0 to 1.
        """
        wrong = [scale for scale in scales if not (isinstance(scale, int | float) and 0 < scale < float("inf"))]
        if wrong:
            raise UserError(f"TEST.TTA.SCALES has {wrong[0]!r}: takes factors above 0")
        if not 0 <= nms <= 1:
            raise UserError(f"TEST.TTA.NMS {nms}: takes an IoU from 0 to 1")
        self._predict, self._nms, self._most = predict, nms, most
        self._views = list(product(scales or (1.0,), (False, True) if flip else (False,)))

    def __call__(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Predict each image, at its ``height`` and ``width``."""
        return [self._predict_image(inputs) for inputs in batched_inputs]

    def _predict_image(self, inputs: dict[str, Any]) -> dict[str, Any]:
        height, width = output_size(inputs)
        means: dict[str, Tensor] = {}
        found: list[Instances] = []
        for scale, mirrored in self._views:
            image = _view(inputs["image"], scale, mirrored)
            output = self._predict([inputs | UNFUSED | {"image": image, "height": height, "width": width}])[0]
            for key, part in dense_maps(output).items():
                part = mirror_map(key, part) if mirrored else part
                means[key] = means[key].add_(part) if key in means else part
            if "instances" in output:
                found.append(_mirrored(output["instances"]) if mirrored else output["instances"])
        result = as_output({key: total.div_(len(self._views)) for key, total in means.items()})
        if found:
            result["instances"] = merge_views(found, nms=self._nms, most=self._most)
        return result


def _view(image: Tensor, scale: float, mirrored: bool) -> Tensor:
    """(C, h, w) of another size, bilinear and without aliasing; what keeps its size keeps its type."""
    size = [max(1, round(side * scale)) for side in image.shape[-2:]]
    if size != list(image.shape[-2:]):
        image = F.interpolate(image[None].float(), size, mode="bilinear", align_corners=False, antialias=True)[0]
    return image.flip(-1) if mirrored else image


def _mirrored(found: Instances) -> Instances:
    """Instances of the image with left and right exchanged.

    Raises:
        UserError: they have keypoints, whose names would change sides.
    """
    if found.has("pred_keypoints"):
        raise UserError("TEST.TTA.FLIP does not serve MODEL.KEYPOINT_ON: left and right keypoints would change places")
    result = Instances(found.image_size, **found.get_fields())
    x0, y0, x1, y1 = found.pred_boxes.tensor.unbind(1)
    width = found.image_size[1]
    result.pred_boxes = Boxes(torch.stack([width - x1, y0, width - x0, y1], 1))
    if found.has("pred_masks"):
        result.pred_masks = found.pred_masks.flip(-1)
    return result


def merge_views(views: Sequence[Instances], *, nms: float = 0.5, most: int = 100) -> Instances:
    """One list of instances from several of one image.

    Non-maximum suppression over all of them, class by class, tells which remain. A mask is the mean, weighted by score,
    of its own and of those that it suppressed, cut at half; the other fields are its own.

    Args:
        views: of one size.
        nms: boxes of one class above this IoU are one instance.
        most: that remain, those of the highest scores; below 0 all, as in detectron2.
    """
    fields = [{k: v for k, v in x.get_fields().items() if k != "pred_masks"} for x in views]
    every = Instances.cat([Instances(views[0].image_size, **x) for x in fields])
    boxes = every.pred_boxes.tensor
    kept = batched_nms(boxes.float(), every.scores, every.pred_classes, nms)[: None if most < 0 else most]
    result = every[kept]
    if not all(x.has("pred_masks") for x in views):
        return result
    if not len(kept):
        result.pred_masks = views[0].pred_masks[:0].bool()
        return result
    overlap = pairwise_iou(every.pred_boxes, result.pred_boxes)
    overlap = torch.where(every.pred_classes[:, None] == result.pred_classes[None], overlap, 0)
    best, owner = overlap.max(1)
    joins = best > nms
    joins[kept], owner[kept] = True, torch.arange(len(kept), device=owner.device)
    result.pred_masks = _mean_masks([x.pred_masks for x in views], owner, every.scores * joins, len(kept))
    return result


def _mean_masks(masks: Sequence[Tensor], owner: Tensor, weights: Tensor, count: int) -> Tensor:
    """(count, H, W) bool, from (n, H, W) of each view: whether half of the weight says so; some rows at a time."""
    height, width = masks[0].shape[-2:]
    total = weights.new_zeros(count).index_add_(0, owner, weights)
    counts = [len(x) for x in masks]
    parts = list(zip(masks, owner.split(counts), weights.split(counts), strict=True))
    result = torch.zeros(count, height, width, dtype=torch.bool, device=owner.device)
    step = max(1, _CHUNK // (max(count, *counts, 1) * width))
    for top in range(0, height, step):
        votes = weights.new_zeros(count, *result[0, top : top + step].shape)
        for view, of, weight in parts:
            votes.index_add_(0, of, view[:, top : top + step].to(weight.dtype) * weight[:, None, None])
        result[:, top : top + step] = votes >= total[:, None, None] * (0.5 - 1e-6)
    return result
