"""A batch of model inputs as tensors and containers alone, which can be read back without running code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from detectron2.structures import BitMasks, Boxes, Instances, Keypoints, PolygonMasks, ROIMasks, RotatedBoxes
from torch import Tensor

from seg_ext.errors import UserError

_KIND = "of class"
_AROUND_A_TENSOR: dict[str, Any] = {cls.__name__: cls for cls in (BitMasks, Boxes, Keypoints, ROIMasks, RotatedBoxes)}


def to_plain(value: Any) -> Any:
    """Tensors on the CPU, numbers, strings and containers; what is of an unknown class becomes its text."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, np.ndarray):
        return {_KIND: "ndarray", "tensor": torch.from_numpy(np.ascontiguousarray(value))}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Instances):
        fields = {name: to_plain(field) for name, field in value.get_fields().items()}
        return {_KIND: "Instances", "image_size": [int(x) for x in value.image_size], "fields": fields}
    if isinstance(value, PolygonMasks):
        return {_KIND: "PolygonMasks", "polygons": to_plain(value.polygons)}
    if type(value).__name__ in _AROUND_A_TENSOR:
        return {_KIND: type(value).__name__, "tensor": value.tensor.detach().cpu()}
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(to_plain, value)) if type(value) in (list, tuple) else list(map(to_plain, value))
    if value is None or type(value) in (bool, int, float, str):
        return value
    return {_KIND: type(value).__qualname__, "text": repr(value)}


def from_plain(value: Any) -> Any:
    """What :func:`to_plain` was given.

    Raises:
        UserError: it held an object of a class unknown here.
    """
    if isinstance(value, (list, tuple)):
        return type(value)(map(from_plain, value))
    if not isinstance(value, dict):
        return value
    kind = value.get(_KIND)
    if kind is None:
        return {key: from_plain(item) for key, item in value.items()}
    if kind == "ndarray":
        return value["tensor"].numpy()
    if kind == "Instances":
        fields = {name: from_plain(field) for name, field in value["fields"].items()}
        return Instances(tuple(value["image_size"]), **fields)
    if kind == "PolygonMasks":
        return PolygonMasks(from_plain(value["polygons"]))
    if kind in _AROUND_A_TENSOR:
        return _AROUND_A_TENSOR[kind](value["tensor"])
    raise UserError(f"the batch holds a {kind}, of which only the text was kept: {value.get('text', '')}")
