"""Which instance a pixel belongs to, for heads of centres and offsets (Panoptic-DeepLab, Cheng et al., 2020)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seg_ext.data.label_io import read_panoptic_ids
from seg_ext.errors import UserError
from seg_ext.postprocess.centres import STUFF


class PanopticIds:
    """Of a record's panoptic map: void and crowds 0, stuff 1, the instances 2, 3, ...

    Centres and offsets follow from it after the augmentations, in the model.
    """

    key = "panoptic_ids"

    def __init__(self, *, ignore: int = 255) -> None:
        """Nothing to choose; ``ignore`` is every target's."""

    def __call__(self, record: Mapping[str, Any], label: NDArray[np.int32]) -> NDArray[np.float32]:
        """(H, W) float32 numbers.

        Raises:
            UserError: a record without a panoptic map, or a map of another size.
        """
        if "pan_seg_file_name" not in record:
            raise UserError(f"{record['file_name']}: INPUT.TARGETS panoptic_ids needs a panoptic data set")
        ids = read_panoptic_ids(record["pan_seg_file_name"])
        if ids.shape != label.shape:
            raise UserError(f"{record['pan_seg_file_name']} is {ids.shape}, but its label map {label.shape}")
        numbers = np.zeros(1 << 24, np.float32)  # of every id, VOID; only the pages that are written take memory
        following = STUFF + 1
        for segment in record["segments_info"]:
            if not segment.get("iscrowd") and 0 <= segment["id"] < len(numbers):
                numbers[segment["id"]] = following if segment["isthing"] else STUFF
                following += bool(segment["isthing"])
        return numbers[ids]
