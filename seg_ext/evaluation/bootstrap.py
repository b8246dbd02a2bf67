"""Intervals of the differences between two runs' scores, by drawing images with replacement (Efron, 1979)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

ScoresOfDraws = Callable[[np.ndarray], Mapping[str, np.ndarray]]  # (R, N) -> metric -> (R,)
_MOST_DRAWS = 256  # at once
_DRAWN = 2**22  # numbers at once


def paired_intervals(
    scores: Sequence[ScoresOfDraws], images: int, *, resamples: int, confidence: float, seed: int
) -> dict[str, tuple[float, float]]:
    """Middle of the differences by metric, in the scores' unit; nan where no draw has a score of both runs.

    Args:
        scores: of the first and the second run: of (R, N) how often each image is drawn, (R,) of each metric.
        images: N; each sample draws as many, the same for both runs.
        resamples: samples; memory grows with their number times that of the metrics.
        confidence: percent of the differences in the interval.
        seed: of the draws.
    """
    generator, share = np.random.default_rng(seed), np.full(images, 1 / images)
    step = max(1, min(_MOST_DRAWS, _DRAWN // images))
    differences: dict[str, list[np.ndarray]] = {}
    for start in range(0, resamples, step):
        draws = generator.multinomial(images, share, size=min(step, resamples - start))
        first, second = (of_draws(draws) for of_draws in scores)
        for metric, values in first.items():
            differences.setdefault(metric, []).append(second[metric] - values)
    tail = (100 - confidence) / 2
    ends = {}
    for metric, parts in differences.items():
        known = np.concatenate(parts)
        known = known[~np.isnan(known)]  # draws without a pixel or an object of the class
        low, high = np.percentile(known, [tail, 100 - tail]) if known.size else (np.nan, np.nan)
        ends[metric] = (float(low), float(high))
    return ends


def means_of_known(values: np.ndarray) -> np.ndarray:
    """(R,) means of those of (R, K) that are not nan, nan without any."""
    known = ~np.isnan(values)
    number = known.sum(axis=1)
    total = np.where(known, values, 0).sum(axis=1)
    return np.divide(total, number, out=np.full(len(values), np.nan), where=number > 0)
