"""What the heads on regions (RPN and ROI heads) ask of a backbone's maps, said before detectron2 builds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from seg_ext.errors import UserError

INDICES = "_indices"  # ends the names of maps of pooling places


def check_given(key: str, names: Sequence[str], shapes: Mapping[str, Any]) -> None:
    """Refuse names, of the config key ``key``, that are none of the backbone's maps, or an empty list of them.

    Raises:
        UserError: with the maps that there are.
    """
    missing = [str(name) for name in names if name not in list(shapes)]
    if missing or not names:
        what = f"{', '.join(missing)} not given by the backbone" if missing else "is empty"
        raise UserError(f"{key} {list(names)}: {what}, which gives {', '.join(shapes)}")


def check_region_maps(key: str, names: Sequence[str], shapes: Mapping[str, Any], *, pyramid: bool = False) -> None:
    """Refuse maps that a head on regions cannot read.

    Args:
        key: config key of ``names``, for the message.
        names: maps that the head reads.
        shapes: the backbone's ``output_shape()``.
        pyramid: whether regions are spread over the maps by their size, so that strides are to double.

    Raises:
        UserError: a map that the backbone does not give, whose cells do not begin at the image's first pixel, or that
            holds no features; unequal channels; with ``pyramid``, strides that are no powers of 2 or do not double.
    """
    check_given(key, names, shapes)
    said = f"{key} {list(names)}"
    for name in names:
        if name == "image" or name.endswith(INDICES):
            raise UserError(f"{said}: {name} holds {'the image' if name == 'image' else 'pooling places'}, no features")
        offset = getattr(shapes[name], "offset", 0)
        if offset:
            raise UserError(
                f"{said}: {name} begins at pixel {offset} of the image, and regions need maps that begin at 0; take"
                " maps of a backbone that pads by half a kernel"
            )
    channels = {name: shapes[name].channels for name in names}
    if len(set(channels.values())) > 1:
        raise UserError(f"{said}: channels {channels}; one head reads them all, so they must be equal, as an FPN's are")
    strides = {name: shapes[name].stride for name in names}
    powers = all(stride & (stride - 1) == 0 for stride in strides.values())
    if pyramid and not (powers and all(deep == 2 * shallow for shallow, deep in pairwise(strides.values()))):
        raise UserError(f"{said}: strides {strides}; takes one map, or maps of strides that double, powers of 2")


def check_anchors(sizes: Sequence[Any], ratios: Sequence[Any], names: Sequence[str]) -> None:
    """Refuse lists of anchors that are neither one for all maps nor one a map, or give maps unequal numbers of them.

    Raises:
        UserError: naming the numbers.
    """
    counts = [1] * len(names)
    for key, lists in (("SIZES", sizes), ("ASPECT_RATIOS", ratios)):
        nested = {isinstance(entry, Sequence) for entry in lists}
        if len(nested) > 1:
            raise UserError(f"MODEL.ANCHOR_GENERATOR.{key} {lists} mixes lists and numbers: takes one of the two")
        each = list(lists) if nested == {True} else [lists]
        if len(lists) == 0 or len(each) not in (1, len(names)):
            raise UserError(
                f"MODEL.ANCHOR_GENERATOR.{key} has {len(lists)} lists for {len(names)} of MODEL.RPN.IN_FEATURES"
                f" {list(names)}: takes one list, or one a map"
            )
        counts = [a * len(b) for a, b in zip(counts, each * len(names) if len(each) == 1 else each, strict=True)]
    if len(set(counts)) > 1 or not counts[0]:
        raise UserError(
            f"MODEL.ANCHOR_GENERATOR.SIZES and ASPECT_RATIOS give the maps of MODEL.RPN.IN_FEATURES {list(names)}"
            f" {counts} anchors a cell: takes the same number, 1 or more, on each"
        )


def check_c4(names: Sequence[str], shapes: Mapping[str, Any], *, res2_channels: int, keypoints: bool) -> None:
    """Refuse what Res5ROIHeads, which run ResNet's res5 on the regions of one map, cannot read.

    Raises:
        UserError: not one map, another width than that of res4, or keypoints.
    """
    said = f"MODEL.ROI_HEADS.NAME Res5ROIHeads with IN_FEATURES {list(names)}"
    if len(names) != 1 or shapes[names[0]].channels != 4 * res2_channels:
        channels = [shapes[name].channels for name in names]
        raise UserError(f"{said} of {channels} channels: takes one map as wide as res4, {4 * res2_channels} channels")
    if keypoints:
        raise UserError(f"{said}: gives no keypoints; set MODEL.KEYPOINT_ON False or take StandardROIHeads")
