"""Label pictures in colour: each pixel's exact colour is looked up in the data set's table."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seg_ext.errors import UserError

Color = tuple[int, int, int]
Colors = Mapping[Any, int] | Sequence[Any]  # of colours (R, G, B) or "#rrggbb"

_UNKNOWN = -1


def color_table(colors: Colors) -> dict[Color, int]:
    """Colour -> train id, also of a list of colours, which are those of 0, 1, ...; "#rrggbb" is a colour too.

    Raises:
        ValueError: no colours, one that is not three numbers of 0..255, one that is listed twice, or no id >= 0.
    """
    given = colors.items() if isinstance(colors, Mapping) else [(color, i) for i, color in enumerate(colors)]
    table: dict[Color, int] = {}
    for color, train in given:
        hexadecimal = isinstance(color, str) and re.fullmatch("#[0-9a-fA-F]{6}", color)
        given_values = bytes.fromhex(color[1:]) if hexadecimal else color
        values = tuple(given_values) if isinstance(given_values, Sequence) else ()
        if len(values) != 3 or not all(isinstance(v, int) and 0 <= v <= 255 for v in values):
            raise ValueError(f"label_colors has {color!r}; a colour is (R, G, B) of 0..255 or '#rrggbb'")
        if values in table:
            raise ValueError(f"label_colors has {values} twice; a colour stands for one id")
        if not isinstance(train, int) or train < 0:
            raise ValueError(f"label_colors maps {values} to {train!r}; a train id is a whole number from 0")
        table[values] = train
    if not table:
        raise ValueError("label_colors is empty; it names at least one colour")
    return table


def decode_colors(path: str | Path, pixels: NDArray[np.uint8], table: Mapping[Color, int]) -> NDArray[np.int32]:
    """Train ids of colours; alpha plays no part.

    Each channel's value is replaced by its rank among the table's values of that channel (0: none has it), and the
    three ranks together are the place in a small table of ids.

    Args:
        path: for the error.
        pixels: (H, W, 3) or (H, W, 4) RGB(A).
        table: of :func:`color_table`.

    Returns:
        (H, W).

    Raises:
        UserError: a colour that the table lacks, with its number of pixels and the nearest colour.
    """
    colors = np.array(list(table), np.intp)  # (n, 3)
    places, keys, size = np.zeros(pixels.shape[:2], np.int32), np.zeros(len(colors), np.int32), 1
    for channel in range(3):
        values = np.unique(colors[:, channel])
        rank = np.zeros(256, np.int32)  # times the number of places that the channels before it tell apart
        rank[values] = size * np.arange(1, values.size + 1)
        places += rank[pixels[..., channel]]
        keys += rank[colors[:, channel]]
        size *= values.size + 1
    ids = np.full(size, _UNKNOWN, np.int32)
    ids[keys] = list(table.values())
    labels = ids[places]
    if labels.min() == _UNKNOWN:
        raise UserError(f"{path}: {_unknown(pixels[labels == _UNKNOWN], colors, table)}")
    return labels


def _unknown(pixels: NDArray[Any], colors: NDArray[Any], table: Mapping[Color, int]) -> str:
    found, counts = np.unique(pixels[:, :3], axis=0, return_counts=True)
    color = found[counts.argmax()].astype(int)
    nearest = tuple(colors[((colors - color) ** 2).sum(axis=1).argmin()].tolist())
    more = f" ({len(found) - 1} more such colours)" if len(found) > 1 else ""
    return (
        f"colour {tuple(color.tolist())} of {counts.max()} pixels is not in label_colors{more};"
        f" the nearest is {nearest}, id {table[nearest]}"
    )
