"""What some losses want beside the label map, made in the loader: the table of INPUT.TARGETS."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_util

from seg_ext.data.border_weight import border_weight
from seg_ext.data.instances import compressed_rle
from seg_ext.data.label_io import read_stored_ids
from seg_ext.data.panoptic_targets import PanopticIds
from seg_ext.errors import UserError

Array = NDArray[Any]
Record = Mapping[str, Any]

CACHED_BYTES = 256 << 20  # of maps kept by one target in one process


class Target(Protocol):
    """A map that belongs to a record's label map and goes through its augmentations, nearest pixels and all."""

    @property
    def key(self) -> str:
        """Under which a mapped record has it."""

    def __call__(self, record: Record, label: NDArray[np.int32]) -> Array:
        """(H, W) float32 of the record, whose label map as stored is (H, W) train ids."""


class BorderWeight:
    """U-Net's weight of every pixel, greater between close instances (Ronneberger et al., 2015, eq. 2).

    Computed on the label map as stored, once for each image as long as they fit into 256 MiB.
    """

    key = "sem_seg_weight"

    def __init__(
        self,
        instances: str | Sequence[int] = "ids",
        *,
        w0: float = 10.0,
        sigma: float = 5.0,
        balance: bool = True,
        ignore: int = 255,
    ) -> None:
        """Say what the instances are.

        Args:
            instances: "ids", the raw ids of the label file but 0; "annotations", the record's masks; or classes,
                whose connected parts are instances.
            w0: emphasis where two borders meet.
            sigma: its reach, pixels.
            balance: w_c: every class of an image weighs as much as any other, 1 a pixel on average; else all are 1.
            ignore: train id that does not count.
        """
        classes = isinstance(instances, Sequence) and all(isinstance(c, int) for c in instances) and len(instances) > 0
        if instances not in ("ids", "annotations") and not classes:
            raise ValueError(f"instances is {instances!r}; it is ids, annotations or a list of classes")
        if w0 < 0 or sigma <= 0:
            raise ValueError(f"w0 {w0}, sigma {sigma}: they are >= 0 and > 0")
        self.instances, self.w0, self.sigma, self.balance, self.ignore = instances, w0, sigma, balance, ignore
        self._cache: OrderedDict[str, Array] = OrderedDict()

    def __call__(self, record: Record, label: NDArray[np.int32]) -> Array:
        """(H, W) float32 weights."""
        file = str(record["sem_seg_file_name"])
        if file not in self._cache:
            while self._cache and sum(x.nbytes for x in self._cache.values()) + 4 * label.size > CACHED_BYTES:
                self._cache.popitem(last=False)
            balance = _balance(label, self.ignore) if self.balance else 1.0
            ids = self._ids(record, label)
            self._cache[file] = border_weight(ids, balance=balance, w0=self.w0, sigma=self.sigma)
        self._cache.move_to_end(file)
        return self._cache[file]

    def _ids(self, record: Record, label: Array) -> Array:
        if self.instances == "ids":
            return read_stored_ids(record)
        if self.instances == "annotations":
            if "annotations" not in record:
                raise UserError(f"{record['file_name']}: border_weight of annotations needs a data set with instances")
            return _paint(record["annotations"], label.shape)
        ids, count = np.zeros(label.shape, np.int32), 0
        for class_id in self.instances:
            number, parts = cv2.connectedComponents((label == class_id).astype(np.uint8), connectivity=4)
            ids = np.where(parts > 0, parts + count, ids)
            count += number - 1
        return ids


TARGETS: dict[str, Callable[..., Target]] = {
    "border_weight": BorderWeight,
    "panoptic_ids": PanopticIds,
}


def build_targets(entries: Sequence[Mapping[str, Any]], *, ignore: int = 255) -> list[Target]:
    """The targets of ``INPUT.TARGETS``: each entry has NAME, of :data:`TARGETS`, and its constructor's arguments.

    Raises:
        UserError: an unknown name or argument, with the known ones, or a value that does not fit.
    """
    targets: list[Target] = []
    for i, entry in enumerate(entries):
        key, name = f"INPUT.TARGETS[{i}]", entry.get("NAME") if isinstance(entry, Mapping) else None
        if name not in TARGETS:
            raise UserError(f"{key}: NAME is {name!r}; known: {', '.join(TARGETS)}")
        known = [argument for argument in inspect.signature(TARGETS[name]).parameters if argument != "ignore"]
        given = {argument: value for argument, value in entry.items() if argument != "NAME"}
        unknown = [argument for argument in given if argument not in known]
        if unknown:
            raise UserError(f"{key}: {name} has no argument {', '.join(unknown)}; known: {', '.join(known)}")
        try:
            targets.append(TARGETS[name](**given, ignore=ignore))
        except (TypeError, ValueError) as error:
            raise UserError(f"{key}: {name}: {error}") from error
    return targets


def _balance(label: Array, ignore: int) -> Array:
    """(H, W) weights w_c = n / (C n_c) of C classes in n pixels that count; 0 where ignored."""
    counted = label != ignore
    classes, numbers, counts = np.unique(label[counted], return_inverse=True, return_counts=True)
    weights = np.zeros(label.shape)
    weights[counted] = (counted.sum() / (len(classes) * counts))[numbers]
    return weights


def _paint(annotations: Sequence[Record], shape: tuple[int, ...]) -> Array:
    """(H, W) numbers from 1 of the annotations, crowds left out."""
    ids = np.zeros(shape, np.int32)
    for number, annotation in enumerate((a for a in annotations if not a.get("iscrowd", 0)), start=1):
        rle = compressed_rle(annotation["segmentation"], (shape[0], shape[1]))
        ids[mask_util.decode(rle).astype(bool)] = number
    return ids
