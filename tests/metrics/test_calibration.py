"""The calibration error against its definition, bin by bin."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from seg_ext.metrics import calibration_counts, expected_calibration_error

IGNORE, BINS = 255, 15


@st.composite
def predictions(draw):
    size = draw(st.integers(1, 40))
    sure = draw(hnp.arrays(np.float64, size, elements=st.floats(0, 1)))
    pred = draw(hnp.arrays(np.int64, size, elements=st.integers(0, 2)))
    target = draw(hnp.arrays(np.int64, size, elements=st.sampled_from([0, 1, 2, IGNORE])))
    return sure, pred, target


def ece_by_bins(sure, pred, target):
    counted = target != IGNORE
    sure, right = sure[counted], (pred == target)[counted]
    error = 0.0
    for b in range(BINS):
        lowest = -1 if b == 0 else b
        inside = [i for i, s in enumerate(sure) if lowest < s * BINS <= b + 1]
        if inside:
            error += len(inside) / len(sure) * abs(right[inside].mean() - sure[inside].mean())
    return error if len(sure) else float("nan")


@settings(max_examples=60)
@given(predictions())
def test_the_error_equals_a_loop_over_bins(arrays):
    found = expected_calibration_error(calibration_counts(*arrays, ignore=IGNORE))
    np.testing.assert_allclose(found, ece_by_bins(*arrays), rtol=0, atol=1e-12)


@settings(max_examples=20)
@given(predictions(), predictions())
def test_counts_of_two_images_add_up(first, second):
    both = [np.concatenate(pair) for pair in zip(first, second, strict=True)]
    total = sum(calibration_counts(*arrays, ignore=IGNORE) for arrays in (first, second))
    np.testing.assert_allclose(calibration_counts(*both, ignore=IGNORE), total, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("sure", "right", "error"), [(1.0, True, 0.0), (1.0, False, 1.0), (0.75, True, 0.25)])
def test_a_sure_and_right_prediction_has_no_error_and_a_sure_and_wrong_one_all(sure, right, error):
    pred = np.zeros(8, int)
    counts = calibration_counts(np.full(8, sure), pred, pred if right else pred + 1, ignore=IGNORE)
    assert expected_calibration_error(counts) == error


def test_a_prediction_as_sure_as_it_is_right_has_none():
    pred, target = np.zeros(4, int), np.array([0, 0, 0, 1])
    assert expected_calibration_error(calibration_counts(np.full(4, 0.75), pred, target, ignore=IGNORE)) == 0


def test_input_at_fault_is_named():
    zeros = np.zeros(3, int)
    with pytest.raises(ValueError, match="1.5.*0..1"):
        calibration_counts(np.full(3, 1.5), zeros, zeros, ignore=IGNORE)
    with pytest.raises(ValueError, match="nan"):
        calibration_counts(np.full(3, np.nan), zeros, zeros, ignore=IGNORE)
    with pytest.raises(ValueError, match=r"\(2,\).*\(3,\)"):
        calibration_counts(np.ones(2), zeros, zeros, ignore=IGNORE)
