"""GroupNorm (Wu and He, 2018) for any channel count, and the refusal to train BatchNorm on a single value."""

from __future__ import annotations

from collections.abc import Callable

import torch.distributed as dist
from torch import Tensor, nn

Norm = Callable[[int], nn.Module]
"""From a number of channels to a normalisation layer."""

MAX_GROUPS = 32


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with the largest group count <= 32 that divides `channels` and leaves >= 2 channels a group.

    Two channels a group keep the output of a 1x1 map from being identically zero.

    Raises:
        ValueError: fewer than 2 channels.
    """
    if channels < 2:
        raise ValueError(f"group_norm takes at least 2 channels, not {channels}")
    groups = next(g for g in range(min(MAX_GROUPS, channels // 2), 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups, channels)


def refuse_single_value(norm: nn.Module, x: Tensor) -> None:
    """Raise where `norm` is a BatchNorm in training and x (N, C, h, w) holds one value per channel.

    A BatchNorm synchronised over several processes sees the values of all of them and passes.

    Raises:
        ValueError: in one line that says what to use instead.
    """
    if not (isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.training) or x.numel() != x.shape[1]:
        return
    parallel = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    if type(norm) is nn.BatchNorm2d or not parallel:
        raise ValueError(
            f"BatchNorm cannot train on one value per channel (map {tuple(x.shape)}): "
            'use NORM "GN" (or eval-mode BN), or a larger batch'
        )
