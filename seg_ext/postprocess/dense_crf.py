"""Fully connected CRF by mean field, as a layer (Kraehenbuehl and Koltun, 2011; CRF-as-RNN, Zheng et al., 2015)."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from seg_ext.postprocess.permutohedral import NORMALISATIONS, Lattice, LinearMap, apply_linear, normalisers

_TILES = (16, 32)  # rows of a banded matrix that are one product, where it is narrower than that and otherwise
_REACH = 4  # standard deviations after which a spatial kernel ends


@dataclass(frozen=True)
class Kernel:
    """One Gaussian kernel of the pairwise term.

    Attributes:
        weight: its strength, one number or one a class.
        position: standard deviation of positions in pixels, one or (rows, columns); None: positions do not matter.
        values: standard deviation of the image's values in their own unit, one or one a band; None: the image does
            not matter. A band whose deviation is infinite is left out.
    """

    weight: float | Sequence[float]
    position: float | tuple[float, float] | None
    values: float | Sequence[float] | None = None

    def __post_init__(self) -> None:
        if self.position is None and self.values is None:
            raise ValueError("a kernel needs a bandwidth: position, values or both")
        for name in ("weight", "position", "values"):
            found = getattr(self, name)
            if found is not None and not all(isinstance(x, int | float) for x in _tuple(found)):
                raise ValueError(f"a kernel's {name} must be a number or a list of numbers, got {found!r}")
        for name, most in (("position", sys.float_info.max), ("values", math.inf)):
            found = getattr(self, name)
            if found is not None and any(not 0 < sd <= most for sd in _tuple(found)):
                finite = "" if math.isinf(most) else " and finite"
                raise ValueError(f"bandwidths of {name} must be positive{finite}, got {found}")
        if isinstance(self.position, Sequence) and len(self.position) != 2:
            raise ValueError(f"position must be one bandwidth or (rows, columns), got {self.position}")
        if self.position is None and self.values is not None and all(map(math.isinf, _tuple(self.values))):
            raise ValueError("a kernel needs a finite bandwidth: every band's is infinite and positions do not matter")


class DenseCRF(nn.Module):
    """Mean-field inference in a fully connected CRF: scores and an image to scores.

    Differentiable in the scores, in ``weights`` and in ``compatibility``; constant in the image. A pixel's own value
    takes part in its message, as in the authors' program, whose published parameters count on it. Bilateral kernels
    run on the permutohedral lattice; those of positions alone are exact but for their tails.

    Args:
        num_classes: K.
        kernels: of the pairwise term.
        iterations: of mean field.
        normalisation: of every kernel: "none", "before", "after" or "symmetric".
        compatibility: (K, K) penalty for label l beside label l'; None for Potts, 1 where they differ.

    Raises:
        ValueError: an argument is none of the above.
    """

    compatibility: nn.Parameter | None

    def __init__(
        self,
        num_classes: int,
        kernels: Sequence[Kernel],
        *,
        iterations: int = 10,
        normalisation: str = "symmetric",
        compatibility: Tensor | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(iterations, int) or iterations < 0:
            raise ValueError(f"iterations must be a whole number from 0, got {iterations!r}")
        if normalisation not in NORMALISATIONS:
            raise ValueError(f"normalisation must be one of {', '.join(NORMALISATIONS)}, got {normalisation!r}")
        if compatibility is not None and compatibility.shape != (num_classes, num_classes):
            raise ValueError(f"compatibility must be {num_classes} x {num_classes}, got {tuple(compatibility.shape)}")
        self.kernels = tuple(kernels)
        self.iterations = iterations
        self.normalisation = normalisation
        rows = [_per_class(kernel.weight, num_classes) for kernel in self.kernels]
        self.weights = nn.Parameter(torch.tensor(rows).view(len(rows), num_classes))
        self.compatibility = None if compatibility is None else nn.Parameter(compatibility.detach().clone().float())

    def forward(self, scores: Tensor, image: Tensor) -> Tensor:
        """Scores (N, K, H, W) whose softmax is the mean field's; those given where the weights are zero.

        Args:
            scores: (N, K, H, W), log-probabilities but for a constant a pixel.
            image: (N, B, H, W): bands, or features of any kind.

        Raises:
            ValueError: sizes do not match, or the image has values that are not finite.
        """
        self.check(scores, image)
        unary = scores if scores.dtype == torch.float64 else scores.float()
        return self.infer(scores, self.filters(image.to(unary.dtype)))

    def check(self, scores: Tensor, image: Tensor) -> None:
        """Refuse what :meth:`forward` refuses."""
        if scores.dim() != 4 or image.dim() != 4:
            shapes = f"{tuple(scores.shape)} and {tuple(image.shape)}"
            raise ValueError(f"scores and image must be (N, _, H, W), got {shapes}")
        if scores.shape[1] != self.weights.shape[1]:
            raise ValueError(f"scores have {scores.shape[1]} classes, the CRF {self.weights.shape[1]}")
        if scores.shape[2:] != image.shape[2:] or len(scores) != len(image):
            raise ValueError(
                f"scores {tuple(scores.shape)} and image {tuple(image.shape)} must agree in number, height and width"
            )
        if image.is_floating_point() and not bool(image.isfinite().all()):
            raise ValueError("the image has values that are not finite")

    def filters(self, image: Tensor) -> list[LinearMap]:
        """Those of the kernels for images (N, B, H, W) of floats; their weights have no part in them."""
        with torch.autocast(image.device.type, enabled=False):
            return [self._filter(kernel, image) for kernel in self.kernels]

    def infer(self, scores: Tensor, filters: Sequence[LinearMap]) -> Tensor:
        """Mean field: scores (N, K, H, W) as :meth:`forward` has them, with the filters of their images."""
        with torch.autocast(scores.device.type, enabled=False):
            unary = scores if scores.dtype == torch.float64 else scores.float()
            batch, classes, height, width = scores.shape
            unary = unary.permute(0, 2, 3, 1).reshape(-1, classes).contiguous()
            refined = self._mean_field(unary, filters)
            return refined.view(batch, height, width, classes).permute(0, 3, 1, 2).to(scores.dtype)

    def _mean_field(self, unary: Tensor, filters: Sequence[LinearMap]) -> Tensor:  # (P, K) both ways
        if torch.is_grad_enabled():
            return self._mean_field_recorded(unary, filters)
        if not filters:
            return unary
        scores, weights = unary, self.weights.to(unary.dtype)
        beliefs, sums = torch.empty_like(unary), torch.empty_like(unary)
        for _ in range(self.iterations):
            torch.softmax(scores, 1, out=beliefs)
            base, scores = (unary, sums) if self.compatibility is None else (sums.zero_(), sums)
            for weight, linear in zip(weights, filters, strict=True):
                linear.add(beliefs, weight=weight, to=base, out=sums)
                base = sums
            if self.compatibility is not None:
                scores = unary - sums @ self.compatibility.T.to(unary.dtype)
        return scores

    def _mean_field_recorded(self, unary: Tensor, filters: Sequence[LinearMap]) -> Tensor:
        scores, weights = unary, self.weights.to(unary.dtype)
        for _ in range(self.iterations):
            beliefs = torch.softmax(scores, 1)
            messages = torch.zeros_like(unary)
            for weight, linear in zip(weights, filters, strict=True):
                messages = messages + weight * apply_linear(linear, beliefs)
            agreed = messages if self.compatibility is None else -(messages @ self.compatibility.T.to(unary.dtype))
            scores = unary + agreed
        return scores

    def _filter(self, kernel: Kernel, image: Tensor) -> LinearMap:
        batch, bands, height, width = image.shape
        if kernel.values is None:
            assert kernel.position is not None
            return SpatialFilter(image, _tuple(kernel.position, 2), normalisation=self.normalisation)
        features = []
        if kernel.position is not None:
            axes = [torch.arange(side, dtype=image.dtype, device=image.device) for side in (height, width)]
            grid = torch.meshgrid(*axes, indexing="ij")
            deviations = _tuple(kernel.position, 2)
            features = [(x / sd).expand(batch, -1, -1) for x, sd in zip(grid, deviations, strict=True)]
        deviations = _tuple(kernel.values, bands)
        if len(deviations) != bands:
            raise ValueError(f"the kernel has {len(deviations)} bandwidths of values, the image {bands} bands")
        features += [image[:, band] / sd for band, sd in enumerate(deviations) if not math.isinf(sd)]
        groups = torch.arange(batch, device=image.device).repeat_interleave(height * width) if batch > 1 else None
        return Lattice(torch.stack(features).flatten(1), groups=groups, normalisation=self.normalisation)


class SpatialFilter(LinearMap):
    """Filter with a Gaussian of positions: a banded matrix along the rows, one along the columns.

    Args:
        image: (N, _, H, W), whose size, type and device the filter is for.
        deviations: of rows and columns, pixels; the kernel ends 4 of them away.
        normalisation: one of the four.
    """

    @torch.no_grad()
    def __init__(self, image: Tensor, deviations: Sequence[float], *, normalisation: str) -> None:
        self._size = image.shape[0], *image.shape[-2:]
        self._axes, self._turned = zip(
            *(
                _banded(side, sd, normalisation=normalisation, like=image)
                for side, sd in zip(self._size[1:], deviations, strict=True)
            ),
            strict=True,
        )
        self._between: Tensor | None = None

    @property
    def transposed(self) -> SpatialFilter:
        """The transposed filter."""
        other = object.__new__(SpatialFilter)
        other.__dict__.update(self.__dict__, _axes=self._turned, _turned=self._axes, _between=None)
        return other

    def shaped(self, x: Tensor) -> Tensor:
        """(P, K) as lines along the columns."""
        batch, height, width = self._size
        return x.view(batch * height, width, -1)

    def parts(self, x: Tensor) -> Iterator[tuple[tuple[slice, slice], Tensor]]:
        """Bands of columns."""
        batch, height, _ = self._size
        if self._between is None or self._between.shape != x.shape:
            self._between = torch.empty_like(x)
        rows, columns = self._axes
        lines, filtered = x.view(batch, height, -1), self._between.view(batch, height, -1)
        for i in range(batch):
            for start, first, matrix in rows:
                count, reached = matrix.shape
                torch.mm(matrix, lines[i, first : first + reached], out=filtered[i, start : start + count])
        lines = self.shaped(self._between)
        for start, first, matrix in columns:
            count, reached = matrix.shape
            yield np.s_[:, start : start + count], matrix @ lines[:, first : first + reached]


_Tiles = list[tuple[int, int, Tensor]]  # first row, first column, and what stands there of the band


def _banded(length: int, sd: float, *, normalisation: str, like: Tensor) -> tuple[_Tiles, _Tiles]:
    """A normalised Gaussian along one axis as a banded matrix (length, length), and its transpose."""
    reach = min(math.ceil(_REACH * sd), length)
    size = _TILES[reach > _TILES[0]]
    place = torch.arange(length, dtype=like.dtype, device=like.device)
    spans = [(start, max(start - reach, 0)) for start in range(0, length, size)]
    tiles = []
    for start, first in spans:
        away = place[start : start + size, None] - place[None, first : start + size + reach]
        tiles.append(torch.exp(-(away**2) / (2 * sd**2)) * (away.abs() <= reach))
    before, after = normalisers(torch.cat([tile.sum(1) for tile in tiles]), normalisation)

    def scaled(rows: Tensor, columns: Tensor) -> _Tiles:
        return [
            (start, first, tile * rows[start : start + size, None] * columns[None, first : start + size + reach])
            for (start, first), tile in zip(spans, tiles, strict=True)
        ]

    return scaled(after, before), scaled(before, after)


def probabilities_to_scores(probabilities: Tensor) -> Tensor:
    """Logarithms of probabilities (N, K, H, W), those below the type's least normal number taken for it.

    Raises:
        ValueError: negative values, or sums over the classes that are off 1 by more than a hundredth.
    """
    if bool((probabilities < 0).any()):
        raise ValueError(f"probabilities must not be negative, the least is {float(probabilities.min()):g}")
    total = probabilities.sum(1)
    worst = float((total - 1).abs().max())
    if not worst <= 0.01:
        raise ValueError(f"probabilities must sum to 1 over the classes, a pixel's is {worst:g} away from it")
    return probabilities.clamp(min=torch.finfo(probabilities.dtype).tiny).log()


def _tuple(x: float | Sequence[float], count: int = 1) -> tuple[float, ...]:
    return tuple(x) if isinstance(x, Sequence) else (x,) * count


def _per_class(weight: float | Sequence[float], classes: int) -> tuple[float, ...]:
    found = _tuple(weight, classes)
    if len(found) != classes:
        raise ValueError(f"a kernel's weight must be one number or {classes}, one a class, got {len(found)}")
    if not all(map(math.isfinite, found)):
        raise ValueError(f"a kernel's weight must be finite, got {weight}")
    return tuple(map(float, found))
