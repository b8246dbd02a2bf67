"""What predictors share: their type, and the dense maps of an output, whose means wrappers take."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Predict = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]  # detectron2's input and output format

# An input with "fuse" False asks for what the heads give: sem_seg, instances, center_heat and center_offset, not yet
# made into panoptic segments. Wrappers hand it on with the other keys of an input.
UNFUSED = {"fuse": False}
_PIXELS = "center_offset"  # (2, H, W) rows and columns: a vector of pixels, which turns and grows with the image
_NESTED = "uncertainty"
_DENSE = ("center_heat", _PIXELS)


def dense_maps(output: Mapping[str, Any], *, logs: bool = False) -> dict[str, Tensor]:
    """The maps (..., H, W) of a predictor's output as what can be averaged: float32, probabilities or ``logs`` of them.

    The mean of logs is that of scores but for a number a pixel, which the softmax takes away.
    """
    maps = {key: output[key].float() for key in _DENSE if key in output}
    maps |= {f"{_NESTED}/{key}": value.float() for key, value in output.get(_NESTED, {}).items()}
    if "sem_seg" in output:
        scores = output["sem_seg"].float()
        maps["sem_seg"] = scores.log_softmax(0) if logs else scores.softmax(0)
    return maps


def as_output(maps: Mapping[str, Tensor]) -> dict[str, Any]:
    """The output whose :func:`dense_maps` these are; its scores are logs, written over the probabilities."""
    output: dict[str, Any] = {key: maps[key] for key in _DENSE if key in maps}
    nested = {key.removeprefix(f"{_NESTED}/"): x for key, x in maps.items() if key.startswith(_NESTED)}
    if nested:
        output[_NESTED] = nested
    if "sem_seg" in maps:
        output["sem_seg"] = maps["sem_seg"].clamp_(min=torch.finfo(torch.float32).tiny).log_()
    return output


def resize_map(key: str, x: Tensor, size: Sequence[int]) -> Tensor:
    """A map (..., h, w) of :func:`dense_maps` at another size, bilinear."""
    height, width = x.shape[-2:]
    if (height, width) == tuple(size):
        return x
    resized = F.interpolate(x.view(1, -1, height, width), tuple(size), mode="bilinear", align_corners=False)
    if key == _PIXELS:
        resized = resized * resized.new_tensor([size[0] / height, size[1] / width])[:, None, None]
    return resized.view(*x.shape[:-2], *size)


def mirror_map(key: str, x: Tensor) -> Tensor:
    """A map (..., H, W) of :func:`dense_maps` of the image with left and right exchanged."""
    mirrored = x.flip(-1)
    return mirrored * mirrored.new_tensor([1, -1])[:, None, None] if key == _PIXELS else mirrored


def output_size(inputs: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width that the prediction of an input is to have."""
    height, width = inputs["image"].shape[-2:]
    return inputs.get("height", height), inputs.get("width", width)
