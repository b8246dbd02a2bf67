"""Gaussian filtering in any number of dimensions on the permutohedral lattice (Adams, Baek and Davis, 2010)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse
from torch import Tensor

NORMALISATIONS = ("none", "before", "after", "symmetric")
_BLOCK = 1 << 16  # points sliced at once
_WIDEST = 1 << 62  # of codes that number every cell of the lattice's box
_HASH = 0x9E3779B97F4A7C15  # its powers are the digits' worths where the box is wider


class LinearMap(ABC):
    """A matrix (P, P) that is applied, never written out."""

    @property
    @abstractmethod
    def transposed(self) -> LinearMap:
        """The transposed matrix."""

    @abstractmethod
    def parts(self, x: Tensor) -> Iterator[tuple[Any, Tensor]]:
        """The product with x (P, K) in parts that fit into a cache, each with its place in :meth:`shaped` results."""

    def shaped(self, x: Tensor) -> Tensor:
        """x (P, K) as the places of :meth:`parts` index it."""
        return x

    def __call__(self, x: Tensor) -> Tensor:
        """The product with x (P, K)."""
        product = torch.empty_like(x)
        view = self.shaped(product)
        for place, part in self.parts(x):
            view[place] = part
        return product

    def add(self, x: Tensor, *, weight: Tensor, to: Tensor, out: Tensor) -> None:
        """Write to + weight * product with x into out, all (P, K) but the weight, (K,); out may be ``to`` itself."""
        base, sums = self.shaped(to), self.shaped(out)
        for place, part in self.parts(x):
            torch.addcmul(base[place], weight, part, out=sums[place])


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, linear: LinearMap) -> Tensor:
        ctx.linear = linear
        return linear(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return apply_linear(ctx.linear.transposed, grads[0].contiguous()), None


def apply_linear(linear: LinearMap, x: Tensor) -> Tensor:
    """The product with x (P, K), differentiable in x any number of times."""
    return _Product.apply(x, linear)


def normalisers(total: Tensor, normalisation: str) -> tuple[Tensor, Tensor]:
    """Factors of a filter's inputs and of its outputs.

    Args:
        total: what the filter K makes of ones, n = K1 > 0.
        normalisation: "none"; "before", K(x/n); "after", (Kx)/n; "symmetric", K(x/sqrt n)/sqrt n.
    """
    one, whole, half = torch.ones_like(total), total.reciprocal(), total.rsqrt()
    table = {"none": (one, one), "before": (whole, one), "after": (one, whole), "symmetric": (half, half)}
    return table[normalisation]


class Lattice(LinearMap):
    """Filter with exp(-|f_i - f_j|^2 / 2): splat to the vertices around each point, blur along d + 1 axes, slice.

    Each of the three is a sum of weighted rows. A point's own value takes part. Normalised, it is the Gaussian within
    a few percent; without that its integral is the Gaussian's, but where points lie on a surface of few dimensions,
    as those of positions and colours do, its sums come out low by about 30 percent. Constant in the features.

    Args:
        features: (d, P) floats in standard deviations.
        groups: (P,) integers; points of different groups do not see each other.
        normalisation: one of :data:`NORMALISATIONS`.
    """

    @torch.no_grad()
    def __init__(self, features: Tensor, *, groups: Tensor | None = None, normalisation: str = "none") -> None:
        ids, weights, self._axes = _build(features, groups)
        dims, (count, vertices) = len(features), (ids.shape[0], self._axes.shape[1])
        # the integral of a vertex's share of space, of one blur [1 2 1] / 2 an axis, and of the Gaussian
        cell = (1.5**dims / (dims + 1)) ** 0.5
        alpha = (2 * math.pi) ** (dims / 2) / cell / 2 ** (dims + 1)
        taps = torch.tensor([1.0, 0.5, 0.5], dtype=weights.dtype, device=weights.device) * alpha ** (1 / (dims + 1))
        self._taps = taps.expand(vertices, 3).contiguous()
        self._ids = ids
        self._starts, order = _by_vertex(ids, vertices)
        self._points = torch.div(order, dims + 1, rounding_mode="floor").to(torch.int32)
        self._splat, self._slice = weights.flatten().index_select(0, order), weights
        before, after = normalisers(self(weights.new_ones(count, 1)), normalisation)
        inner = weights * before
        outer = inner if after is before else weights * after
        self._splat, self._slice = inner.flatten().index_select(0, order), outer
        self._turned = self._splat if outer is inner else outer.flatten()[order], inner

    @property
    def vertices(self) -> int:
        """Vertices that points lie next to."""
        return self._axes.shape[1] - 1

    @property
    def transposed(self) -> Lattice:
        """The transposed filter: the blurs in reverse, the normalisation's factors exchanged."""
        other = object.__new__(Lattice)
        other.__dict__.update(self.__dict__, _axes=self._axes.flip(0))
        (other._splat, other._slice), other._turned = self._turned, (self._splat, self._slice)
        return other

    def parts(self, x: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Blocks of points."""
        grid = F.embedding_bag(
            self._points, x, self._starts, mode="sum", per_sample_weights=self._splat, include_last_offset=True
        )
        for neighbours in self._axes:
            grid = F.embedding_bag(neighbours, grid, mode="sum", per_sample_weights=self._taps)
        for start in range(0, len(x), _BLOCK):
            span = slice(start, start + _BLOCK)
            yield span, F.embedding_bag(self._ids[span], grid, mode="sum", per_sample_weights=self._slice[span])


def _build(features: Tensor, groups: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Each point's vertices and weights (P, d + 1), and each axis's neighbours (d + 1, M + 1, 3), itself the first.

    The last of the M + 1 vertices stands for every one that no point is next to: nothing is splatted to it.
    """
    dims = len(features)
    side = dims + 1
    base, rank, weights = _simplices(features)
    corner = base[:dims] * side - rank[:dims]  # a simplex's centre of gravity, but for a constant and scale
    if groups is not None:
        corner = torch.cat([corner, groups[None].to(corner.dtype)])
    worth = _digit_worths(corner, margin=4 * side)
    _, simplex = torch.unique(sum(x.long() * w for x, w in zip(corner, worth, strict=True)), return_inverse=True)
    count = int(simplex.max()) + 1
    one = simplex.new_empty(count).scatter_(0, simplex, torch.arange(len(simplex), device=simplex.device))
    k = torch.arange(side, device=features.device)
    step = torch.where(k[:, None] + k[None] > dims, k[None] - side, k[None])  # [rank, vertex]
    parts = [x.index_select(0, one).long() * w for x, w in zip(base[:dims], side * worth, strict=False)]
    parts += [x.index_select(0, one).long() * w for x, w in zip(corner[dims:], worth[dims:], strict=True)]
    codes = torch.stack(parts).sum(0)[:, None].repeat(1, side)  # (S, d + 1)
    for i in range(dims):
        codes += (step * worth[i]).index_select(0, rank[i].index_select(0, one).int())
    known, vertex = torch.unique(codes, return_inverse=True)
    ids = vertex.to(torch.int32).index_select(0, simplex)
    return ids, weights.T.contiguous(), _neighbours(known, worth[:dims], side)


def _simplices(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The simplex each of (d, P) lies in: base in units of d + 1, ranks, and weights of its vertices, (d + 1, P)."""
    dims, count = features.shape
    side = dims + 1
    steps = torch.arange(1, side, dtype=features.dtype, device=features.device)
    basis = torch.ones(side, dims, dtype=features.dtype, device=features.device).triu()
    basis[1:] -= torch.diag(steps)
    basis *= (2 / 3 / (steps * (steps + 1))).sqrt()  # of a lattice of side 1; a blur then has the features' unit
    lifted = basis @ features
    base = lifted.round()
    rest = lifted - base
    rank = torch.zeros_like(rest)
    for i in range(dims):
        less = rest[i] < rest[i + 1 :]
        rank[i] += less.sum(0)
        rank[i + 1 :] += ~less
    rank += base.sum(0)
    turn = (rank < 0).to(rank.dtype) - (rank > dims).to(rank.dtype)
    rank += side * turn
    base += turn
    falling = torch.empty_like(lifted).scatter_(0, rank.long(), lifted - base)
    weights = torch.cat([1 + falling[-1:] - falling[:1], (falling[:-1] - falling[1:]).flip(0)])
    return base, rank, weights


def _digit_worths(coordinates: Tensor, margin: int) -> Tensor:
    """(d,) int64, so that the sum of worth times coordinate tells points (d, P) apart, and those margin around them."""
    low, high = coordinates.amin(1).tolist(), coordinates.amax(1).tolist()
    worths, worth = [], 1
    for least, most in zip(low, high, strict=True):
        worths.append(worth)
        worth *= int(most) - int(least) + 1 + 2 * margin
    if worth > _WIDEST:  # sums wrap around: two points have one code with a probability of about 2^-64
        worths = [(pow(_HASH, i + 1, 1 << 64) + (1 << 63)) % (1 << 64) - (1 << 63) for i in range(len(low))]
    return torch.tensor(worths, device=coordinates.device)


def _neighbours(known: Tensor, worth: Tensor, side: int) -> Tensor:
    """(d + 1, M + 1, 3) int32 rows of each vertex and of its two neighbours along each axis, M where there is none."""
    count = len(known)
    own = torch.arange(count + 1, device=known.device)
    axes = own.new_full((side, count + 1, 3), count)
    axes[:, :, 0] = own
    for axis in range(side):
        offset = side * worth[axis] - worth.sum() if axis < side - 1 else -worth.sum()
        wanted = known + offset
        place = torch.searchsorted(known, wanted).clamp_(max=count - 1)
        found = torch.nonzero(known[place] == wanted).flatten()
        axes[axis, found, 1] = place[found]
        axes[axis, place[found], 2] = found
    return axes.to(torch.int32)


def _by_vertex(ids: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Where each of count vertices' entries start (count + 1,) int32, and the flat entries in that order."""
    if ids.device.type == "cpu":  # a counting sort in C, ten times as fast as torch.sort
        points, side = ids.shape
        flat, starts = ids.flatten().numpy(), np.arange(points + 1, dtype=np.int32) * np.int32(side)
        entries = np.arange(points * side, dtype=np.int32)
        turned = sparse.csr_matrix((entries, flat, starts), shape=(points, count)).tocsc()
        return torch.from_numpy(turned.indptr.astype(np.int32)), torch.from_numpy(turned.data).long()
    ordered, order = torch.sort(ids.flatten(), stable=True)
    return torch.searchsorted(
        ordered, torch.arange(count + 1, device=ids.device, dtype=ids.dtype), out_int32=True
    ), order
