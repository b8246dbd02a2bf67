"""Features as a padded backbone makes them."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from seg_ext.layers import FeatureSpec

Features = Callable[..., dict[str, Tensor]]


@pytest.fixture
def make_features() -> Features:
    """From specs of offset 0 and an image size to random maps (N, C, ceil(H / stride), ceil(W / stride)).

    A name that ends in _indices gets the places of the maxima of 2x2 pools of stride 2.
    """

    def make(specs: dict[str, FeatureSpec], height: int, width: int, *, batch: int = 2) -> dict[str, Tensor]:
        maps = {}
        for name, spec in specs.items():
            pooled = name.endswith("_indices")
            stride = spec.stride // 2 if pooled else spec.stride
            x = torch.randn(batch, spec.channels, -(-height // stride), -(-width // stride))
            maps[name] = F.max_pool2d(x, 2, ceil_mode=True, return_indices=True)[1] if pooled else x
        return maps

    return make
