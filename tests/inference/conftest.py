"""Predictors that need no network: their output is a function of each pixel, or of the objects that an image shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from detectron2.structures import BitMasks, Instances
from torch import Tensor

Predict = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]


def find_objects(ids: Tensor, score: float = 0.9) -> Instances:
    """The instances of an (H, W) map of ids, 0 for none, of class ``id % 2``: the first score falls with the id."""
    known = ids.unique()
    known = known[known > 0]
    masks = ids[None] == known[:, None, None]
    return Instances(
        tuple(ids.shape),
        pred_masks=masks,
        pred_boxes=BitMasks(masks).get_bounding_boxes(),
        pred_classes=(known % 2).long(),
        scores=score - known.float() / 1000,
    )


def resized(x: Tensor, inputs: dict[str, Any]) -> Tensor:
    """(C, H, W) at the size an input asks for."""
    size = (inputs.get("height", x.shape[-2]), inputs.get("width", x.shape[-1]))
    return torch.nn.functional.interpolate(x[None], size, mode="bilinear", align_corners=False)[0]


@pytest.fixture
def pointwise() -> Predict:
    """Scores of 3 classes that are linear in the 3 channels of each pixel."""

    def predict(batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        mix = torch.tensor([[0.02, 0, 0.01], [-0.01, 0.03, 0], [0, 0, -0.02]])
        return [{"sem_seg": resized(torch.einsum("kc,chw->khw", mix, x["image"].float()), x)} for x in batch]

    return predict


@pytest.fixture
def detector() -> Predict:
    """Instances of the first channel's ids, and its parity as a semantic map of 2 classes."""

    def predict(batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        results = []
        for x in batch:
            ids = x["image"][0]
            size = (x.get("height", ids.shape[0]), x.get("width", ids.shape[1]))
            ids = (
                torch.nn.functional.interpolate(ids[None, None].float(), size, mode="nearest-exact")[0, 0]
                .round()
                .long()
            )
            inside = (ids > 0).float()
            results.append({"sem_seg": torch.stack([4 - 8 * inside, 8 * inside - 4]), "instances": find_objects(ids)})
        return results

    return predict
