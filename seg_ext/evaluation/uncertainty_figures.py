"""Figures of uncertainty: reliability diagram (Guo et al., 2017) and risk-coverage curve, as pictures."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from seg_ext.evaluation.figures import rendered
from seg_ext.evaluation.uncertainty import MEASURES
from seg_ext.metrics import area_under_risk, expected_calibration_error, kept_accuracy
from seg_ext.visualize import Array

_COLORS = ("#0969da", "#bf5b00", "#1a7f37")
_STEPS = np.arange(1, 201) / 200


def reliability_picture(counts: Array) -> Array:
    """(H, W, 3) RGB: accuracy and mean confidence of each bin of confidence, and how many pixels it has.

    Args:
        counts: (3, B) of :func:`seg_ext.metrics.calibration_counts`.
    """
    number, correct, confidence = counts
    used, bins = number > 0, counts.shape[1]
    edges = np.arange(bins) / bins
    figure = Figure(figsize=(5, 6), dpi=110, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    accuracy = np.divide(correct, number, out=np.zeros(bins), where=used)
    upper.bar(edges, accuracy, 1 / bins, align="edge", color=_COLORS[0], edgecolor="white", label="accuracy")
    upper.plot(confidence[used] / number[used], accuracy[used], "o", color=_COLORS[1], label="at mean confidence")
    upper.plot([0, 1], [0, 1], color="#57606a", linestyle="--", linewidth=1)
    error = 100 * expected_calibration_error(counts)
    upper.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1), title=f"expected calibration error {error:.2f} %")
    upper.legend(loc="upper left")
    lower.bar(edges, number / max(number.sum(), 1), 1 / bins, align="edge", color="#8c959f", edgecolor="white")
    lower.set(xlabel="confidence", ylabel="share of pixels")
    return rendered(figure)


def risk_coverage_picture(counts: Array) -> Array:
    """(H, W, 3) RGB: accuracy of the pixels that are kept when the most uncertain ones are left out, by measure.

    Args:
        counts: of :data:`seg_ext.evaluation.uncertainty.SHAPE`.
    """
    figure = Figure(figsize=(6, 4.5), dpi=110, layout="constrained")
    axes = figure.subplots()
    for name, found, color in zip(MEASURES, counts, _COLORS, strict=True):
        if found.any():
            label = f"{name.replace('_', ' ')}: AURC {100 * area_under_risk(found):.2f} %"
            axes.plot(100 * (1 - _STEPS), 100 * kept_accuracy(found, _STEPS), color=color, label=label)
    axes.set(xlabel="most uncertain pixels left out, %", ylabel="accuracy of the others, %", xlim=(0, 100))
    axes.grid(color="#eeeeee")
    if axes.lines:
        axes.legend(loc="upper left")
    return rendered(figure)
