"""What an evaluation leaves beside its scores: confusion matrices, counts and matches of every image, and the page."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from seg_ext.evaluation.figures import bars_html, confusion_picture, curves_html
from seg_ext.evaluation.gallery import Gallery
from seg_ext.evaluation.instance import InstanceEvaluator
from seg_ext.evaluation.output_files import write_picture
from seg_ext.evaluation.panoptic import PanopticEvaluator
from seg_ext.evaluation.per_image import FILE, PerImageFile
from seg_ext.evaluation.per_image_matches import MatchFiles
from seg_ext.evaluation.report import write_confusion
from seg_ext.evaluation.semantic import SemanticEvaluator
from seg_ext.evaluation.uncertainty_figures import reliability_picture, risk_coverage_picture

_FIGURES = {  # by metric: title, file, and what draws its counts
    "calibration": ("Reliability", "reliability.png", reliability_picture),
    "uncertainty": ("Risk and coverage", "risk_coverage.png", risk_coverage_picture),
}
_log = logging.getLogger(__name__)


class Artifacts:
    """Writes ``confusion.csv`` and ``.png``, ``per_image_<task>.jsonl`` and ``gallery/index.html`` beside the scores.

    With the metrics "calibration" and "uncertainty" also ``reliability.png`` and ``risk_coverage.png``.

    Attributes:
        chain: the evaluators, and those that only write.

    Args:
        dataset_name: of the data set.
        evaluators: that score it.
        folder: of the run.
        several: whether the run scores more data sets; then each has a folder of its own.
        gallery: worst images on the page, with a quarter as many of the best; 0 for no page.
        per_image: keep the counts and matches of every image, for ``seg-ext compare``.
    """

    def __init__(
        self,
        dataset_name: str,
        evaluators: Sequence[DatasetEvaluator],
        folder: Path,
        *,
        several: bool = False,
        gallery: int = 0,
        per_image: bool = False,
    ) -> None:
        sub = dataset_name if several else ""
        self._folder, self._evaluators = folder / sub, evaluators
        self._semantic = [e for e in evaluators if isinstance(e, SemanticEvaluator)]
        best = -(-gallery // 4)
        self._gallery = Gallery(dataset_name, folder / "gallery" / sub, limit=gallery, best=best) if gallery else None
        self.chain = [*evaluators, self._gallery] if self._gallery else list(evaluators)
        self._counts: list[PerImageFile | MatchFiles] = []
        for evaluator in evaluators if per_image else ():
            if isinstance(evaluator, SemanticEvaluator | PanopticEvaluator):
                task = "sem_seg" if isinstance(evaluator, SemanticEvaluator) else "panoptic_seg"
                things = getattr(evaluator, "things", None)
                file = PerImageFile(self._folder / FILE.format(task), task, evaluator.class_names, things)
                evaluator.on_image = file
                self._counts.append(file)
            elif isinstance(evaluator, InstanceEvaluator):
                evaluator.on_matches = MatchFiles(self._folder)
                self._counts.append(evaluator.on_matches)

    def write(self, results: Mapping[str, Mapping[str, Any]]) -> None:
        """Write all of it, after every evaluator gave its results; call it in every process.

        Raises:
            UserError: a file cannot be written.
        """
        written = {path for file in self._counts for path in file.finish()}
        if not comm.is_main_process():
            return
        for path in {*self._folder.glob(FILE.format("*"))} - written:  # of an earlier evaluation, of other scores
            path.unlink()
        pictures = {}
        for evaluator in self._semantic:
            picture = confusion_picture(evaluator.confusion, evaluator.class_names)
            write_confusion(self._folder / "confusion.csv", evaluator.confusion, evaluator.class_names)
            write_picture(self._folder / "confusion.png", picture)
            pictures["Confusion matrix"] = picture
            for metric, (title, name, draw) in _FIGURES.items():
                if metric in evaluator.totals:
                    pictures[title] = draw(evaluator.totals[metric])
                    write_picture(self._folder / name, pictures[title])
        if self._gallery:
            precision = {k: v for e in self._evaluators for k, v in getattr(e, "precision", {}).items()}
            figures = {**bars_html(results), **curves_html(precision)}
            page = self._gallery.write_summary(results, figures=figures, pictures=pictures)
            _log.info("gallery: %s", page)

    def __enter__(self) -> Artifacts:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """While images are processed: an error leaves nothing half-written."""
        for part in (self._gallery, *self._counts) if kind is not None else ():
            if part:
                part.discard()
