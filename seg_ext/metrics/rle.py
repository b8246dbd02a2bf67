"""COCO's compressed run lengths: how many pixels a string of them stands for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_MOST_DIGITS = 12  # five bits each, in 64


def rle_totals(counts: Sequence[bytes]) -> np.ndarray:
    """Sum of the runs that each of N of COCO's compressed strings holds, all in one pass.

    A mask's runs must fill its image; decoders leave memory as it was where they do not. Six bits a character from
    ``0`` on: five of the number, low ones first, and one that says that it goes on; the last of them is the sign. From
    the fourth on, a number is the difference to the one before the last.

    Returns:
        (N,) int64; -1 for a string with another character or a run below 0, or that ends within a number.
    """
    lengths = np.array([len(string) for string in counts], np.int64)
    bits = np.frombuffer(b"".join(counts), np.uint8).astype(np.int64) - 48
    if not bits.size:
        return np.zeros(len(counts), np.int64)
    owner = np.repeat(np.arange(len(counts)), lengths)
    wrong = np.zeros(len(counts), bool)
    wrong[owner[(bits < 0) | (bits > 63)]] = True
    last, final = bits & 32 == 0, np.cumsum(lengths)[lengths > 0] - 1
    wrong[owner[final[~last[final]]]] = True
    last[final] = True
    ends = np.flatnonzero(last)
    starts = np.append(0, ends[:-1] + 1)
    digits = ends - starts + 1
    wrong[owner[starts[digits > _MOST_DIGITS]]] = True
    place = np.minimum(np.arange(len(bits)) - np.repeat(starts, digits), _MOST_DIGITS)
    numbers = np.add.reduceat((bits & 31) << 5 * place, starts)
    numbers -= np.where(bits[ends] & 16, np.int64(1) << 5 * np.minimum(digits, _MOST_DIGITS), 0)
    string = owner[starts]
    runs = np.bincount(string, minlength=len(counts))
    index = np.arange(len(numbers)) - (np.cumsum(runs) - runs)[string]
    chain = 3 * string + np.where(index > 0, 1 + index % 2, 0)  # numbers whose sum so far is a run
    order = np.argsort(chain, kind="stable")
    sums = np.cumsum(numbers[order])
    heads = np.flatnonzero(np.diff(chain[order], prepend=-1))
    sums -= np.repeat(sums[heads] - numbers[order][heads], np.diff(heads, append=len(order)))
    wrong[string[order[sums < 0]]] = True
    totals = np.bincount(string[order], weights=sums, minlength=len(counts))
    return np.where(wrong, -1, totals).astype(np.int64)
