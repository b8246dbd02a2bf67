"""Figures of an evaluation: confusion matrix and differences as pictures, bars and precision-recall curves as HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from math import isnan

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from seg_ext.visualize import Array

BAR_METRICS = {"sem_seg": "IoU", "bbox": "AP", "segm": "AP", "panoptic_seg": "PQ"}  # by task, of each class
_MOST_NUMBERS, _MOST_NAMES = 25, 60  # classes of a matrix with its numbers written, and with its names
_MOST_ROWS = 80  # of differences
_CURVES = {0: "IoU 0.50", 5: "IoU 0.75"}  # by index of the threshold
_COLORS = ("#0969da", "#bf5b00")
_HEX = "#24292f"


def confusion_picture(confusion: Array, names: Sequence[str]) -> Array:
    """(H, W, 3) RGB: where the pixels of each ground-truth class went, in percent of its row.

    Args:
        confusion: (K, K+1) counts, rows ground truth, the last column no class.
        names: of the K classes.
    """
    count = len(names)
    totals = confusion.sum(axis=1, keepdims=True)
    shares = np.divide(100.0 * confusion, totals, out=np.full(confusion.shape, np.nan), where=totals > 0)
    heads = [*names, "no class"] if confusion[:, count:].any() else list(names)
    shares = shares[:, : len(heads)]
    side = max(4.0, 0.34 * count if count <= _MOST_NAMES else 9.0)
    figure = Figure(figsize=(side + 2.5, side + 1.5), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("#dddddd")  # of absent classes
    axes.imshow(np.ma.masked_invalid(shares), cmap="Blues", vmin=0, vmax=100, interpolation="nearest")
    axes.set(xlabel="prediction", ylabel="ground truth", title="% of the ground truth's pixels")
    if count <= _MOST_NAMES:
        axes.set_xticks(range(len(heads)), [_short(name) for name in heads], rotation=90, fontsize=8)
        axes.set_yticks(range(count), [_short(name) for name in names], fontsize=8)
    if count <= _MOST_NUMBERS:
        for (row, column), share in np.ndenumerate(shares):
            if share >= 0.5:
                color = "white" if share > 55 else _HEX
                axes.text(column, row, f"{share:.0f}", ha="center", va="center", fontsize=7, color=color)
    return rendered(figure)


def differences_picture(rows: Sequence[tuple[str, float, float, float]], title: str) -> Array:
    """(H, W, 3) RGB: differences with their intervals, a line each.

    Args:
        rows: name, difference, and ends of its interval, nan where there is none; of many, those of greatest change
            are shown.
        title: above them.
    """
    chosen = sorted(rows, key=lambda row: -abs(row[1]))[:_MOST_ROWS]
    chosen.sort(key=lambda row: row[1])
    figure = Figure(figsize=(8, 1.4 + 0.24 * len(chosen)), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color="#999999", linewidth=1)
    for place, (_, difference, low, high) in enumerate(chosen):
        certain = low > 0 or high < 0
        color = (_COLORS[0] if difference > 0 else _COLORS[1]) if certain else "#888888"
        if not isnan(low):
            axes.plot([low, high], [place, place], color=color, linewidth=2)
        axes.plot([difference], [place], "o", color=color, markersize=5)
    axes.set_yticks(range(len(chosen)), [_short(name) for name, *_ in chosen], fontsize=8)
    axes.set(title=title, xlabel="B - A, percentage points", ylim=(-0.8, len(chosen) - 0.2))
    axes.grid(axis="x", color="#eeeeee")
    axes.set_axisbelow(True)
    return rendered(figure)


def bars_html(results: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    """A block of bars for each task that has scores of classes, by heading; the best first, absent ones last.

    Another has mIoU near boundaries, by the width of the trimap, where there is any.
    """
    blocks = {}
    for task, metric in BAR_METRICS.items():
        found = results.get(task, {})
        values = {k.removeprefix(f"{metric}-"): v for k, v in found.items() if k.startswith(f"{metric}-")}
        if values:
            ranked = sorted(values.items(), key=lambda item: (isnan(item[1]), -item[1]))
            blocks[f"{metric} of the classes ({task})"] = "".join(_bar(name, value) for name, value in ranked)
    near = {k.split("@")[1]: v for k, v in results.get("sem_seg", {}).items() if k.startswith("TrimapIoU@")}
    if near:
        block = "".join(_bar(f"within {width} px", value) for width, value in near.items())
        blocks["mIoU near boundaries (sem_seg)"] = block
    return {heading: f'<div class="bars">{block}</div>' for heading, block in blocks.items()}


def curves_html(precision: Mapping[str, Array]) -> dict[str, str]:
    """Precision over recall for each task, mean of the classes, by heading.

    Args:
        precision: task -> (T, 101, K) at COCO's IoU thresholds and recalls; -1 where there is no ground truth.
    """
    blocks = {}
    for task, found in precision.items():
        known = found.max(axis=(0, 1), initial=-1) > -1 if found.size else np.zeros(0, bool)
        if not known.any():
            continue
        means = np.clip(found[:, :, known], 0, None).mean(axis=2)
        drawn = {text: means[i] for i, text in _CURVES.items() if i < len(means)}
        blocks[f"Precision and recall ({task})"] = _svg(drawn)
    return blocks


def _bar(name: str, value: float) -> str:
    width, text = (0.0, "–") if isnan(value) else (min(max(value, 0.0), 100.0), f"{value:.2f}")
    return f'<span title="{escape(name)}">{escape(name)}</span><i><b style="width:{width:.2f}%"></b></i><em>{text}</em>'


def _svg(curves: Mapping[str, Array]) -> str:
    """Curves on a grid of tenths; x is recall, y precision, both up to 1."""
    lines = "".join(
        f'<path d="M{40 + 30 * i} 10v300M40 {10 + 30 * i}h300" class="grid"/>' for i in range(11)
    )  # 300 x 300 pixels
    for text, anchor, x, y in (
        ("0", "end", 36, 324), ("1", "end", 36, 18), ("1", "middle", 340, 326),
        ("recall", "middle", 190, 330), ("precision", "start", 44, 24),
    ):  # fmt: skip
        lines += f'<text x="{x}" y="{y}" text-anchor="{anchor}">{text}</text>'
    for (label, values), color, row in zip(curves.items(), _COLORS, (0, 1), strict=False):
        points = " ".join(f"{40 + 3 * i:.1f},{310 - 300 * float(v):.1f}" for i, v in enumerate(values))
        lines += f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>'
        lines += f'<text x="52" y="{280 + 18 * row}" fill="{color}">{label}: {100 * float(values.mean()):.2f}</text>'
    return f'<svg viewBox="0 0 360 340" role="img" aria-label="precision over recall">{lines}</svg>'


def _short(name: str) -> str:
    return name if len(name) <= 28 else f"{name[:27]}…"


def rendered(figure: Figure) -> Array:
    """A figure as (H, W, 3) RGB."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
