"""COCO's run lengths: sums against pycocotools' strings, and strings at fault."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as rle

from seg_ext.metrics.rle import rle_totals

masks = hnp.arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40)), elements=st.integers(0, 1))


def encoded(mask):
    return rle.encode(np.asfortranarray(mask))["counts"]


@given(st.lists(masks, max_size=4))
def test_whole_strings_fill_their_images(shapes):
    assert rle_totals([encoded(mask) for mask in shapes]).tolist() == [mask.size for mask in shapes]


def test_long_runs_are_numbers_of_several_characters():
    shapes = [np.zeros((3000, 4000), np.uint8), np.ones((700, 900), np.uint8)]
    shapes[0][2000:2900, 17:3000] = 1
    assert rle_totals([encoded(mask) for mask in shapes]).tolist() == [mask.size for mask in shapes]


def test_strings_at_fault_are_told_apart_from_their_neighbours():
    whole = encoded(np.eye(20, dtype=np.uint8))
    negative = [b"5N57", b"5551I1"]  # runs 5, -2, 5, -2 + 7 and 5, 5, 5, 5 + 1, 5 - 7, 6 + 1
    strings = [whole, whole[:-4], b"", whole + b"~~", whole + b"p", whole + b"P", b"Q" * 40 + b"0", *negative, whole]
    totals = rle_totals(strings).tolist()
    assert totals[0] == totals[-1] == 400 and totals[2] == 0
    assert totals[1] not in (-1, 400) and totals[3:-1] == [-1] * 6
