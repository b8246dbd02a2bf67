"""Normalisation layers by their config name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from detectron2.layers import get_norm
from torch import nn

from seg_ext.errors import UserError
from seg_ext.layers import group_norm

NORMS = ("", "BN", "SyncBN", "FrozenBN", "GN", "nnSyncBN", "naiveSyncBN", "LN")


def norm_layer(name: str, key: str = "MODEL.SEM_SEG_HEAD.NORM") -> Callable[[int], nn.Module] | None:
    """The constructor of a normalisation layer from its number of channels; None for no normalisation.

    "GN" adapts its number of groups to the channels; the others are detectron2's.

    Raises:
        UserError: an unknown name; the message names the config ``key``.
    """
    if name not in NORMS:
        raise UserError(f"{key} {name!r}: takes one of {', '.join(repr(known) for known in NORMS)}")
    if not name:
        return None
    return group_norm if name == "GN" else partial(get_norm, name)
