"""detectron2's Mask R-CNN, Panoptic FPN, DeepLabv3(+) and Panoptic-DeepLab, as published, in the shipped configs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from seg_ext.checkpoint.sources.naming import Hints, Imported
from seg_ext.modeling.resnet import UNITS

_LARGE = "backbone.bottom_up.res4.22.conv1.weight"  # which ResNet-101 has


def import_detectron2(state: Mapping[str, Tensor], hints: Hints) -> Imported:
    """A checkpoint of detectron2 on the config of ours that has its network; classes follow the file.

    Names are left to :func:`seg_ext.checkpoint.detectron2_names.our_names`.

    Raises:
        ValueError: another network.
    """
    base = _base(state)
    config: dict[str, Any] = {"MODEL": {"WEIGHTS": ""}}
    model = config["MODEL"]
    if "sem_seg_head.predictor.weight" in state:
        model["SEM_SEG_HEAD"] = {"NUM_CLASSES": state["sem_seg_head.predictor.weight"].shape[0]}
    if "roi_heads.box_predictor.cls_score.weight" in state:
        model["ROI_HEADS"] = {"NUM_CLASSES": state["roi_heads.box_predictor.cls_score.weight"].shape[0] - 1}
    prefix = "backbone.bottom_up." if "backbone.fpn_lateral2.weight" in state else "backbone."
    counts = tuple(
        len({key.split(".")[prefix.count(".") + 1] for key in state if key.startswith(f"{prefix}res{i}.")})
        for i in (2, 3, 4, 5)
    )
    depth = next((d for d, units in UNITS.items() if units == counts and d >= 50), None)
    if depth is None:
        raise ValueError(f"its backbone is no ResNet-50, -101 or -152: {counts} units a stage")
    unit = state[f"{prefix}res2.0.conv2.weight"]
    model["RESNETS"] = {
        "DEPTH": depth,
        "NUM_GROUPS": unit.shape[0] // unit.shape[1],
        "WIDTH_PER_GROUP": unit.shape[1],
    }
    if unit.shape[0] != unit.shape[1]:  # published ResNeXts have Caffe2's strides and deviations
        model["RESNETS"]["STRIDE_IN_1X1"] = False
        model["PIXEL_STD"] = [57.375, 57.12, 58.395]
    return Imported(f"detectron2's network of {base}", config, {}, dict(state), base=base)


def _base(state: Mapping[str, Tensor]) -> str:
    """The shipped config of the network that a state dict belongs to."""
    if "ins_embed_head.center_predictor.weight" in state:
        separable = "sem_seg_head.head.depthwise.weight" in state
        return f"cityscapes/panoptic_deeplab_R_52_os16{'_separable' * separable}.yaml"
    if "sem_seg_head.aspp.project.weight" in state:
        return "cityscapes/deeplabv3_R_103_os16.yaml"
    if "sem_seg_head.decoder.res2.fuse_conv.0.weight" in state:
        return "cityscapes/deeplabv3plus_R_103_os16.yaml"
    instances = "roi_heads.mask_head.predictor.weight" in state and "backbone.fpn_lateral2.weight" in state
    if instances and "sem_seg_head.p2.0.weight" in state:
        return f"coco/panoptic_fpn_R_{'101_3x' if _LARGE in state else '50_1x'}.yaml"
    if instances:
        return f"coco/mask_rcnn_R_{'101_FPN_3x' if _LARGE in state else '50_FPN_1x'}.yaml"
    raise ValueError(
        "none of detectron2's Mask R-CNN FPN, Panoptic FPN, DeepLabV3, DeepLabV3+ and Panoptic-DeepLab; "
        f"it has tensors named {', '.join(list(state)[:3])}"
    )
