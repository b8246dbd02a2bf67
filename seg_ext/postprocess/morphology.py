"""Chains of morphological operations on label maps, class by class (Serra, 1982; sieve of components as in GDAL)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage, sparse
from scipy.sparse import csgraph
from torch import Tensor

Array = NDArray[Any]
Window = tuple[slice, slice]


class MorphologyChain:
    """Operations on a label map, one after another; ignored pixels neither change nor give evidence.

    A pixel that an operation takes from its class gets the label ``fill``, or without one the label that reaches it
    first when those around grow into what was removed; where none does it keeps its own.

    Args:
        steps: mappings with ``NAME``, one of :data:`OPERATIONS`; ``CLASSES``, ids in the order in which the step
            treats them, or none for all; the other keys are the operation's arguments.
        num_classes: K.
        ignore: label that marks ignored pixels.

    Raises:
        ValueError: an unknown operation or argument, or a value out of range.
    """

    def __init__(self, steps: Sequence[Mapping[str, Any]], *, num_classes: int, ignore: int | None = None) -> None:
        self.ignore = ignore
        known = [label for label in range(num_classes) if label != ignore]
        self._steps = [_parsed(step, known) for step in steps]

    def __call__(self, labels: Tensor) -> Tensor:
        """(H, W) integer labels, of the same type and on the same device."""
        if labels.dim() != 2 or labels.is_floating_point():
            raise ValueError(f"labels must be (H, W) integers, got {tuple(labels.shape)} {labels.dtype}")
        if not self._steps or not labels.numel():
            return labels
        array = labels.cpu().numpy().astype(np.int32)  # a copy
        valid = np.ones(array.shape, bool) if self.ignore is None else array != self.ignore
        for operation, classes, arguments in self._steps:
            operation(array, classes, valid=valid, **arguments)
        return torch.from_numpy(array).to(labels)


def opening(labels: Array, classes: Sequence[int], *, valid: Array, radius: int, fill: int | None = None) -> None:
    """Take from each class what no disc of the radius (pixels) inside it covers. Idempotent for one class."""
    disc = _disc(radius)
    for label, window in _windows(labels, classes, margin=2 * radius):
        view, known = labels[window], valid[window]
        mask = view == label
        opened = _dilate(_erode(mask, disc, known), disc, known)
        _refill(view, mask & ~opened, valid=known, fill=fill, barred=label)


def closing(labels: Array, classes: Sequence[int], *, valid: Array, radius: int) -> None:
    """Give each class what no disc of the radius (pixels) outside it covers. Idempotent for one class."""
    disc = _disc(radius)
    for label, window in _windows(labels, classes, margin=2 * radius):
        view, known = labels[window], valid[window]
        view[_erode(_dilate(view == label, disc, known), disc, known)] = label


def min_area(
    labels: Array, classes: Sequence[int], *, valid: Array, area: int, fill: int | None = None, connectivity: int = 8
) -> None:
    """Take components of fewer pixels than area from their classes. Idempotent."""
    components, of, areas = label_components(labels, connectivity=connectivity)
    small = np.isin(of, list(classes)) & (areas < area)
    _refill(labels, small[components] & valid, valid=valid, fill=fill)


def largest_component(
    labels: Array, classes: Sequence[int], *, valid: Array, fill: int | None = None, connectivity: int = 8
) -> None:
    """Leave of each class its largest component, of equal ones that of the topmost, leftmost pixel. Idempotent."""
    components, of, areas = label_components(labels, connectivity=connectivity)
    order = np.lexsort((-areas, of))  # stable: of equal ones the first
    first = np.ones(len(order), bool)
    first[1:] = of[order[1:]] != of[order[:-1]]
    rest = np.isin(of, list(classes))
    rest[order[first]] = False
    _refill(labels, rest[components] & valid, valid=valid, fill=fill)


def fill_holes(
    labels: Array, classes: Sequence[int], *, valid: Array, area: int | None = None, connectivity: int = 8
) -> None:
    """Give each class what it encloses: what is not joined to the image's edge but through it.

    ``area`` is the most pixels a hole may have; ``connectivity`` is the class's, a hole has the other. Idempotent for
    one class.
    """
    structure = ndimage.generate_binary_structure(2, 1 if connectivity == 8 else 2)
    for label, window in _windows(labels, classes, margin=0):
        view = labels[window]
        holes, count = ndimage.label(view != label, structure)
        filled = np.ones(count + 1, bool) if area is None else np.bincount(holes.ravel(), minlength=count + 1) <= area
        filled[0] = False
        for edge in (holes[0], holes[-1], holes[:, 0], holes[:, -1]):
            filled[edge] = False
        view[filled[holes] & valid[window]] = label


def smooth_borders(labels: Array, classes: Sequence[int], *, valid: Array, radius: int) -> None:
    """Give each pixel the label most frequent in the disc of the radius (pixels) around it, its own among equals.

    Only pixels that leave or join one of the classes change.
    """
    disc = _disc(radius).astype(np.float32)
    most, own = np.zeros((2, *labels.shape), np.float32)
    winner = labels.copy()
    for label, window in _windows(labels, np.unique(labels[valid]).tolist(), margin=radius):
        mask = labels[window] == label
        votes = cv2.filter2D(mask.astype(np.float32), -1, disc, borderType=cv2.BORDER_CONSTANT)
        own[window][mask] = votes[mask]
        more = votes > most[window] + 0.5  # votes are whole but for rounding
        most[window][more] = votes[more]
        winner[window][more] = label
    ours = np.isin(labels, list(classes)) | np.isin(winner, list(classes))
    np.copyto(labels, winner, where=ours & valid & (most > own + 0.5))


def label_components(labels: Array, *, connectivity: int = 8) -> tuple[Array, Array, Array]:
    """Connected components of all labels in one pass: runs of equal pixels along the rows, joined as a graph.

    Args:
        labels: (H, W) integers.
        connectivity: 4 or 8 neighbours.

    Returns:
        (H, W) component of each pixel, from 0 on in the order of their first pixels; the label of each component
        (n,), and its area in pixels (n,).
    """
    starts = np.ones(labels.shape, bool)
    starts[:, 1:] = labels[:, 1:] != labels[:, :-1]
    runs = np.cumsum(starts.ravel(), dtype=np.int32).reshape(labels.shape) - 1
    pairs: list[tuple[Any, Any]] = [(np.s_[1:], np.s_[:-1])]
    if connectivity == 8:
        pairs += [(np.s_[1:, 1:], np.s_[:-1, :-1]), (np.s_[1:, :-1], np.s_[:-1, 1:])]
    meet = [(labels[a] == labels[b]) & (starts[a] | starts[b]) for a, b in pairs]  # each two runs, once or twice
    joined = [(runs[a][at], runs[b][at]) for (a, b), at in zip(pairs, meet, strict=True)]
    rows, columns = (np.concatenate(ends) for ends in zip(*joined, strict=True))
    count = int(runs[-1, -1]) + 1
    graph = sparse.coo_matrix((np.ones(len(rows)), (rows, columns)), shape=(count, count))
    _, of_run = csgraph.connected_components(graph, directed=False)
    known, first, of_run = np.unique(of_run, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(known))
    components = rank[of_run][runs]
    return components, labels[starts][first[order]], np.bincount(components.ravel(), minlength=len(known))


def _refill(labels: Array, removed: Array, *, valid: Array, fill: int | None, barred: int | None = None) -> None:
    """Relabel removed pixels in place, with fill or by growth of the valid others that are not barred."""
    if fill is not None:
        labels[removed] = fill
        return
    wide = labels.shape[1] + 2
    steps = np.array([-wide, -1, 1, wide])
    todo = np.pad(removed, 1).ravel()
    known = np.pad(valid & ~removed & (True if barred is None else labels != barred), 1).ravel()
    grown = np.pad(labels, 1).ravel()
    around = (np.flatnonzero(todo)[:, None] + steps).ravel()
    front = np.unique(around[known[around]])
    while front.size:
        reached = []
        for step in steps:
            target = front + step
            free = todo[target]
            grown[target[free]] = grown[front[free]]
            reached.append(target[free])
        front = np.unique(np.concatenate(reached))
        todo[front] = False
    labels[removed] = grown.reshape(-1, wide)[1:-1, 1:-1][removed]


def _windows(labels: Array, classes: Sequence[int], *, margin: int) -> Iterator[tuple[int, Window]]:
    """The classes present and the box around each, margin wider; of the labels at the time it is asked for."""
    for label in classes:
        mask = labels == label
        spans = [np.flatnonzero(mask.any(axis)) for axis in (1, 0)]
        if spans[0].size:
            rows, columns = (slice(max(int(x[0]) - margin, 0), int(x[-1]) + 1 + margin) for x in spans)
            yield label, (rows, columns)


def _disc(radius: int) -> Array:
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    return (y**2 + x**2 <= radius**2).astype(np.uint8)


def _erode(mask: Array, disc: Array, valid: Array) -> Array:
    return (cv2.erode((mask | ~valid).view(np.uint8), disc) > 0) & valid


def _dilate(mask: Array, disc: Array, valid: Array) -> Array:
    return (cv2.dilate((mask & valid).view(np.uint8), disc) > 0) & valid


OPERATIONS: dict[str, Callable[..., None]] = {
    "opening": opening,
    "closing": closing,
    "min_area": min_area,
    "largest_component": largest_component,
    "fill_holes": fill_holes,
    "smooth_borders": smooth_borders,
}


def _parsed(step: Mapping[str, Any], known: list[int]) -> tuple[Callable[..., None], list[int], dict[str, Any]]:
    """The operation, its classes and its arguments of a step, where known labels are those it may name."""
    arguments = dict(step)
    name, classes = arguments.pop("NAME", None), arguments.pop("CLASSES", None)
    if not isinstance(name, str) or name not in OPERATIONS:
        raise ValueError(f"unknown morphology operation {name!r}; known: {', '.join(OPERATIONS)}")
    if classes is not None and not isinstance(classes, (list, tuple)):
        raise ValueError(f"morphology operation {name}: CLASSES must be a list of class ids, got {classes!r}")
    allowed = {x.name: x.default for x in list(inspect.signature(OPERATIONS[name]).parameters.values())[3:]}
    if unknown := [x for x in arguments if x not in allowed]:
        raise ValueError(f"morphology operation {name} has no argument {unknown[0]!r}; known: {', '.join(allowed)}")
    if missing := [x for x, default in allowed.items() if default is inspect.Parameter.empty and x not in arguments]:
        raise ValueError(f"morphology operation {name} needs the argument {missing[0]!r}")
    given = [(x, value) for x, value in arguments.items() if value is not None or allowed[x] is not None]
    for key, value in [*(("CLASSES", label) for label in classes or ()), *given]:
        accepted = {"CLASSES": known, "fill": known, "connectivity": (4, 8)}.get(key, range(1, 1 << 31))
        if not isinstance(value, int) or isinstance(value, bool) or value not in accepted:
            wanted = {"CLASSES": "class ids", "fill": "a class id", "connectivity": "4 or 8"}.get(key, "at least 1")
            of = f" from {known[0]} to {known[-1]}" if accepted is known else ""
            raise ValueError(f"morphology operation {name}: {key} must be {wanted}{of}, got {value!r}")
    return OPERATIONS[name], known if classes is None else list(classes), arguments
