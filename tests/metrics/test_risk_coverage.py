"""Accuracy of the least uncertain pixels against sorting them."""

import numpy as np
import pytest

from seg_ext.metrics import area_under_risk, kept_accuracy, risk_coverage_counts

IGNORE = 255


def drawn(seed: int, size: int = 600) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Uncertainties over 12 orders of magnitude, and predictions that are wrong where it is great."""
    rng = np.random.default_rng(seed)
    values = (10.0 ** rng.uniform(-9, 0.4, size)).astype(np.float32)
    target = rng.integers(0, 4, size)
    pred = np.where(rng.random(size) < values / 3, (target + 1) % 4, target)
    target[rng.random(size) < 0.1] = IGNORE
    return values, pred, target


def by_sorting(values: np.ndarray, pred: np.ndarray, target: np.ndarray, kept: int) -> float:
    counted = target != IGNORE
    order = np.argsort(values[counted])[:kept]
    return float((pred == target)[counted][order].mean())


def test_the_accuracy_is_that_of_the_sorted_pixels_within_a_bin() -> None:
    arrays = drawn(0)
    counts, total = risk_coverage_counts(*arrays, ignore=IGNORE), int((arrays[2] != IGNORE).sum())
    kept = np.arange(total // 10, total + 1)
    want = [by_sorting(*arrays, n) for n in kept]
    np.testing.assert_allclose(kept_accuracy(counts, kept / total), want, atol=0.01)
    assert want[0] == 1 > want[-1] + 0.03
    every = [1 - by_sorting(*arrays, n) for n in range(1, total + 1)]
    assert area_under_risk(counts) == pytest.approx(np.mean(every), abs=2e-3)


def test_counts_of_images_add_up_and_shapes_do_not_matter() -> None:
    first, second = drawn(1), drawn(2)
    both = [np.concatenate(pair).reshape(30, 40) for pair in zip(first, second, strict=True)]
    total = sum(risk_coverage_counts(*arrays, ignore=IGNORE) for arrays in (first, second))
    assert np.array_equal(risk_coverage_counts(*both, ignore=IGNORE), total)
    counted = np.concatenate([first[2], second[2]]) != IGNORE
    assert total[0].sum() == counted.sum() and (total[1] <= total[0]).all()


def test_pixels_of_one_uncertainty_are_mixed() -> None:
    pred, target = np.zeros(8, int), np.array([0, 0, 0, 1, 0, 0, 0, 1])
    counts = risk_coverage_counts(np.zeros(8), pred, target, ignore=IGNORE)
    np.testing.assert_allclose(kept_accuracy(counts, [0.1, 0.5, 1]), 0.75)


def test_uncertainties_a_hundredth_apart_are_told_apart_and_ordered() -> None:
    values = 1e-6 * 1.01 ** np.arange(1600)
    labels = np.arange(1600) % 2
    counts = risk_coverage_counts(values, labels, np.zeros(1600, int), ignore=IGNORE)
    assert counts[0].max() == 1
    assert np.array_equal(counts[1][counts[0] > 0], labels == 0)


def test_nothing_counted_is_nan() -> None:
    counts = risk_coverage_counts(np.ones(3), np.zeros(3, int), np.full(3, IGNORE), ignore=IGNORE)
    assert np.isnan(kept_accuracy(counts, [0.5])).all() and np.isnan(area_under_risk(counts))


def test_bad_values_are_refused() -> None:
    labels = np.zeros(2, int)
    for values in (np.array([0.1, -0.1]), np.array([np.nan, 0])):
        with pytest.raises(ValueError, match="takes those of 0 or greater"):
            risk_coverage_counts(values, labels, labels, ignore=IGNORE)
    with pytest.raises(ValueError, match="takes equal ones"):
        risk_coverage_counts(np.zeros(3), labels, labels, ignore=IGNORE)
    with pytest.raises(ValueError, match="above 0 and up to 1"):
        kept_accuracy(np.ones((2, 4)), [0.0])
    assert risk_coverage_counts(np.array([-0.0, 0.0]), labels, labels, ignore=IGNORE)[0, 0] == 2
