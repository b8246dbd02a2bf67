"""What every decoder demands of its arguments, each demand one ValueError line."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from seg_ext.layers import FeatureSpec

INDICES = "_indices"
"""Ends the names of maps that hold the places of maxima, which are no features."""


def check_features(
    decoder: str,
    in_features: dict[str, FeatureSpec],
    num_classes: int,
    *,
    at_least: int = 1,
    at_most: int | None = None,
    offsets: bool = False,
    indices: bool = False,
) -> None:
    """Raise unless there are as many features as the decoder takes, shallow to deep, and at least one class.

    Args:
        decoder: its name, for the message.
        in_features: as given to the decoder.
        num_classes: as given to the decoder.
        at_least: fewest features.
        at_most: most features, None for any number.
        offsets: whether the decoder can place maps whose grid does not begin at the image's first pixel.
        indices: whether it takes pooling indices.

    Raises:
        ValueError: what was given and what the decoder takes.
    """
    names = list(in_features)
    if len(names) < at_least or (at_most is not None and len(names) > at_most):
        number = f"exactly {at_least}" if at_least == at_most else f"{at_least} or more"
        raise ValueError(f"{decoder} takes {number} features (shallow to deep), not {names}")
    strides = {name: spec.stride for name, spec in in_features.items()}
    if any(deep % shallow for shallow, deep in pairwise(strides.values())):
        raise ValueError(
            f"{decoder} takes features ordered shallow to deep, each stride a multiple of the one before, not {strides}"
        )
    shifted = {name: spec.offset for name, spec in in_features.items() if spec.offset}
    if shifted and not offsets:
        raise ValueError(f"{decoder} takes features of offset 0, not {shifted}")
    if not indices and any(name.endswith(INDICES) for name in names):
        raise ValueError(f"{decoder} takes features, no pooling indices, not {names}")
    if num_classes < 1:
        raise ValueError(f"{decoder} takes num_classes >= 1, not {num_classes}")


def check_dropout(decoder: str, dropout: float) -> None:
    """Raise unless `dropout` is a probability below 1."""
    if not 0 <= dropout < 1:
        raise ValueError(f"{decoder} takes 0 <= dropout < 1, not {dropout}")


def check_sizes(decoder: str, name: str, values: Sequence[int]) -> None:
    """Raise unless every value of the argument `name` (rates, bins, channels) is an integer of at least 1."""
    if not isinstance(values, Sequence) or not all(_whole(value) for value in values):
        given = list(values) if isinstance(values, Sequence) else values
        raise ValueError(f"{decoder} takes {name} of integers >= 1, not {given}")


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def auxiliary_feature(decoder: str, in_features: dict[str, FeatureSpec], aux: str | bool | None) -> str | None:
    """Name of the feature under the auxiliary head: the one named, the second deepest for True, none for False or None.

    Raises:
        ValueError: no such feature above the deepest one.
    """
    if not aux:
        return None
    shallower = list(in_features)[:-1]
    if not shallower or (aux is not True and aux not in shallower):
        raise ValueError(f"{decoder} takes aux False or a feature above the deepest, of {shallower}, not {aux!r}")
    return shallower[-1] if aux is True else aux
