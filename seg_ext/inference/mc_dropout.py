"""Monte Carlo dropout: the mean of passes with dropout on, and their spread (Bayesian SegNet, Kendall et al., 2017)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from seg_ext.errors import UserError
from seg_ext.inference.contract import UNFUSED, as_output

KEY = "TEST.MC_DROPOUT"
MAPS = ("variance", "entropy", "mutual_information")


class McDropout:
    """A predictor that runs a model with its dropout on several times, and gives what the samples say together.

    ``sem_seg`` is the log of their mean probability. ``uncertainty`` has three maps (H, W) float32: "variance", of the
    probability over the samples, mean of the classes (the paper's); "entropy", of the mean probability, in nats, 0 to
    log K; "mutual_information", that entropy without the mean of the samples' own, between 0 and the former. Every
    other output is the model's without dropout. All but dropout stays in eval mode.

    An image's masks depend on the seed and its size alone, not on the images before it; the generators of others are
    left as they were. The memory for results does not grow with the samples. Threads take turns.
    """

    def __init__(self, model: nn.Module, samples: int, *, batch: int = 1, seed: int = 0) -> None:
        """Find the model's dropout.

        Args:
            model: in detectron2's format; in eval mode when this is called.
            samples: T, passes an image.
            batch: of them, run at once.
            seed: of the masks.

        Raises:
            UserError: a number below 1, or a model without dropout: its samples would all be the same.
        """
        for name, number in (("SAMPLES", samples), ("BATCH", batch)):
            if not isinstance(number, int) or number < 1:
                raise UserError(f"{KEY}.{name} {number!r}: takes a whole number from 1")
        if not isinstance(seed, int) or not 0 <= seed < 1 << 63:
            raise UserError(f"{KEY}.SEED {seed!r}: takes a whole number from 0")
        self._layers = [x for x in model.modules() if isinstance(x, _DropoutNd) and x.p > 0]
        if not self._layers:
            raise UserError(
                f"{KEY}: neither decoder nor backbone has dropout above 0, so that all samples are the same; takes a"
                " model such as Bayesian SegNet (DECODER.ARGS.dropout) that was trained with it"
            )
        self._model, self._samples, self._batch, self._seed = model, samples, batch, seed
        self._lock = Lock()

    @torch.no_grad()
    def __call__(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Predict each image, at its ``height`` and ``width``.

        Raises:
            UserError: the model has no ``sem_seg``.
        """
        with self._lock:  # modes and generators are everybody's
            return [self._predict_image(inputs | UNFUSED) for inputs in batched_inputs]

    def _predict_image(self, inputs: dict[str, Any]) -> dict[str, Any]:
        spread, others = Spread(), False
        with self._dropping():
            for done in range(0, self._samples, self._batch):
                for output in self._model([inputs] * min(self._batch, self._samples - done)):
                    if "sem_seg" not in output:
                        raise UserError(f"{KEY}: the model gives {', '.join(sorted(output))}; takes one with sem_seg")
                    spread.add(output["sem_seg"].float().softmax(0))
                    others = len(output) > 1
        result = self._model([inputs])[0] if others else {}
        uncertainty = spread.maps()
        return result | as_output({"sem_seg": spread.mean}) | {"uncertainty": uncertainty}

    @contextmanager
    def _dropping(self) -> Iterator[None]:
        """Dropout in training mode and generators seeded, for a while."""
        modes = [layer.training for layer in self._layers]
        devices = {x.device.index for x in self._model.parameters() if x.device.type == "cuda"}
        with torch.random.fork_rng(devices=devices):
            for generator in (torch.default_generator, *(torch.cuda.default_generators[i] for i in devices)):
                generator.manual_seed(self._seed)
            try:
                for layer in self._layers:
                    layer.training = True
                yield
            finally:
                for layer, mode in zip(self._layers, modes, strict=True):
                    layer.training = mode


class Spread:
    """Running mean of samples of probabilities, and how they differ (Welford, 1962).

    Attributes:
        mean: (K, H, W) of those added so far.
    """

    mean: Tensor

    def __init__(self) -> None:
        self._count = 0

    def add(self, sample: Tensor) -> None:
        """Take probabilities (K, H, W) into account; they may be overwritten."""
        self._count += 1
        own = entropy(sample)
        if self._count == 1:
            self.mean, self._own, self._squares = sample, own, torch.zeros_like(own)
            return
        self._own += (own - self._own) / self._count
        away = sample.sub_(self.mean)
        self._squares += away.square().mean(0) * ((self._count - 1) / self._count)
        self.mean += away.div_(self._count)

    def maps(self) -> dict[str, Tensor]:
        """:data:`MAPS` of what was added, each (H, W)."""
        total = entropy(self.mean)
        shared = torch.minimum((total - self._own).clamp_(min=0), total)
        return {"variance": self._squares / self._count, "entropy": total, "mutual_information": shared}


def entropy(probabilities: Tensor) -> Tensor:
    """Of (K, H, W) probabilities, nats: (H, W) from 0 to log K."""
    return torch.special.entr(probabilities).sum(0).clamp_(0, math.log(len(probabilities)))
