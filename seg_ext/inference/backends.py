"""What runs a semantic network at inference: PyTorch, folded or compiled, or onnxruntime; or the fastest of them."""

from __future__ import annotations

import copy
import logging
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from seg_ext.errors import UserError
from seg_ext.export.formats import load_onnx, write_onnx
from seg_ext.export.graph import Graph, SemanticGraph
from seg_ext.inference.folding import fold_batch_norm

BACKENDS = ("auto", "eager", "compile", "onnxruntime")
AGREEMENT = 1e-4  # greatest difference of two backends' scores, as a share of the greatest score or of 1
_logger = logging.getLogger(__name__)
_SCORES = "scores"
_ROUNDS = 3
# Seconds that a candidate takes to build, about, and the share of the time for an image that it can be hoped to save:
# of R-50 networks at 512x512 on two cores.
_COST = {"folded": (0.0, 1.0), "channels_last": (0.0, 1.0), "onnxruntime": (20.0, 0.3), "compile": (60.0, 0.25)}

Run = Callable[[Tensor], Tensor]


def accelerate(model: nn.Module, backend: str, *, expected: int = 1, keep_modules: bool = False) -> None:
    """Let ``model`` run by a backend, in place; its inputs and outputs stay.

    "eager" is the model as it is; "compile" torch.compile with frozen weights; "onnxruntime" an ONNX graph of dynamic
    size, for the CPU. "auto" folds BatchNorm into convolutions; on the CPU it then measures, on the first image, the
    folded network, the same with channels last, and where the images to come are expected to repay the building,
    onnxruntime (if it is installed) and torch.compile; the fastest whose scores agree stays. Of a model with other
    heads than a semantic one "auto" folds only, and "compile" compiles backbone and decoder.

    Args:
        model: in eval mode, of backbone and ``sem_seg_head``.
        backend: one of :data:`BACKENDS`.
        expected: images to come.
        keep_modules: something works on the model's modules while it runs: nothing but folding.

    Raises:
        UserError: an unknown backend, or one that does not fit the model or machine.
    """
    if backend not in BACKENDS:
        raise UserError(f"--backend {backend!r}: takes {', '.join(BACKENDS)}")
    if backend == "eager":
        return
    if keep_modules and backend != "auto":
        raise UserError(
            f"--backend {backend} does not go with TEST.MC_DROPOUT and TEST.LABELS_ONLY, which need the modules: takes"
            " auto or eager"
        )
    parts: Any = model
    on_cpu = next(model.parameters()).device.type == "cpu"
    if backend == "onnxruntime" and not (_is_semantic(model) and on_cpu):
        raise UserError("--backend onnxruntime runs semantic models on the CPU: takes auto, eager or compile here")
    if backend == "onnxruntime" and not _has_onnxruntime():
        raise UserError(
            "--backend onnxruntime: onnx, onnxscript or onnxruntime is missing; pip install 'seg-ext[export]'"
        )
    if not _is_semantic(model):
        fold_batch_norm(model)
        if backend == "compile":
            parts.backbone.compile(dynamic=None)
            decoder = getattr(getattr(parts, "sem_seg_head", None), "decoder", None)
            if decoder is not None:
                decoder.compile(dynamic=None)
        return
    if keep_modules or (backend == "auto" and not on_cpu):
        fold_batch_norm(model)
        return
    runner = _Runner(SemanticGraph(model), backend, expected, parts.backbone)
    parts.backbone, parts.sem_seg_head = runner, _Given()


def _is_semantic(model: nn.Module) -> bool:
    """Whether scores of the semantic head are all that the model gives."""
    others = ("roi_heads", "proposal_generator", "ins_embed_head")
    backbone: Any = getattr(model, "backbone", None)
    if getattr(model, "sem_seg_head", None) is None or backbone is None or not hasattr(model, "pixel_mean"):
        return False
    return not backbone.padding_constraints.get("square_size") and not any(getattr(model, x, None) for x in others)


def _has_onnxruntime() -> bool:
    return all(find_spec(name) is not None for name in ("onnx", "onnxscript", "onnxruntime"))


class _Given(nn.Module):
    """A semantic head that hands on the scores of the runner."""

    def forward(self, features: Mapping[str, Tensor], targets: Any = None) -> tuple[Tensor, dict[str, Tensor]]:
        """detectron2's protocol."""
        return features[_SCORES], {}


class _Runner(nn.Module):
    """A backbone that gives scores: the network by the backend, which is built at the first image."""

    def __init__(self, network: Graph, backend: str, expected: int, backbone: Any) -> None:
        super().__init__()
        self.network: Graph | None = network
        self.size_divisibility, self.padding_constraints = backbone.size_divisibility, backbone.padding_constraints
        self._backend, self._expected = backend, expected
        self._lock = Lock()
        self.run: Run | None = None
        self.chosen = ""

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """(N, C, H, W), normalised, to (N, K, H, W) scores."""
        with self._lock:
            if self.run is None:
                self._choose(image)
        assert self.run is not None
        return {_SCORES: self.run(image)}

    @torch.no_grad()
    def _choose(self, image: Tensor) -> None:
        network, self.network = self.network, None
        assert network is not None
        wanted = self._backend
        if wanted == "auto":
            self.chosen, self.run = fastest(network, image, expected=self._expected)
            _logger.info("backend: %s", self.chosen)
            return
        reference = network(image)
        self.chosen, self.run = wanted, build(network, wanted, image)
        difference = disagreement(reference, self.run(image))
        if not difference <= AGREEMENT:
            raise UserError(f"--backend {wanted}: its scores differ by {difference:.1e} from eager's; takes eager here")


def disagreement(reference: Tensor, scores: Tensor) -> float:
    """The greatest difference, as a share of the greatest score or of 1; NaN or infinite where the scores are."""
    if reference.shape != scores.shape:
        return float("inf")
    return ((reference - scores).abs().max() / reference.abs().max().clamp(min=1)).item()


def fastest(network: Graph, image: Tensor, *, expected: int = 1) -> tuple[str, Run]:
    """The fastest candidate that agrees with ``network`` on ``image``, and its name; "eager" where none does."""
    reference = network(image)
    runs: dict[str, Run] = {"eager": network}
    least = seconds = _seconds(network, image)
    best = "eager"
    for name in _candidates():
        cost, saved = _COST[name]
        if cost > expected * seconds * saved:
            continue
        try:
            run = build(network, name, image)
            difference = disagreement(reference, run(image))
            taken = _seconds(run, image)
        except Exception as error:
            _logger.info("backend %s left out: %s", name, (str(error).splitlines() or [type(error).__name__])[0])
            continue
        _logger.info(
            "backend %s: %.0f ms, eager %.0f ms; scores differ by %.0e", name, 1e3 * taken, 1e3 * seconds, difference
        )
        if difference <= AGREEMENT and taken < least:
            runs, best, least = {name: run}, name, taken
    return best, runs[best]


def _candidates() -> Iterator[str]:
    yield from (name for name in _COST if name != "onnxruntime" or _has_onnxruntime())


def _seconds(run: Run, image: Tensor) -> float:
    """Median of a few rounds; what is slow the first time has been done."""
    times = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        run(image)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def build(network: Graph, name: str, image: Tensor) -> Run:
    """A candidate by its name, of a network (N, C, H, W) -> (N, K, H, W) in eval mode, which stays as it is."""
    folded = copy.deepcopy(network)
    fold_batch_norm(folded)
    if name == "folded":
        return folded
    if name == "channels_last":
        folded.to(memory_format=torch.channels_last)
        return lambda x: folded(x.contiguous(memory_format=torch.channels_last))
    if name == "compile":
        compiled: Run = torch.compile(folded, options={"freezing": True} if image.device.type == "cpu" else None)
        return compiled
    return _onnx_session(folded, image)


def _onnx_session(network: Graph, image: Tensor) -> Run:
    """The network in onnxruntime, at any height and width, checked on a second size."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "network.onnx"
        write_onnx(network, file, "")
        session = load_onnx(file, threads=torch.get_num_threads())
    height, width = (max(side // 2 // 32 * 32, min(side, 32)) for side in image.shape[-2:])
    other = image[..., :height, :width]
    difference = disagreement(network(other), _scores(session, other))
    if not difference <= AGREEMENT:
        raise UserError(f"the graph's scores differ by {difference:.1e} at {width}x{height} pixels")
    return lambda x: _scores(session, x)


def _scores(session: Callable[[Tensor], Any], image: Tensor) -> Tensor:
    scores: Tensor = session(image.contiguous())
    return scores
