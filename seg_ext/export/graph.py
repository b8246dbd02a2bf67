"""What is exported: backbone, semantic head and, on request, normalisation and labels, as a function of one tensor."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seg_ext.errors import UserError

_OPEN = {"N": "batch", "H": "height", "W": "width"}


class Graph(nn.Module):
    """A function of one tensor, ``image``, that holds the normalisation of a model whose parts it shares.

    Attributes:
        task: "semantic", "instance" or "panoptic".
        outputs: name and layout of each output.
        dynamic: names of the input's axes that are left open.
        layout: of the input.
        preprocessing: whether the input is raw uint8.
        batches: images at once that it is compared at.
    """

    pixel_mean: Tensor
    pixel_std: Tensor
    task: str
    outputs: dict[str, str]
    dynamic: dict[int, str]
    layout = "NCHW"
    preprocessing = False
    batches: tuple[int, ...] = (1, 2)

    def __init__(self, model: nn.Module) -> None:
        """Take backbone and normalisation.

        Raises:
            UserError: a backbone that takes square images alone.
        """
        super().__init__()
        parts: Any = model
        if parts.backbone.padding_constraints.get("square_size"):
            raise UserError("MODEL.BACKBONE pads images to one square size: it has no height and width to leave open")
        self.backbone = parts.backbone
        self.divisor = max(1, parts.backbone.size_divisibility)
        self.register_buffer("pixel_mean", parts.pixel_mean.detach().clone())
        self.register_buffer("pixel_std", parts.pixel_std.detach().clone())
        self.eval()

    @abstractmethod
    def labels_of(self, outputs: tuple[Tensor, ...]) -> Tensor:
        """The class ids among the outputs, or that follow from them."""

    def padded(self, image: Tensor) -> Tensor:
        """(N, C, H, W), with zeros at the right and below up to what the backbone divides."""
        height, width = image.shape[-2:]
        if self.divisor == 1:
            return image
        return F.pad(image, (0, -width % self.divisor, 0, -height % self.divisor))

    def example(self, batch: int, height: int, width: int, *, seed: int = 0) -> Tensor:
        """Noise that the graph takes, the same for the same seed."""
        draw = torch.Generator().manual_seed(seed)
        channels = self.pixel_mean.numel()
        if self.preprocessing:
            return torch.randint(0, 256, (batch, height, width, channels), generator=draw, dtype=torch.uint8)
        return torch.randn(batch, channels, height, width, generator=draw)


class SemanticGraph(Graph):
    """The semantic half of a model on images of one size: (N, C, H, W) float32, normalised, to (N, K, H, W) scores.

    With ``preprocessing`` the input is (N, H, W, C), uint8, raw values in the channels of INPUT.FORMAT; with ``labels``
    the output is (N, H, W) int64. Padding to what the backbone divides, and cutting it off again, is always inside.
    """

    task = "semantic"

    def __init__(self, model: nn.Module, *, preprocessing: bool = False, labels: bool = False) -> None:
        """Take the parts of a model, which stays as it is.

        Args:
            model: ours, or detectron2's SemanticSegmentor or PanopticFPN; in eval mode, in float32.
            preprocessing: type, order of axes, mean and deviation inside.
            labels: argmax inside.

        Raises:
            UserError: a model without a semantic head, or one that takes square images alone.
        """
        super().__init__(model)
        self.head: Any = getattr(model, "sem_seg_head", None)
        if self.head is None:
            raise UserError("MODEL.SEM_SEG_HEAD.NAME is empty: --task semantic exports the semantic head")
        self.preprocessing, self.labels = preprocessing, labels
        self.outputs = {"labels": "NHW"} if labels else {"scores": "NKHW"}
        self.layout = "NHWC" if preprocessing else "NCHW"
        self.dynamic = {self.layout.index(axis): name for axis, name in _OPEN.items()}

    def forward(self, image: Tensor) -> Tensor:
        """See the class."""
        if self.preprocessing:
            image = (image.permute(0, 3, 1, 2).float() - self.pixel_mean) / self.pixel_std
        height, width = image.shape[-2:]
        scores: Tensor = self.head(self.backbone(self.padded(image)))[0][..., :height, :width]
        return scores.argmax(1) if self.labels else scores

    def labels_of(self, outputs: tuple[Tensor, ...]) -> Tensor:
        """(N, H, W) int64."""
        return outputs[0] if self.labels else outputs[0].argmax(1)
