"""An exported file against the model it was made of: the same noise at several sizes and batches through both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from seg_ext.errors import UserError
from seg_ext.export.formats import Run
from seg_ext.export.graph import Graph

SIZES = ((128, 160), (97, 131), (192, 96))  # one the stride divides, one odd, one upright
TOLERANCE = 1e-4  # on scores
AGREEMENT = 0.9999  # of labels, at least


@dataclass(frozen=True)
class Check:
    """One comparison; ``difference`` is the largest one of scores, None where the file gives labels."""

    batch: int
    height: int
    width: int
    difference: float | None
    agreement: float


def verify(
    graph: Graph,
    run: Run,
    *,
    sizes: Sequence[tuple[int, int]] = SIZES,
    tolerance: float = TOLERANCE,
    agreement: float = AGREEMENT,
) -> list[Check]:
    """Compare at every size and batch.

    Args:
        graph: the model, eager.
        run: the file, in its own runtime.
        sizes: heights and widths, pixels.
        tolerance: greatest difference of scores that passes.
        agreement: least share of pixels of the same label that passes.

    Raises:
        UserError: they differ, or the file refuses a size or a batch; it says which.
    """
    checks = []
    for height, width in sizes:
        for batch in graph.batches:
            at = f"at {batch} x {height} x {width}"
            image = graph.example(batch, height, width, seed=height * width + batch)
            with torch.no_grad():
                expected = _tuple(graph(image))
            try:
                found = _tuple(run(image))
            except Exception as error:  # a runtime raises what it likes
                raise UserError(f"the exported file fails {at}: {_last_line(error)}") from error
            shapes = [[tuple(x.shape) for x in outputs] for outputs in (found, expected)]
            if shapes[0] != shapes[1]:
                raise UserError(f"the exported file gives {shapes[0]} {at}, the model {shapes[1]}")
            checks.append(Check(batch, height, width, _difference(found, expected), _agreement(graph, found, expected)))
            difference = checks[-1].difference
            # a comparison that NaN fails
            if not (difference is None or difference <= tolerance) or not checks[-1].agreement > agreement:
                raise UserError(
                    f"the exported file differs from the model {at}: scores by {difference or 0:.1e} (at most "
                    f"{tolerance:.1e}), {checks[-1].agreement:.4%} of labels the same (more than {agreement:.2%})"
                )
    return checks


def _tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


def _difference(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float | None:
    """The largest one of real numbers; None where there are only labels."""
    parts = [(a - b).abs().flatten() for a, b in zip(found, expected, strict=True) if b.is_floating_point()]
    return torch.cat([*parts, torch.zeros(1)]).max().item() if parts else None  # NaN, where there is one


def _agreement(graph: Graph, found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    same = graph.labels_of(found) == graph.labels_of(expected)
    return same.float().mean().item() if same.numel() else 1.0


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
