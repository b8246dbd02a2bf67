"""PanopticSegmentor: a backbone under a semantic head, Mask R-CNN, Panoptic-DeepLab's: the heads decide the task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone, build_proposal_generator, build_roi_heads
from detectron2.modeling.meta_arch.semantic_seg import build_sem_seg_head
from detectron2.modeling.postprocessing import detector_postprocess, sem_seg_postprocess
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from seg_ext.errors import UserError
from seg_ext.modeling.batch_norm import configure_batch_norm
from seg_ext.modeling.panoptic_deeplab import INS_EMBED_HEADS
from seg_ext.modeling.regions import check_anchors, check_c4, check_region_maps
from seg_ext.modeling.seg_head import SegHead
from seg_ext.postprocess import fuse_panoptic, resized_labels

_TOGETHER = "MODEL.PROPOSAL_GENERATOR.NAME and MODEL.ROI_HEADS.NAME go together: set or empty both"


@META_ARCH_REGISTRY.register()
class PanopticSegmentor(nn.Module):
    """Semantic, instance or panoptic segmentation in detectron2's input and output format.

    In training a batch may mix images with label maps, with instances, with both or with neither: each loss is taken
    over the images that have its ground truth. Where none of them has, the losses of that head are there and 0, with
    gradients of 0, so that all processes have the same ones.
    """

    sem_seg_head: Any  # modules or None: detectron2's own have no common type
    proposal_generator: Any
    roi_heads: Any
    ins_embed_head: Any
    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        backbone: nn.Module,
        *,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        sem_seg_head: nn.Module | None = None,
        proposal_generator: nn.Module | None = None,
        roi_heads: nn.Module | None = None,
        ins_embed_head: nn.Module | None = None,
        thing_ids: Sequence[int] = (),
        overlap_threshold: float = 0.5,
        stuff_area: int = 4096,
        score_threshold: float = 0.5,
        labels_only: bool = False,
        batch_norm: Mapping[str, Any] | None = None,
    ) -> None:
        """Assemble a model from its parts.

        Args:
            backbone: a detectron2 backbone.
            pixel_mean: mean of every input channel.
            pixel_std: divisor of every input channel.
            sem_seg_head: detectron2's protocol, see :class:`seg_ext.modeling.seg_head.SegHead`.
            proposal_generator: comes with ``roi_heads``.
            roi_heads: detectron2's, Mask R-CNN's.
            ins_embed_head: see :class:`seg_ext.modeling.panoptic_deeplab.InstanceEmbeddingHead`; beside a semantic
                head and in place of ``roi_heads``.
            thing_ids: semantic ids that denote things, for panoptic fusion.
            overlap_threshold: see :func:`seg_ext.postprocess.fuse_panoptic`.
            stuff_area: likewise, pixels.
            score_threshold: likewise.
            labels_only: give ``sem_seg_labels`` in place of ``sem_seg``.
            batch_norm: arguments of :func:`seg_ext.modeling.batch_norm.configure_batch_norm`.
        """
        super().__init__()
        if ins_embed_head is not None and (sem_seg_head is None or roi_heads is not None):
            raise UserError("MODEL.INS_EMBED_HEAD.NAME goes with MODEL.SEM_SEG_HEAD.NAME, and without MODEL.ROI_HEADS")
        if sem_seg_head is None and roi_heads is None:
            raise UserError("a model needs MODEL.SEM_SEG_HEAD.NAME or MODEL.ROI_HEADS.NAME; both are empty")
        if (proposal_generator is None) != (roi_heads is None):
            raise UserError(_TOGETHER)
        self.backbone = backbone
        self.sem_seg_head = sem_seg_head
        self.proposal_generator = proposal_generator
        self.roi_heads = roi_heads
        self.ins_embed_head = ins_embed_head
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)
        self._fusion: dict[str, Any] = {
            "thing_ids": tuple(thing_ids),
            "overlap_threshold": overlap_threshold,
            "stuff_area": stuff_area,
            "score_threshold": score_threshold,
        }
        self._labels_only = labels_only
        configure_batch_norm(self, **(batch_norm or {}))

    @classmethod
    def from_config(cls, cfg) -> dict[str, Any]:
        """Arguments of the constructor; an empty NAME means no such head."""
        model = cfg.MODEL
        _check_pixels(model.PIXEL_MEAN, model.PIXEL_STD)
        backbone = build_backbone(cfg)
        shape = backbone.output_shape()
        _check_heads(model, shape)
        embed = model.INS_EMBED_HEAD.NAME
        if embed and embed not in INS_EMBED_HEADS:
            raise UserError(f"MODEL.INS_EMBED_HEAD.NAME {embed!r}: takes {', '.join(INS_EMBED_HEADS)} or ''")
        sem_seg_head = build_sem_seg_head(cfg, shape) if model.SEM_SEG_HEAD.NAME else None
        if embed and not isinstance(sem_seg_head, SegHead | None):  # detectron2's take no weights of pixels
            raise UserError(f"MODEL.INS_EMBED_HEAD.NAME goes with SegHead, not {model.SEM_SEG_HEAD.NAME}")
        roi_shape = {name: spec for name, spec in shape.items() if getattr(spec, "offset", 0) == 0}
        combine = model.PANOPTIC_FPN.COMBINE
        return {
            "backbone": backbone,
            "sem_seg_head": sem_seg_head,
            "proposal_generator": build_proposal_generator(cfg, roi_shape) if model.PROPOSAL_GENERATOR.NAME else None,
            "roi_heads": build_roi_heads(cfg, roi_shape) if model.ROI_HEADS.NAME else None,
            "ins_embed_head": INS_EMBED_HEADS[embed](cfg, shape) if embed else None,
            "pixel_mean": model.PIXEL_MEAN,
            "pixel_std": model.PIXEL_STD,
            "thing_ids": model.SEM_SEG_HEAD.THING_IDS,
            "overlap_threshold": combine.OVERLAP_THRESH,
            "stuff_area": combine.STUFF_AREA_LIMIT,
            "score_threshold": combine.INSTANCES_CONFIDENCE_THRESH,
            "labels_only": cfg.TEST.LABELS_ONLY,
            "batch_norm": {key.lower(): value for key, value in model.BN.items()},
        }

    @property
    def device(self) -> torch.device:
        """Where inputs are moved to."""
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Losses by name in training, else one dict an image.

        Args:
            batched_inputs: per image ``image`` (C, H, W); ``height``, ``width`` of the output; in training
                ``sem_seg`` (H, W), ``sem_seg_weight`` (H, W), ``instances`` and ``panoptic_ids`` (H, W); in inference
                ``fuse``: False leaves panoptic segments to :meth:`finish`.

        Returns:
            In inference per image: ``sem_seg`` (K, height, width) scores, or their classes ``sem_seg_labels`` (height,
            width), ``instances``, and with heads for both ``panoptic_seg``: (height, width) ids and a list of segment
            dicts. Where ``fuse`` is False ``sem_seg`` always, and of a head of instance embeddings ``center_heat``
            (1, height, width) and ``center_offset`` (2, height, width).
        """
        images = self._images(batched_inputs)
        features = self.backbone(images.tensor)
        if not self.training:
            return self._infer(images, features, batched_inputs)
        losses: dict[str, Tensor] = {}
        if self.ins_embed_head is not None:
            return self._bottom_up_losses(images, features, batched_inputs)
        if self.sem_seg_head is not None:
            losses.update(self._semantic_losses(images, features, batched_inputs))
        if self.roi_heads is not None:
            losses.update(self._instance_losses(images, features, batched_inputs))
        return losses

    def _images(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        images = [(x["image"].to(self.device) - self.pixel_mean) / self.pixel_std for x in batched_inputs]
        return self._batch(images, 0.0)

    def _batch(self, tensors: list[Tensor], value: float) -> ImageList:
        """Pad to one size that the backbone accepts."""
        return ImageList.from_tensors(
            tensors,
            self.backbone.size_divisibility,
            pad_value=value,
            padding_constraints=self.backbone.padding_constraints,
        )

    def _semantic_losses(
        self, images: ImageList, features: Mapping[str, Tensor], batched_inputs: list[dict[str, Any]]
    ) -> dict[str, Tensor]:
        """Losses over the images that have a label map; of a batch without one, those of an empty map times 0."""
        if any("sem_seg" in x for x in batched_inputs):
            return self.sem_seg_head(features, self._targets(images, batched_inputs))[1]
        if self.roi_heads is None:
            raise UserError("semantic training needs 'sem_seg' in the inputs; does the data set have label maps?")
        nothing = [x | {"sem_seg": torch.zeros(size, dtype=torch.long)} for x, size in self._sized(batched_inputs)]
        losses = self.sem_seg_head(features, self._targets(images, nothing))[1]
        return {name: 0 * loss for name, loss in losses.items()}

    def _bottom_up_losses(
        self, images: ImageList, features: Mapping[str, Tensor], batched_inputs: list[dict[str, Any]]
    ) -> dict[str, Tensor]:
        """Semantic losses, in which small instances weigh more, and those of centres and offsets."""
        if not any("panoptic_ids" in x for x in batched_inputs):
            raise UserError("MODEL.INS_EMBED_HEAD needs 'panoptic_ids' in the inputs; is the data set panoptic?")
        targets = self._targets(images, batched_inputs)
        named = dict(targets) if isinstance(targets, Mapping) else {"sem_seg": targets}
        ids = [
            x["panoptic_ids"].to(self.device) if "panoptic_ids" in x else torch.zeros(size, device=self.device)
            for x, size in self._sized(batched_inputs)
        ]
        known = named["sem_seg"] != self.sem_seg_head.ignore_value  # not where an augmentation padded
        numbers = torch.where(known, self._batch(ids, 0.0).tensor, 0).long()
        wanted = self.ins_embed_head.targets(numbers)
        named["weight"] = wanted["semantic"] * named.get("weight", 1.0)
        losses: dict[str, Tensor] = self.sem_seg_head(features, named)[1]
        return {**losses, **self.ins_embed_head.losses(features, numbers, wanted)}

    @staticmethod
    def _sized(batched_inputs: list[dict[str, Any]]) -> list[tuple[dict[str, Any], tuple[int, int]]]:
        """Every input with its height and width as the model gets it."""
        return [(x, (x["image"].shape[-2], x["image"].shape[-1])) for x in batched_inputs]

    def _targets(self, images: ImageList, batched_inputs: list[dict[str, Any]]) -> Tensor | Mapping[str, Tensor]:
        """(N, H, W) ids, all ignored for an image without a label map.

        With weights of the pixels in any of the inputs a dict: "sem_seg", the ids, and "weight" (N, H, W).
        """
        ignore = self.sem_seg_head.ignore_value
        targets = [
            x["sem_seg"].to(self.device)
            if "sem_seg" in x
            else torch.full(size, ignore, dtype=torch.long, device=self.device)
            for x, size in self._sized(batched_inputs)
        ]
        ids = self._batch(targets, ignore).tensor
        if not any("sem_seg_weight" in x for x in batched_inputs):
            return ids
        weights = [
            x["sem_seg_weight"].to(self.device) if "sem_seg_weight" in x else torch.ones(size, device=self.device)
            for x, size in self._sized(batched_inputs)
        ]
        return {"sem_seg": ids, "weight": self._batch(weights, 0.0).tensor}

    def _instance_losses(
        self, images: ImageList, features: Mapping[str, Tensor], batched_inputs: list[dict[str, Any]]
    ) -> dict[str, Tensor]:
        """RPN and ROI losses over the images that have instances, if only an empty list of them.

        Of a batch whose images have none, not even an empty list, those of an empty list on the first image, times 0.
        """
        index = [i for i, x in enumerate(batched_inputs) if "instances" in x]
        if not index and self.sem_seg_head is None:
            raise UserError("instance training needs 'instances' in the inputs; does the data set have them?")
        truth = [self._truth(batched_inputs[i]) for i in index] or [self._no_instances(images.image_sizes[0])]
        chosen = index or [0]
        if len(chosen) < len(batched_inputs):
            features = {name: x[chosen] for name, x in features.items()}
            images = ImageList(images.tensor[chosen], [images.image_sizes[i] for i in chosen])
        proposals, losses = self.proposal_generator(images, features, truth)
        _, roi_losses = self.roi_heads(images, features, proposals, truth)
        losses = {**losses, **roi_losses}
        return losses if index else {name: 0 * loss for name, loss in losses.items()}

    def _truth(self, inputs: dict[str, Any]) -> Instances:
        """The instances of an input, with the classes and fields that the heads have."""
        truth: Instances = inputs["instances"]
        known = getattr(self.roi_heads, "num_classes", None)
        if known is not None and len(truth) and not 0 <= truth.gt_classes.min() <= truth.gt_classes.max() < known:
            strange = next(i for i in truth.gt_classes.tolist() if not 0 <= i < known)
            raise UserError(
                f"{inputs.get('file_name', 'an input')}: an instance of class {strange}; MODEL.ROI_HEADS.NUM_CLASSES"
                f" {known} takes 0 to {known - 1}"
            )
        if getattr(self.roi_heads, "keypoint_on", False) and len(truth) and not truth.has("gt_keypoints"):
            raise UserError(
                f"{inputs.get('file_name', 'an input')}: MODEL.KEYPOINT_ON trains on instances with 'gt_keypoints', and"
                " these have none; do the data sets have keypoints?"
            )
        return truth.to(self.device)

    def _no_instances(self, size: tuple[int, int]) -> Instances:
        boxes, classes = Boxes(torch.zeros(0, 4)), torch.zeros(0, dtype=torch.long)
        return Instances(size, gt_boxes=boxes, gt_classes=classes).to(self.device)

    def _infer(
        self, images: ImageList, features: Mapping[str, Tensor], batched_inputs: list[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        maps = self._semantic_maps(images, features, batched_inputs)
        detections: list[Instances] | None = None
        if self.roi_heads is not None:
            proposals, _ = self.proposal_generator(images, features, None)
            detections, _ = self.roi_heads(images, features, proposals, None)
        heat = offset = None
        if self.ins_embed_head is not None:
            heat, offset = self.ins_embed_head(features, images.tensor.shape[-2:])
        results = []
        for i, (inputs, size) in enumerate(zip(batched_inputs, images.image_sizes, strict=True)):
            height, width = inputs.get("height", size[0]), inputs.get("width", size[1])
            result: dict[str, Any] = maps[i] if maps else {}
            if detections is not None:
                result["instances"] = detector_postprocess(detections[i], height, width)
            if heat is not None and offset is not None:
                resized = self.ins_embed_head.resized(heat[i], offset[i], size, (height, width))
                result["center_heat"], result["center_offset"] = resized
            results.append(self.finish(result) if inputs.get("fuse", True) else result)
        return results

    def _semantic_maps(
        self, images: ImageList, features: Mapping[str, Tensor], batched_inputs: list[dict[str, Any]]
    ) -> list[dict[str, Tensor]]:
        """``sem_seg`` of each image, or ``sem_seg_labels`` where nothing asks for scores; nothing without the head."""
        head, sizes = self.sem_seg_head, images.image_sizes
        if head is None:
            return []
        wanted = [(x.get("height", s[0]), x.get("width", s[1])) for x, s in zip(batched_inputs, sizes, strict=True)]
        each = list(zip(sizes, wanted, strict=True))
        fused = all(x.get("fuse", True) for x in batched_inputs)
        if not (self._labels_only and fused and self.ins_embed_head is None):
            scores = head(features)[0]
            return [{"sem_seg": sem_seg_postprocess(x, a, *b)} for x, (a, b) in zip(scores, each, strict=True)]
        if hasattr(head, "unresized"):
            scores, size, align_corners = head.unresized(features)
        else:
            scores, align_corners = head(features)[0], False
            size = scores.shape[-2:]
        if scores.isnan().any():
            raise UserError("the model's sem_seg holds NaN; it has diverged, take an earlier checkpoint")
        strips = [
            resized_labels(x, size, image_size=a, output_size=b, align_corners=align_corners)
            for x, (a, b) in zip(scores, each, strict=True)
        ]
        return [{"sem_seg_labels": labels} for labels in strips]

    def finish(self, output: dict[str, Any]) -> dict[str, Any]:
        """What the heads gave for an image, with panoptic segments where they allow it.

        Args:
            output: of an input whose ``fuse`` was False, or a mean of such; ``sem_seg_labels`` (height, width), where
                it is there, goes before the labels of ``sem_seg``.
        """
        result = {key: value for key, value in output.items() if key not in ("center_heat", "center_offset")}
        if "center_heat" in output:
            found = self.ins_embed_head.segments(
                result["sem_seg"], output["center_heat"], output["center_offset"], labels=result.get("sem_seg_labels")
            )
            result["panoptic_seg"], result["instances"] = found
        elif "instances" in result and result["instances"].has("pred_masks") and self.sem_seg_head is not None:
            result["panoptic_seg"] = self.fuse(_labels(result), result["instances"])
        if self._labels_only and "sem_seg" in result:
            result = {key: value for key, value in result.items() if key != "sem_seg"} | {
                "sem_seg_labels": _labels(result)
            }
        return result

    def fuse(self, labels: Tensor, instances: Instances) -> tuple[Tensor, list[dict[str, Any]]]:
        """Panoptic segments from an (H, W) label map and instances, with this model's thresholds."""
        return fuse_panoptic(
            labels, instances.pred_masks, scores=instances.scores, classes=instances.pred_classes, **self._fusion
        )


def _labels(output: Mapping[str, Any]) -> Tensor:
    """(H, W) semantic ids of an output."""
    labels: Tensor = output["sem_seg_labels"] if "sem_seg_labels" in output else output["sem_seg"].argmax(0)
    return labels


def _check_pixels(mean: Sequence[Any], std: Sequence[Any]) -> None:
    """Refuse what is no mean and divisor for every channel of an image."""
    numbers = all(isinstance(x, (int, float)) for x in (*mean, *std))
    if not mean or len(mean) != len(std) or not numbers or not all(x > 0 for x in std):
        raise UserError(
            f"MODEL.PIXEL_MEAN {list(mean)} and PIXEL_STD {list(std)}: take a number for each channel of the image, "
            "PIXEL_STD above 0"
        )


def _check_heads(model: CfgNode, shapes: Mapping[str, Any]) -> None:
    """Refuse thing ids that are no classes, and region heads on maps that the backbone cannot give."""
    head, names = model.SEM_SEG_HEAD, model.ROI_HEADS.IN_FEATURES
    classes = max(head.NUM_CLASSES, 2)
    strange = [i for i in head.THING_IDS if type(i) is not int or not 0 <= i < classes]
    if head.NAME and strange:
        raise UserError(f"MODEL.SEM_SEG_HEAD.THING_IDS has {strange[0]}: takes semantic classes, 0 to {classes - 1}")
    if bool(model.PROPOSAL_GENERATOR.NAME) != bool(model.ROI_HEADS.NAME):
        raise UserError(_TOGETHER)
    if not model.ROI_HEADS.NAME:
        return
    check_region_maps("MODEL.RPN.IN_FEATURES", model.RPN.IN_FEATURES, shapes)
    check_region_maps("MODEL.ROI_HEADS.IN_FEATURES", names, shapes, pyramid=True)
    check_anchors(model.ANCHOR_GENERATOR.SIZES, model.ANCHOR_GENERATOR.ASPECT_RATIOS, model.RPN.IN_FEATURES)
    if model.ROI_HEADS.NAME == "Res5ROIHeads":
        check_c4(names, shapes, res2_channels=model.RESNETS.RES2_OUT_CHANNELS, keypoints=model.KEYPOINT_ON)
