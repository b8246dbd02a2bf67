"""Mask R-CNN, alone or beside a semantic head, as a function of one image's tensor, for tracing."""

from __future__ import annotations

from typing import Any

from detectron2.structures import ImageList
from torch import Tensor, nn

from seg_ext.errors import UserError
from seg_ext.export.graph import Graph


class InstanceGraph(Graph):
    """(1, C, H, W) float32, normalised, to boxes (R, 4) xyxy, scores (R,), classes (R,), masks (R, 1, h, w) in [0, 1].

    The masks fill their boxes; pasting them into the image is left to the caller, and so is panoptic fusion. A model
    with a semantic head gives its scores (1, K, H, W) as a fifth output.
    """

    outputs = {"boxes": "R4", "scores": "R", "classes": "R", "masks": "R1hw"}
    dynamic = {2: "height", 3: "width"}
    batches = (1,)

    def __init__(self, model: nn.Module, *, semantic: bool) -> None:
        """Take the parts of a model, which stays as it is.

        Args:
            model: in eval mode, in float32.
            semantic: give the semantic head's scores too.

        Raises:
            UserError: a model that finds instances in another way, gives no masks, or takes square images alone.
        """
        super().__init__(model)
        parts: Any = model
        if getattr(parts, "roi_heads", None) is None or not getattr(parts.roi_heads, "mask_on", False):
            raise UserError("--task instance and panoptic export Mask R-CNN: MODEL.ROI_HEADS with MODEL.MASK_ON")
        if getattr(parts.roi_heads, "keypoint_on", False):
            raise UserError("MODEL.KEYPOINT_ON: keypoints are not exported; set it False to export boxes and masks")
        self.proposals, self.regions = parts.proposal_generator, parts.roi_heads
        self.head: Any = parts.sem_seg_head if semantic else None
        self.task = "panoptic" if semantic else "instance"
        if semantic:
            self.outputs = {**self.outputs, "sem_seg": "NKHW"}

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        height, width = image.shape[-2:]
        padded = self.padded(image)
        features = self.backbone(padded)
        images = ImageList(padded, [(height, width)])
        proposals, _ = self.proposals(images, features, None)
        found = self.regions(images, features, proposals, None)[0][0]
        outputs = (found.pred_boxes.tensor, found.scores, found.pred_classes, found.pred_masks)
        return outputs if self.head is None else (*outputs, self.head(features)[0][..., :height, :width])

    def labels_of(self, outputs: tuple[Tensor, ...]) -> Tensor:
        """(R,) classes."""
        return outputs[2]
