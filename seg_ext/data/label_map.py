"""From raw label ids to train ids: single ids and ranges of them, never expanded into a table of all ids."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
LabelMap = Mapping[Any, int]  # keys: an int, or an inclusive range such as "1-65535"
Intervals = tuple[Array, Array, Array]  # first ids, last ids, train ids

_RANGE = re.compile(r"(-?\d+)-(-?\d+)")
_TABLE = 1 << 16  # ids below are mapped through a table


def label_intervals(label_map: LabelMap) -> tuple[Intervals, Intervals]:
    """The ranges and the single ids of a label map, each ascending.

    Raises:
        ValueError: a key that is neither, ranges that overlap, or a train id that is no whole number from 0.
    """
    ranges, singles = [], []
    for key, train in label_map.items():
        match = _RANGE.fullmatch(key) if isinstance(key, str) else None
        if isinstance(key, int):
            singles.append((key, key, train))
        elif match and int(match[1]) <= int(match[2]):
            ranges.append((int(match[1]), int(match[2]), train))
        else:
            raise ValueError(f"label_map has {key!r}; its keys are ids, and ranges of ids such as '1-65535'")
        if not isinstance(train, int) or train < 0:
            raise ValueError(f"label_map has {key!r}: {train!r}; a train id is a whole number from 0")
    ranges.sort()
    for (_, end, _), (start, _, _) in pairwise(ranges):
        if start <= end:
            raise ValueError(f"label_map has two ranges with {start}; an id is in one range at most")
    first, second = (np.array(rows, np.int64).reshape(-1, 3).T for rows in (ranges, sorted(singles)))
    return (first[0], first[1], first[2]), (second[0], second[1], second[2])


def map_ids(raw: Array, intervals: tuple[Intervals, Intervals]) -> NDArray[np.int32]:
    """Train ids of raw ids; a single id goes before a range, and ids in neither stay.

    Args:
        raw: integers of at most 2^31 - 1, not empty.
        intervals: of :func:`label_intervals`.
    """
    if not any(starts.size for starts, _, _ in intervals):
        return raw.astype(np.int32)
    if raw.min() >= 0 and raw.max() < _TABLE:
        return _mapped(np.arange(int(raw.max()) + 1), intervals).astype(np.int32)[raw]
    return _mapped(raw.astype(np.int64), intervals).astype(np.int32)


def _mapped(ids: Array, intervals: tuple[Intervals, Intervals]) -> Array:
    mapped = ids
    for starts, ends, trains in intervals:
        if starts.size:
            place = np.searchsorted(starts, ids, side="right") - 1
            mapped = np.where((place >= 0) & (ids <= ends[place]), trains[place], mapped)
    return mapped
