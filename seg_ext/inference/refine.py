"""Refinement of semantic predictions: DeepLab's dense CRF (Chen et al., 2015), then morphology on the labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from seg_ext.errors import UserError
from seg_ext.inference.contract import Predict
from seg_ext.modeling.seg_head import check_arguments
from seg_ext.postprocess import DenseCRF, Kernel, MorphologyChain

KEY = "TEST.REFINE"
STEPS = ("dense_crf", "morphology")
_LEAST = math.log(torch.finfo(torch.float32).tiny)  # of a log-probability


class Refiner:
    """Scores and the image they belong to as refined scores and, where morphology is asked for, labels.

    Args:
        steps: mappings with ``NAME``, one of :data:`STEPS`: dense_crf with arguments of :func:`build_dense_crf`;
            morphology with ``STEPS`` of :class:`seg_ext.postprocess.MorphologyChain`, after every dense_crf.
        num_classes: K, at least 2.

    Raises:
        UserError: an unknown step or argument, a value out of range, or a dense_crf after morphology.
    """

    def __init__(self, steps: Sequence[Mapping[str, Any]], *, num_classes: int) -> None:
        self._crfs: list[DenseCRF] = []
        self._chains: list[MorphologyChain] = []
        for step in steps:
            name, arguments = split_step(step)
            if name == "dense_crf" and self._chains:
                raise UserError(f"{KEY}: dense_crf after morphology; scores are refined first, labels come last")
            try:
                if name == "dense_crf":
                    self._crfs.append(build_dense_crf(num_classes, **arguments))
                elif arguments["STEPS"]:
                    self._chains.append(MorphologyChain(arguments["STEPS"], num_classes=num_classes))
            except (ValueError, TypeError) as error:
                raise UserError(f"{KEY} {name}: {error}") from error

    @torch.no_grad()
    def __call__(self, scores: Tensor, image: Tensor, *, labels: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Refine one image.

        Args:
            scores: (K, H, W) float, whose softmax is the probability.
            image: (B, H, W) of any number type, with the values that bandwidths are in the unit of.
            labels: (H, W), those that morphology begins with where no CRF changes the scores; None for their argmax.

        Returns:
            Log-probabilities (K, H, W) float32, or the scores themselves without a CRF; labels (H, W) int64, or those
            given without morphology.

        Raises:
            ValueError: sizes, classes or bands that do not match, or values that are not finite.
        """
        for crf in self._crfs:
            scores = crf.to(scores.device)(scores[None].float(), image[None].to(scores.device))[0]
        if self._crfs:
            scores, labels = scores.log_softmax(0).clamp_(min=_LEAST), None
        if not self._chains:
            return scores, labels
        found = scores.argmax(0) if labels is None else labels
        for chain in self._chains:
            found = chain(found)
        return scores, found


class Refine:
    """A predictor that refines what another one says, each image at the size of its output.

    The model's input is resized to that size where it has another one.
    """

    def __init__(self, predict: Predict, refiner: Refiner) -> None:
        """Hold both."""
        self._predict, self._refiner = predict, refiner

    def __call__(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Predict a batch of images.

        Raises:
            UserError: an output without semantic scores, or an image that the CRF cannot take.
        """
        outputs = self._predict(batched_inputs)
        return [self._refined(x, y) for x, y in zip(batched_inputs, outputs, strict=True)]

    def _refined(self, inputs: Mapping[str, Any], output: dict[str, Any]) -> dict[str, Any]:
        if "sem_seg" not in output:
            raise UserError(f"{KEY}: the model gives {', '.join(sorted(output))}; takes one with sem_seg")
        scores = output["sem_seg"]
        image = inputs["image"]
        if image.shape[-2:] != scores.shape[-2:]:
            image = F.interpolate(image[None].float(), scores.shape[-2:], mode="bilinear", antialias=True)[0]
        try:
            scores, labels = self._refiner(scores, image, labels=output.get("sem_seg_labels"))
        except ValueError as error:
            raise UserError(f"{inputs.get('file_name', 'an image')}: {KEY}: {error}") from error
        refined = output | {"sem_seg": scores}
        refined.pop("sem_seg_labels", None)
        return refined if labels is None else refined | {"sem_seg_labels": labels}


def build_dense_crf(
    num_classes: int,
    *,
    iterations: int = 10,
    bi_w: float | Sequence[float] = 4.0,
    bi_xy_std: float | tuple[float, float] = 67.0,
    bi_rgb_std: float | Sequence[float] = 3.0,
    pos_w: float | Sequence[float] = 3.0,
    pos_xy_std: float | tuple[float, float] = 1.0,
    normalisation: str = "symmetric",
    compatibility: Sequence[Sequence[float]] | None = None,
) -> DenseCRF:
    """A bilateral kernel and one of positions, by the names of DeepLab's code; the defaults are v2's on VOC.

    Args:
        num_classes: K.
        iterations: of mean field.
        bi_w: weight of the bilateral kernel, one or one a class; 0 leaves the kernel out.
        bi_xy_std: its standard deviation of positions, pixels, one or (rows, columns).
        bi_rgb_std: its standard deviation of the image's values, one or one a band.
        pos_w: weight of the kernel of positions likewise.
        pos_xy_std: its standard deviation, pixels.
        normalisation: see :class:`seg_ext.postprocess.DenseCRF`.
        compatibility: K rows of K penalties; None for Potts.

    Raises:
        ValueError: see :class:`seg_ext.postprocess.DenseCRF`.
    """
    kernels = [Kernel(pos_w, pos_xy_std), Kernel(bi_w, bi_xy_std, bi_rgb_std)]
    return DenseCRF(
        num_classes,
        [kernel for kernel in kernels if kernel.weight != 0],
        iterations=iterations,
        normalisation=normalisation,
        compatibility=None if compatibility is None else torch.tensor(compatibility, dtype=torch.float32),
    )


def split_step(step: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name and the arguments of an entry of TEST.REFINE.

    Raises:
        UserError: it is none, its name is unknown, or it has arguments that the step does not take.
    """
    arguments = dict(step) if isinstance(step, Mapping) else {}
    name = arguments.pop("NAME", None)
    if name not in STEPS:
        raise UserError(f"{KEY} {step!r}: takes entries with NAME {' or '.join(STEPS)}")
    if name == "dense_crf":
        check_arguments(f"{KEY} {name}", build_dense_crf, arguments, {"num_classes"})
    elif set(arguments) != {"STEPS"} or not isinstance(arguments["STEPS"], (list, tuple)):
        raise UserError(f"{KEY} morphology: takes STEPS, a list of {{NAME: operation, arguments}}, and nothing else")
    return name, arguments
