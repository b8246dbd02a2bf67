"""Panoptic-DeepLab's instance branch as a head: centres and offsets beside a semantic head (Cheng et al., 2020)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.modeling.postprocessing import sem_seg_postprocess
from detectron2.structures import BitMasks, Instances
from torch import Tensor, nn

from seg_ext.decoders.panoptic_deeplab import PanopticDeepLabInstances
from seg_ext.errors import UserError
from seg_ext.layers import resize_to
from seg_ext.modeling.arguments import check_types
from seg_ext.modeling.norm import norm_layer
from seg_ext.modeling.seg_head import check_arguments, has_target, select_features
from seg_ext.postprocess import centre_targets, group_pixels
from seg_ext.postprocess.centres import STUFF, VOID

_KEY = "MODEL.INS_EMBED_HEAD"
_NUMBERS = ("CENTER_WEIGHT", "OFFSET_WEIGHT", "SMALL_AREA", "SMALL_WEIGHT", "TOP_K", "STUFF_AREA")


class InstanceEmbeddingHead(nn.Module):
    """Features by name in; losses out in training, panoptic segments and instances from them in inference."""

    @configurable
    def __init__(
        self,
        branch: nn.Module,
        in_features: Sequence[str],
        *,
        sigma: float = 10.0,
        center_weight: float = 200.0,
        offset_weight: float = 0.01,
        small_area: int = 4096,
        small_weight: float = 3.0,
        thing_classes: Sequence[int] = (),
        grouping: Mapping[str, Any] | None = None,
    ) -> None:
        """Hold a branch and what it is trained with.

        Args:
            branch: see :class:`seg_ext.decoders.panoptic_deeplab.PanopticDeepLabInstances`.
            in_features: names of the feature maps handed to it.
            sigma: standard deviation of the heat around a centre, pixels.
            center_weight: of the squared error of the heat.
            offset_weight: of the absolute error of the offsets, per pixel of an instance.
            small_area: pixels of an instance below which it is small.
            small_weight: of a pixel of a small instance in the semantic losses that take weights.
            thing_classes: instance class of each of the grouping's "thing_ids"; empty for 0, 1, ...
            grouping: arguments of :func:`seg_ext.postprocess.group_pixels`, "thing_ids" among them.
        """
        super().__init__()
        if not sigma > 0:
            raise UserError(f"{_KEY}.SIGMA {sigma}: takes pixels above 0")
        self.branch: Any = branch
        self.in_features = tuple(in_features)
        self.sigma, self.small_area, self.small_weight = sigma, small_area, small_weight
        self._weights = {"centre": center_weight, "offset": offset_weight}
        self._grouping = dict(grouping or {"thing_ids": ()})
        ids = self._grouping["thing_ids"]
        if thing_classes and len(thing_classes) != len(ids):
            raise UserError(f"{_KEY}.THING_CLASSES {list(thing_classes)}: takes one for each of THING_IDS {list(ids)}")
        self._classes = dict(zip(ids, thing_classes or range(len(ids)), strict=True))

    @classmethod
    def from_config(cls, cfg, input_shape: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of the constructor from MODEL.INS_EMBED_HEAD and the backbone's ``output_shape()``."""
        keys, args = cfg.MODEL.INS_EMBED_HEAD, dict(cfg.MODEL.INS_EMBED_HEAD.ARGS)
        if not has_target(cfg.INPUT.TARGETS, "panoptic_ids"):
            raise UserError(f"{_KEY}.NAME {keys.NAME}: needs {{NAME: panoptic_ids}} in INPUT.TARGETS")
        if keys.NMS_KERNEL < 1 or keys.NMS_KERNEL % 2 == 0:
            raise UserError(f"{_KEY}.NMS_KERNEL {keys.NMS_KERNEL}: takes an odd number of pixels")
        for key in _NUMBERS:
            if not 0 <= keys[key] < inf:
                raise UserError(f"{_KEY}.{key} {keys[key]}: takes a number >= 0")
        check_arguments(f"{_KEY}.ARGS", PanopticDeepLabInstances.__init__, args, {"in_features"})
        check_types(f"{_KEY}.ARGS", PanopticDeepLabInstances.__init__, args)
        features = select_features(input_shape, keys.IN_FEATURES, key=f"{_KEY}.IN_FEATURES")
        norm = norm_layer(keys.NORM, f"{_KEY}.NORM")
        try:
            branch = PanopticDeepLabInstances(features, norm=norm, **args)
        except (ValueError, TypeError) as error:
            raise UserError(f"{_KEY}: {error}") from error
        return {
            "branch": branch,
            "in_features": keys.IN_FEATURES,
            "sigma": keys.SIGMA,
            "center_weight": keys.CENTER_WEIGHT,
            "offset_weight": keys.OFFSET_WEIGHT,
            "small_area": keys.SMALL_AREA,
            "small_weight": keys.SMALL_WEIGHT,
            "thing_classes": tuple(keys.THING_CLASSES),
            "grouping": {
                "thing_ids": tuple(cfg.MODEL.SEM_SEG_HEAD.THING_IDS),
                "threshold": keys.CENTER_THRESHOLD,
                "kernel": keys.NMS_KERNEL,
                "most": keys.TOP_K,
                "stuff_area": keys.STUFF_AREA,
            },
        }

    def forward(self, features: Mapping[str, Tensor], size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Heat (N, 1, H, W) and offsets (N, 2, H, W), pixels, at the size (H, W) of the padded images."""
        try:
            found = self.branch({name: features[name] for name in self.in_features})
        except ValueError as error:  # the branch's own refusal, such as of BatchNorm on a single value
            raise UserError(f"{_KEY}: {error}") from error
        return resize_to(found["centre"], size), resize_to(found["offset"], size) * self.branch.out_stride

    def targets(self, ids: Tensor) -> dict[str, Tensor]:
        """What is to be predicted, of ids (N, H, W): VOID, STUFF or an instance's.

        Returns:
            "heat" (N, 1, H, W), "offset" (N, 2, H, W), and "semantic", weights (N, H, W) for the semantic losses.
        """
        each = [centre_targets(x, sigma=self.sigma) for x in ids]
        heat, offset, area = (torch.stack(values) for values in zip(*each, strict=True))
        small = (area > 0) & (area < self.small_area)
        return {"heat": heat[:, None], "offset": offset, "semantic": torch.where(small, self.small_weight, 1.0)}

    def losses(self, features: Mapping[str, Tensor], ids: Tensor, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Both losses, weighted: of the heat over all pixels but void, of the offsets over those of instances."""
        heat, offset = self(features, ids.shape[-2:])
        counted, inside = (ids != VOID)[:, None], (ids > STUFF)[:, None]
        squared = F.mse_loss(heat, targets["heat"], reduction="none") * counted
        absolute = F.l1_loss(offset, targets["offset"], reduction="none") * inside
        return {
            "loss_center": self._weights["centre"] * squared.sum() / counted.sum().clamp(min=1),
            "loss_offset": self._weights["offset"] * absolute.sum() / inside.sum().clamp(min=1),
        }

    def resized(
        self, heat: Tensor, offset: Tensor, size: Sequence[int], output_size: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Heat and offsets of one image at the output's size.

        Args:
            heat: (1, H, W) of the padded image; likewise offset (2, H, W), pixels of the model's input.
            offset: likewise.
            size: height and width of the image in it.
            output_size: height and width.

        Returns:
            (1, height, width), and (2, height, width) pixels of the output.
        """
        height, width = output_size
        heat, offset = (sem_seg_postprocess(x, size, height, width) for x in (heat, offset))
        return heat, offset * offset.new_tensor([height / size[0], width / size[1]])[:, None, None]

    def segments(
        self, scores: Tensor, heat: Tensor, offset: Tensor, *, labels: Tensor | None = None
    ) -> tuple[tuple[Tensor, list[dict[str, Any]]], Instances]:
        """Panoptic segments and instances of one image, see :meth:`resized`.

        Args:
            scores: (K, height, width) of the semantic head.
            heat: (1, height, width).
            offset: (2, height, width) pixels.
            labels: (height, width) semantic ids; None for those of the highest scores.
        """
        height, width = scores.shape[-2:]
        labels = scores.argmax(0) if labels is None else labels
        segments, info = group_pixels(labels, heat[0], offset, **self._grouping)
        things = [segment for segment in info if segment["isthing"]]
        semantic = torch.tensor([segment["category_id"] for segment in things], dtype=torch.long, device=scores.device)
        masks = segments[None] == torch.arange(1, len(things) + 1, device=scores.device)[:, None, None]
        numbers = torch.where(segments <= len(things), segments, 0).long()  # of things, which come first
        classes = torch.cat([semantic.new_zeros(1), semantic])[numbers]
        likely = scores.softmax(0).gather(0, classes[None])[0].double()  # a class for each pixel, not a map for each
        sums = torch.bincount(numbers.flatten(), likely.flatten(), minlength=len(things) + 1)[1:]
        area = sums.new_tensor([segment["area"] for segment in things])
        for segment in things:
            segment["category_id"] = self._classes[segment["category_id"]]
        found = Instances((height, width))
        found.pred_masks = masks
        found.pred_boxes = BitMasks(masks).get_bounding_boxes()
        found.pred_classes = semantic.new_tensor([segment["category_id"] for segment in things])
        found.scores = scores.new_tensor([segment["score"] for segment in things]) * (sums / area).to(scores.dtype)
        return (segments, info), found


INS_EMBED_HEADS: dict[str, type[nn.Module]] = {"InstanceEmbeddingHead": InstanceEmbeddingHead}
