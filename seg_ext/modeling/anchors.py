"""Anchors with whole half sides, as torchvision's detectors have them."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.modeling import ANCHOR_GENERATOR_REGISTRY
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from torch import Tensor


@ANCHOR_GENERATOR_REGISTRY.register()
class RoundedAnchorGenerator(DefaultAnchorGenerator):
    """detectron2's own, half sides rounded: 46 x 22 pixels where it has 45.3 x 22.6."""

    def generate_cell_anchors(
        self, sizes: Sequence[float] = (32, 64, 128, 256, 512), aspect_ratios: Sequence[float] = (0.5, 1, 2)
    ) -> Tensor:
        """Boxes (A, 4) around (0, 0) of every size, in pixels, and ratio of height to width."""
        return super().generate_cell_anchors(sizes, aspect_ratios).round()
