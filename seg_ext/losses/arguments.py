"""Checks of the losses' arguments: one line on what was given and what fits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor


def check_number(name: str, value: Any, low: float, high: float = math.inf, *, above: bool = False) -> None:
    """Refuse what is no finite number from ``low`` (or ``above`` it) to ``high``.

    Raises:
        ValueError: saying what fits.
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not low <= value <= high or (above and value == low):
        limits = f" {'>' if above else '>='} {low:g}" + (f" and <= {high:g}" if math.isfinite(high) else "")
        raise ValueError(f"{name} {value!r}: takes a number{limits}")


def check_odd(name: str, value: Any, low: int) -> None:
    """Refuse what is no odd whole number from ``low`` on.

    Raises:
        ValueError: saying what fits.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < low or value % 2 == 0:
        raise ValueError(f"{name} {value!r}: takes an odd number >= {low}")


def check_choice(name: str, value: Any, choices: Sequence[Any]) -> None:
    """Refuse what is not one of ``choices``.

    Raises:
        ValueError: naming them.
    """
    if not any(value is choice or (isinstance(value, str) and value == choice) for choice in choices):
        raise ValueError(f"{name} {value!r}: takes {' or '.join(map(str, choices))}")


def check_weights(name: str, values: Any, count: int) -> None:
    """Refuse what is not ``count`` finite numbers >= 0 of which one is positive.

    Raises:
        ValueError: saying so.
    """
    fits = isinstance(values, Sequence) and not isinstance(values, str) and len(values) == count
    numbers = fits and all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in values)
    if not numbers or not all(0 <= x < math.inf for x in values) or not any(values):
        given = values if isinstance(values, str) or not fits or count <= 4 else f"of {count}"
        raise ValueError(f"{name} {given!r}: takes {count} numbers, none negative, not all 0")


def check_pixel_weight(weight: Tensor | None, target: Tensor) -> None:
    """Refuse weights of pixels that do not lie on the target's.

    Raises:
        ValueError: naming both shapes.
    """
    if weight is not None and weight.shape != target.shape:
        raise ValueError(f"weight {tuple(weight.shape)}: takes the target's shape {tuple(target.shape)}")
