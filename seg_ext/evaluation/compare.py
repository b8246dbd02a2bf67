"""Differences between two evaluations of the same data, with bootstrap intervals over images (Efron, 1979)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from seg_ext.errors import UserError
from seg_ext.evaluation import HEADLINES
from seg_ext.evaluation.bootstrap import means_of_known, paired_intervals
from seg_ext.evaluation.figures import BAR_METRICS, differences_picture
from seg_ext.evaluation.output_files import replacing, write_picture
from seg_ext.evaluation.per_image import FILE, ImageCounts, read_counts
from seg_ext.evaluation.per_image_matches import MATCHED_TASKS, match_intervals
from seg_ext.evaluation.report import Report, Scores, read_results
from seg_ext.metrics import class_quality, class_scores

_MOST_CLASSES = 40  # in the table, those of greatest change


@dataclass(frozen=True)
class Row:
    """One score of both runs, in percent; the interval is nan where no file of images tells it."""

    task: str
    metric: str
    first: float
    second: float
    low: float = float("nan")
    high: float = float("nan")

    @property
    def difference(self) -> float:
        """Second less first, percentage points."""
        return self.second - self.first

    @property
    def certain(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


def compare(
    first: str | Path, second: str | Path, *, resamples: int = 2000, confidence: float = 95.0, seed: int = 0
) -> dict[str, list[Row]]:
    """Every score that two runs share, by data set.

    Where both runs kept counts or matches of images, the images are drawn again, with replacement and the same for both
    runs, and the interval holds the middle of the differences.

    Args:
        first: folder of a run, or its results.json.
        second: likewise.
        resamples: times the images are drawn.
        confidence: percent of the differences in the interval.
        seed: of the draws.

    Raises:
        UserError: results that are none, share no score, or are of different data or classes.
    """
    runs = [read_results(path) for path in (first, second)]
    names = [name for name in runs[0].scores if name in runs[1].scores]
    if not names:
        raise UserError(
            f"{first} and {second} share no data set: {', '.join(runs[0].scores)}; {', '.join(runs[1].scores)}"
        )
    found = {}
    for name in names:
        _check_same_data(name, runs, (first, second))
        intervals: dict[tuple[str, str], tuple[float, float]] = {}
        for task in (*SCORES_OF_COUNTS, *MATCHED_TASKS):
            files = [_counts_file(path, run, name, task) for path, run in zip((first, second), runs, strict=True)]
            if all(file.is_file() for file in files):
                intervals_of = match_intervals if task in MATCHED_TASKS else _count_intervals
                ends = intervals_of(files, resamples=resamples, confidence=confidence, seed=seed)
                intervals |= {(task, metric): interval for metric, interval in ends.items()}
        found[name] = _rows(runs[0].scores[name], runs[1].scores[name], intervals)
        if not found[name]:
            raise UserError(f"{first} and {second} share no score of data set {name}")
    return found


def bootstrap(
    first: ImageCounts, second: ImageCounts, *, resamples: int, confidence: float, seed: int
) -> dict[str, tuple[float, float]]:
    """Intervals of the differences between two runs' scores of one task, in percentage points, by metric.

    Args:
        first: of each image.
        second: of the same images.
        resamples: R; memory grows with R times the number of metrics.
        confidence: percent.
        seed: of the draws.
    """
    scores = [partial(_scores_of_draws, run) for run in (first, second)]
    return paired_intervals(scores, len(first.images), resamples=resamples, confidence=confidence, seed=seed)


def semantic_of_counts(counts: np.ndarray, names: Sequence[str], things: int | None = None) -> dict[str, np.ndarray]:
    """Semantic scores in percent, each (R,), by the names of the evaluator's results.

    Args:
        counts: (R, K, 3) correct, ground-truth and predicted pixels.
        names: of the K classes.
        things: of no use here.
    """
    correct, truth, _ = np.moveaxis(counts, -1, 0)
    per_class = {m: 100 * values for m, values in zip(("IoU", "ACC", "Dice"), class_scores(counts), strict=True)}
    total = truth.sum(axis=1)
    scores = {f"m{metric}": means_of_known(values) for metric, values in per_class.items()}
    weighted = {"fwIoU": np.nansum(truth * per_class["IoU"], axis=1), "pACC": 100 * correct.sum(axis=1)}
    for key, value in weighted.items():
        scores[key] = np.divide(value, total, out=np.full(len(counts), np.nan), where=total > 0)
    return scores | {f"{m}-{name}": values[:, i] for m, values in per_class.items() for i, name in enumerate(names)}


def panoptic_of_counts(counts: np.ndarray, names: Sequence[str], things: int | None = None) -> dict[str, np.ndarray]:
    """Panoptic scores likewise.

    Args:
        counts: (R, K, 4) sum of IoU, TP, FP and FN.
        names: of the K classes, things first.
        things: how many are things; None for all.
    """
    found = class_quality(*np.moveaxis(counts, -1, 0))
    per_class = {metric: 100 * values for metric, values in zip(("PQ", "SQ", "RQ"), found, strict=True)}
    groups = {"": slice(None), "_th": slice(things), "_st": slice(len(names) if things is None else things, None)}
    scores = {
        f"{metric}{suffix}": means_of_known(values[:, group])
        for metric, values in per_class.items()
        for suffix, group in groups.items()
    }
    return scores | {f"{m}-{name}": values[:, i] for m, values in per_class.items() for i, name in enumerate(names)}


SCORES_OF_COUNTS: dict[str, Callable[[np.ndarray, Sequence[str], int | None], dict[str, np.ndarray]]] = {
    "sem_seg": semantic_of_counts,
    "panoptic_seg": panoptic_of_counts,
}


def comparison_table(rows: Sequence[Row]) -> str:
    """The headline scores, then the classes, of greatest change first; "*" where the interval leaves out 0."""
    headlines = {(task, metric) for task, metric, _ in HEADLINES}
    whole = [row for row in rows if (row.task, row.metric) in headlines]
    classes = sorted((row for row in rows if _is_class(row)), key=lambda row: -abs(row.difference))
    lines = [
        [row.task, row.metric[:28], f"{row.first:.2f}", f"{row.second:.2f}", f"{row.difference:+.2f}", _interval(row)]
        for row in [*whole, *classes[:_MOST_CLASSES]]
    ]
    align = ("left", "left", "right", "right", "right", "left")
    table = tabulate(lines, ["task", "score", "A", "B", "B - A", "interval"], colalign=align, disable_numparse=True)
    left_out = len(classes) - _MOST_CLASSES
    return f"{table}\n{left_out} classes of smaller change are left out" if left_out > 0 else table


def write_comparison(folder: Path, found: Mapping[str, Sequence[Row]]) -> list[Path]:
    """Write ``compare.json`` with all rows, and a picture of each data set's; returns the paths.

    Raises:
        UserError: a file cannot be written.
    """
    paths = [folder / "compare.json"]
    content = {
        name: [
            {key: None if isinstance(value, float) and isnan(value) else value for key, value in asdict(row).items()}
            for row in rows
        ]
        for name, rows in found.items()
    }
    with replacing(paths[0]) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")
    for name, rows in found.items():
        shown = [row for row in rows if _is_class(row) and not isnan(row.difference)]
        tasks = {row.task for row in shown}
        lines = [
            (f"{r.metric} {r.task}" if len(tasks) > 1 else r.metric, r.difference, r.low, r.high) for r in shown
        ] or [(row.metric, row.difference, row.low, row.high) for row in rows if not isnan(row.difference)]
        paths.append(folder / (f"compare_{name}.png" if len(found) > 1 else "compare.png"))
        write_picture(paths[-1], differences_picture(lines, name))
    return paths


def _rows(first: Scores, second: Scores, intervals: Mapping[tuple[str, str], tuple[float, float]]) -> list[Row]:
    rows = []
    for task, metrics in first.items():
        for metric in [metric for metric in metrics if metric in second.get(task, {})]:
            values = metrics[metric], second[task][metric]
            rows.append(Row(task, metric, *values, *intervals.get((task, metric), ())))
    return rows


def _count_intervals(files: Sequence[Path], **draws: Any) -> dict[str, tuple[float, float]]:
    return bootstrap(*_counts_of_both(files), **draws)


def _scores_of_draws(run: ImageCounts, draws: np.ndarray) -> dict[str, np.ndarray]:
    sums = draws @ run.counts.reshape(len(run.images), -1).astype(np.float64, copy=False)
    return SCORES_OF_COUNTS[run.task](sums.reshape(-1, *run.counts.shape[1:]), run.classes, run.things)


def _counts_of_both(files: Sequence[Path]) -> tuple[ImageCounts, ImageCounts]:
    """Of the same images and classes.

    Raises:
        UserError: they are not, or a file cannot be read.
    """
    first, second = map(read_counts, files)
    same = [a == b for a, b in zip(first[:4], second[:4], strict=True)]
    if not all(same) or first.counts.shape != second.counts.shape or not first.images:
        raise UserError(f"{files[0]} and {files[1]} are of different images or classes; takes the same data set")
    return first, second


def _counts_file(path: str | Path, run: Report, name: str, task: str) -> Path:
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    return folder / (name if len(run.scores) > 1 else "") / FILE.format(task)


def _check_same_data(name: str, runs: Sequence[Report], paths: Sequence[str | Path]) -> None:
    prints = [run.about.get("data", {}).get(name, {}).get("sha256") for run in runs]
    if None not in prints and prints[0] != prints[1]:
        raise UserError(
            f"{paths[0]} and {paths[1]}: data set {name} had other images, labels or classes"
            f" ({str(prints[0])[:8]}, {str(prints[1])[:8]}); score both on the same data"
        )


def _is_class(row: Row) -> bool:
    return row.task in BAR_METRICS and row.metric.startswith(f"{BAR_METRICS[row.task]}-")


def _interval(row: Row) -> str:
    return "" if isnan(row.low) else f"{row.low:+.2f} to {row.high:+.2f}{' *' * row.certain}"
