"""Evaluator of boxes on PASCAL VOC's own XML annotations, detectron2's result keys (Everingham et al., 2010)."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from seg_ext.errors import UserError
from seg_ext.evaluation.ground_truth import RecordLookup
from seg_ext.evaluation.instance_scores import mean_of_seen
from seg_ext.metrics.voc_ap import VocMatches, box_iou, voc_ap, voc_matches

_THRESHOLDS = np.arange(50, 100, 5) / 100


class _Objects(NamedTuple):
    boxes: np.ndarray  # (G, 4) x0, y0, x1, y1, continuous coordinates
    classes: np.ndarray  # (G,)
    difficult: np.ndarray  # (G,) bool


class _Prediction(NamedTuple):
    image_id: str
    boxes: np.ndarray  # (n, 4) likewise
    classes: np.ndarray  # (n,)
    scores: np.ndarray  # (n,)


class VocBoxEvaluator(DatasetEvaluator):
    """AP, AP50 and AP75 of boxes by the rule of the set's year, AP50 by both rules and per class, in percent.

    2007 takes precision at 11 recalls, 2012 the area under the curve. Difficult objects do not count. An IoU must
    exceed the threshold, as in detectron2's PascalVOCDetectionEvaluator, which also rounds scores to three digits and
    boxes to one; here they stay as they are. Predictions are kept as small arrays, the one state that grows with the
    number of images.

    Args:
        dataset_name: its metadata give ``dirname``, ``split``, ``year`` and ``thing_classes``.
        distributed: score the predictions of all processes; otherwise each scores its own.

    Raises:
        UserError: metadata are missing, or a file cannot be read.
    """

    def __init__(self, dataset_name: str, *, distributed: bool = True) -> None:
        meta = MetadataCatalog.get(dataset_name)
        for key in ("dirname", "split", "year", "thing_classes"):
            if not meta.get(key):
                raise UserError(f"data set '{dataset_name}' has no {key} in its metadata")
        if meta.year not in (2007, 2012):
            raise UserError(f"data set '{dataset_name}' is of year {meta.year}: takes 2007 or 2012")
        self._names: Sequence[str] = meta.thing_classes
        self._points = 11 if meta.year == 2007 else None
        self._distributed = distributed
        self._records = RecordLookup(dataset_name)
        scores_here = not distributed or comm.is_main_process()
        self._truth = _read_truth(Path(meta.dirname), meta.split, self._names) if scores_here else None
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._predictions: list[_Prediction] = []

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Add a batch of images.

        Raises:
            UserError: instances or their boxes are missing, or a score or box is not finite.
        """
        for image, output in zip(inputs, outputs, strict=True):
            name = image.get("file_name")
            if "instances" not in output or not output["instances"].has("pred_boxes"):
                raise UserError(f"{name}: the model gives {sorted(output)}, takes instances with pred_boxes")
            found = output["instances"].to("cpu")
            boxes, scores = found.pred_boxes.tensor.double().numpy(), found.scores.double().numpy()
            if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
                raise UserError(f"{name}: scores or boxes are NaN; the model has diverged, take an earlier checkpoint")
            image_id = str(self._records.value(image, "image_id"))
            self._predictions.append(_Prediction(image_id, boxes, found.pred_classes.numpy().copy(), scores))

    def evaluate(self) -> dict[str, dict[str, float]]:
        """``{"bbox": {AP, AP50, AP75, AP50_07, AP50_12, AP50-<name>}}``; empty but on the main process.

        nan stands for a class without an object that is not difficult; means leave it out.

        Raises:
            UserError: predictions for an image or of a class that the ground truth does not know.
        """
        parts = comm.gather(self._predictions) if self._distributed else [self._predictions]
        if self._truth is None:
            return {}
        matches = self._matches(list(chain.from_iterable(parts)), self._truth)
        strict = {t: float(np.nextafter(t, 1)) for t in _THRESHOLDS.tolist()}
        aps = [
            voc_ap(matches, len(self._names), threshold=threshold, points=self._points) for threshold in strict.values()
        ]
        eleven, area = (voc_ap(matches, len(self._names), threshold=strict[0.5], points=p) for p in (11, None))
        scores = {"AP": float(np.mean([mean_of_seen(ap) for ap in aps]))}
        scores |= {"AP50": mean_of_seen(aps[0]), "AP75": mean_of_seen(aps[5])}
        scores |= {"AP50_07": mean_of_seen(eleven), "AP50_12": mean_of_seen(area)}
        per_class = zip(self._names, aps[0].tolist(), strict=True)
        return {"bbox": {**scores, **{f"AP50-{name}": 100 * ap for name, ap in per_class}}}

    def _matches(self, predictions: Sequence[_Prediction], truth: Mapping[str, _Objects]) -> VocMatches:
        found: dict[str, list[_Prediction]] = {image_id: [] for image_id in truth}
        for prediction in predictions:
            if prediction.image_id not in truth:
                raise UserError(f"image_id {prediction.image_id!r} was predicted, but the split has no such image")
            if ((prediction.classes < 0) | (prediction.classes >= len(self._names))).any():
                raise UserError(
                    f"image_id {prediction.image_id!r}: the model predicts classes {prediction.classes.min()}.."
                    f"{prediction.classes.max()}, the data set has {len(self._names)}"
                )
            found[prediction.image_id].append(prediction)
        return voc_matches(
            (x.classes, x.difficult, [(p.scores, p.classes, box_iou(p.boxes, x.boxes)) for p in found[image_id]])
            for image_id, x in truth.items()
        )


def _read_truth(folder: Path, split: str, names: Sequence[str]) -> dict[str, _Objects]:
    """Objects by image, in the order of the split's list."""
    path = folder / "ImageSets" / "Main" / f"{split}.txt"
    try:
        image_ids = [line.split()[0] for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}; takes the names of the split's images") from error
    if not image_ids:
        raise UserError(f"{path}: lists no image")
    return {image_id: _read_objects(folder / "Annotations" / f"{image_id}.xml", names) for image_id in image_ids}


def _read_objects(path: Path, names: Sequence[str]) -> _Objects:
    """Objects of the known classes. The files count pixels from 1, and both corners belong to the box."""
    boxes, classes, difficult = [], [], []
    try:
        for item in ElementTree.parse(path).iterfind("object"):
            corners = [float(item.findtext(f"bndbox/{side}", "")) for side in ("xmin", "ymin", "xmax", "ymax")]
            if item.findtext("name") in names:
                boxes.append([corners[0] - 1, corners[1] - 1, *corners[2:]])
                classes.append(names.index(item.findtext("name", "")))
                difficult.append(bool(int(item.findtext("difficult", "0"))))
    except (OSError, ElementTree.ParseError, ValueError) as error:
        raise UserError(f"{path}: not an annotation of PASCAL VOC: {error}") from error
    return _Objects(np.array(boxes, float).reshape(-1, 4), np.array(classes, int), np.array(difficult, bool))
