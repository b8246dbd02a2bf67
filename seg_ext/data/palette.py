"""Colours for class ids: the bit palette of Pascal VOC (2007), distinct for every id and the same on every machine."""

from __future__ import annotations


def palette(n: int) -> list[tuple[int, int, int]]:
    """RGB colours of the ids 0..n-1; id 0 is black.

    Bits 0, 3, 6, ... of an id become the high to low bits of red, bits 1, 4, 7, ... of green, 2, 5, 8, ... of blue.
    """
    return [(_channel(i), _channel(i >> 1), _channel(i >> 2)) for i in range(n)]


def _channel(bits: int) -> int:
    return sum((bits >> 3 * place & 1) << 7 - place for place in range(8))
