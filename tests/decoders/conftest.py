"""Features as a padded backbone makes them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from seg_ext.layers import FeatureSpec

Features = Callable[..., dict[str, Tensor]]


@pytest.fixture
def make_features() -> Features:
    """From specs of offset 0 and an image size to random maps (N, C, ceil(H / stride), ceil(W / stride))."""

    def make(specs: dict[str, FeatureSpec], height: int, width: int, *, batch: int = 2) -> dict[str, Tensor]:
        return {
            name: torch.randn(batch, s.channels, -(-height // s.stride), -(-width // s.stride))
            for name, s in specs.items()
        }

    return make
