"""An exported ONNX file in ONNX Runtime as a model in detectron2's input and output format."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.modeling.postprocessing import sem_seg_postprocess
from torch import Tensor, nn

from seg_ext.errors import UserError
from seg_ext.export.formats import Run


class OnnxModel(nn.Module):
    """``list[dict] -> list[dict]`` with ``sem_seg``, so that evaluators and wrappers take it for a model."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, run: Run, *, pixel_mean: Tensor, pixel_std: Tensor) -> None:
        """Hold the file.

        Args:
            run: (N, C, H, W) normalised float32 to (N, K, H, W) scores.
            pixel_mean: (C, 1, 1).
            pixel_std: (C, 1, 1).
        """
        super().__init__()
        self._run = run
        self.register_buffer("pixel_mean", pixel_mean, False)
        self.register_buffer("pixel_std", pixel_std, False)

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Images of one size go through together."""
        if self.training:
            raise UserError("an exported file cannot be trained")
        images = [(x["image"].float() - self.pixel_mean) / self.pixel_std for x in batched_inputs]
        alike = len({image.shape for image in images}) == 1
        scores = self._run(torch.stack(images)) if alike else [self._run(image[None])[0] for image in images]
        outputs = []
        for inputs, image, score in zip(batched_inputs, images, scores, strict=True):
            size = image.shape[-2:]
            height, width = inputs.get("height", size[0]), inputs.get("width", size[1])
            outputs.append({"sem_seg": sem_seg_postprocess(score, tuple(size), height, width)})
        return outputs
