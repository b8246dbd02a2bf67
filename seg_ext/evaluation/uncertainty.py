"""What an evaluation says of uncertainty, and the maps of a prediction as files."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
import torch
from torch import Tensor

from seg_ext.errors import UserError
from seg_ext.evaluation.output_files import replacing, write_picture
from seg_ext.metrics import area_under_risk, kept_accuracy, risk_coverage_counts
from seg_ext.metrics.risk_coverage import BINS

MEASURES = ("entropy", "variance", "mutual_information")  # the first is known of every prediction
SHAPE = (len(MEASURES), 2, BINS)
KEPT = (95, 90, 80, 50)  # percent of the pixels
_NATS = ("entropy", "mutual_information")


def uncertainty_counts(
    output: Mapping[str, Any], pred: np.ndarray, target: np.ndarray, *, ignore: int, file_name: str = "an image"
) -> np.ndarray:
    """Counts of :func:`seg_ext.metrics.risk_coverage_counts` by measure, zero where the output does not have it.

    Args:
        output: of a predictor: ``sem_seg``, whose softmax has an entropy, and perhaps ``uncertainty``, maps by name.
        pred: (H, W) predicted ids.
        target: (H, W) ground truth.
        ignore: id in it that does not count.
        file_name: of the image, for the message.

    Raises:
        UserError: a map of another size than the prediction, or with values below 0 or nan.
    """
    maps: dict[str, Tensor] = {k: v for k, v in output.get("uncertainty", {}).items() if k in MEASURES[1:]}
    if "sem_seg" in output:
        maps["entropy"] = torch.special.entr(output["sem_seg"].float().softmax(0)).sum(0)
    counts = np.zeros(SHAPE, np.int64)
    for i, name in enumerate(MEASURES):
        if name in maps:
            values = maps[name].float().cpu().numpy()
            try:
                counts[i] = risk_coverage_counts(values, pred, target, ignore=ignore)
            except ValueError as error:
                raise UserError(f"{file_name}: map of {name}: {error}") from error
    return counts


def uncertainty_scores(counts: np.ndarray) -> dict[str, float]:
    """``KeptACC@90``, accuracy of the 90 % of pixels of least entropy, and AURC, the mean risk over all such shares.

    Those by other measures are called ``KeptACC-variance@90`` and so on, where there are any.

    Args:
        counts: of :data:`SHAPE`, the sum of :func:`uncertainty_counts` over the images.

    Returns:
        Fractions.
    """
    scores: dict[str, float] = {}
    for name, found in zip(MEASURES, counts, strict=True):
        if name == MEASURES[0] or found.any():
            suffix = "" if name == MEASURES[0] else f"-{name}"
            accuracies = kept_accuracy(found, [share / 100 for share in KEPT])
            scores |= {f"KeptACC{suffix}@{share}": float(x) for share, x in zip(KEPT, accuracies, strict=True)}
            scores[f"AURC{suffix}"] = area_under_risk(found)
    return scores


def write_uncertainty(
    folder: str | os.PathLike[str], stem: str, maps: Mapping[str, Tensor], *, classes: int | None = None
) -> None:
    """Write each map as ``<stem>_<name>.tif``, float32 as it is, and ``<stem>_<name>.png``, dark to bright.

    A picture goes from 0 to the greatest value that its map could have, where that is known, so that pictures of
    several images compare; else to the greatest it has.

    Args:
        folder: made if it is missing.
        stem: of the files.
        maps: (H, W) floats by name, such as a predictor's ``uncertainty``.
        classes: K: bounds entropy and mutual information by log K.

    Raises:
        UserError: a file cannot be written.
    """
    for name, values in maps.items():
        array = values.detach().float().cpu().numpy()
        with replacing(Path(folder) / f"{stem}_{name}.tif") as path:
            tifffile.imwrite(path, array, compression="zlib")
        bound = math.log(classes) if classes and name in _NATS else float(array.max(initial=0))
        scaled = (array * (255 / bound if bound > 0 else 0)).clip(0, 255).astype(np.uint8)
        colored = cv2.applyColorMap(scaled, cv2.COLORMAP_INFERNO)[..., ::-1]
        write_picture(Path(folder) / f"{stem}_{name}.png", colored)
