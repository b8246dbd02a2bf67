"""torchvision's segmentation networks: FCN, DeepLabv3 and Mask R-CNN on ResNets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from seg_ext.checkpoint.sources.naming import RGB, Hints, Imported, Rules, conv_norm, rename, resnet, semantic

_DECODER = "sem_seg_head.decoder"
_FCN: Rules = (
    *conv_norm("classifier", f"{_DECODER}.heads.res5.0"),
    (r"classifier\.4\.(.+)", rf"{_DECODER}.heads.res5.2.\1"),
    *conv_norm("aux_classifier", f"{_DECODER}.heads.res4.0"),
    (r"aux_classifier\.4\.(.+)", rf"{_DECODER}.heads.res4.2.\1"),
)
_DEEPLABV3: Rules = (
    *conv_norm(r"classifier\.0\.convs\.0", f"{_DECODER}.aspp.point"),
    *(
        rule
        for unit in (1, 2, 3)
        for rule in conv_norm(rf"classifier\.0\.convs\.{unit}", f"{_DECODER}.aspp.atrous.{unit - 1}")
    ),
    *conv_norm(r"classifier\.0\.convs\.4", f"{_DECODER}.aspp.image", "1", "2"),
    *conv_norm(r"classifier\.0\.project", f"{_DECODER}.aspp.project"),
    *conv_norm("classifier", f"{_DECODER}.refine", "1", "2"),
    (r"classifier\.4\.(.+)", rf"{_DECODER}.score.\1"),
    *conv_norm("aux_classifier", f"{_DECODER}.aux_head.0"),
    (r"aux_classifier\.4\.(.+)", rf"{_DECODER}.aux_head.2.\1"),
)
_BOX, _MASK = "roi_heads.box_predictor", "roi_heads.mask_head"
_MASK_RCNN: Rules = (
    *(
        (rf"backbone\.fpn\.inner_blocks\.{i}(?:\.0)?\.(weight|bias)", rf"backbone.fpn_lateral{i + 2}.\1")
        for i in range(4)
    ),
    *(
        (rf"backbone\.fpn\.layer_blocks\.{i}(?:\.0)?\.(weight|bias)", rf"backbone.fpn_output{i + 2}.\1")
        for i in range(4)
    ),
    *((rf"backbone\.fpn\.inner_blocks\.{i}\.1\.(.+)", rf"backbone.fpn_lateral{i + 2}.norm.\1") for i in range(4)),
    *((rf"backbone\.fpn\.layer_blocks\.{i}\.1\.(.+)", rf"backbone.fpn_output{i + 2}.norm.\1") for i in range(4)),
    (r"rpn\.head\.cls_logits\.(.+)", r"proposal_generator.rpn_head.objectness_logits.\1"),
    (r"rpn\.head\.bbox_pred\.(.+)", r"proposal_generator.rpn_head.anchor_deltas.\1"),
    (r"roi_heads\.box_head\.fc6\.(.+)", r"roi_heads.box_head.fc1.\1"),
    (r"roi_heads\.box_head\.fc7\.(.+)", r"roi_heads.box_head.fc2.\1"),
    (r"roi_heads\.box_head\.5\.(.+)", r"roi_heads.box_head.fc1.\1"),
    *((rf"roi_heads\.box_head\.{i}\.0\.(.+)", rf"roi_heads.box_head.conv{i + 1}.\1") for i in range(4)),
    *((rf"roi_heads\.box_head\.{i}\.1\.(.+)", rf"roi_heads.box_head.conv{i + 1}.norm.\1") for i in range(4)),
    (r"roi_heads\.box_predictor\.(.+)", rf"{_BOX}.\1"),
    *((rf"roi_heads\.mask_head\.{i}\.0\.(.+)", rf"{_MASK}.mask_fcn{i + 1}.\1") for i in range(4)),
    *((rf"roi_heads\.mask_head\.{i}\.1\.(.+)", rf"{_MASK}.mask_fcn{i + 1}.norm.\1") for i in range(4)),
    (r"roi_heads\.mask_head\.mask_fcn(\d)\.(.+)", rf"{_MASK}.mask_fcn\1.\2"),  # of files before version 0.13
    (r"roi_heads\.mask_predictor\.conv5_mask\.(.+)", rf"{_MASK}.deconv.\1"),
    (r"roi_heads\.mask_predictor\.mask_fcn_logits\.(.+)", rf"{_MASK}.predictor.\1"),
)
_RPN_ONE: Rules = ((r"rpn\.head\.conv(?:\.0\.0)?\.(weight|bias)", r"proposal_generator.rpn_head.conv.\1"),)
_RPN_TWO: Rules = ((r"rpn\.head\.conv\.(\d)\.0\.(.+)", r"proposal_generator.rpn_head.conv.conv\1.\2"),)
_PUBLISHED = {21: "FCN_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1", 91: "MaskRCNN_ResNet50_FPN_Weights.COCO_V1"}
_SHORT_SIDE = 520  # pixels, of torchvision's presets for semantic networks


def import_torchvision(state: Mapping[str, Tensor], hints: Hints) -> Imported:
    """fcn_resnet50/101, deeplabv3_resnet50/101, maskrcnn_resnet50_fpn and its _v2, or others with these layouts.

    Raises:
        ValueError: another network.
    """
    if "roi_heads.mask_predictor.conv5_mask.weight" in state:
        return _mask_rcnn(state)
    if "classifier.0.convs.0.0.weight" in state and "classifier.4.weight" in state:
        kind, rules = "deeplabv3", _DEEPLABV3
        args: dict[str, Any] = {"rates": [12, 24, 36], "dropout": 0.5, "head_conv": True}
    elif {"classifier.0.weight", "classifier.4.weight", "backbone.layer1.0.conv1.weight"} <= state.keys():
        kind, rules, args = "fcn", _FCN, {}
    else:
        raise ValueError(
            "none of torchvision's fcn_resnet, deeplabv3_resnet and maskrcnn_resnet50_fpn networks; "
            f"it has tensors named {', '.join(list(state)[:3])}"
        )
    keys, names, left_out = resnet(state, "backbone.")
    head, _ = rename([key for key in state if not key.startswith("backbone.")], rules)
    names |= head
    classes, aux = state["classifier.4.weight"].shape[0], "aux_classifier.4.weight" in state
    config = semantic(
        "resnet",
        "fcn_head" if kind == "fcn" else kind,
        args | ({"aux": "res4"} if aux else {}),
        classes=classes,
        features=["res4", "res5"] if aux else ["res5"],
        RESNETS=keys | {"OUTPUT_STRIDE": 8, "FIRST_DILATION": "previous", "OUT_FEATURES": ["res4", "res5"]},
        SEM_SEG_HEAD={"AUX_WEIGHT": 0.5},
    )
    config["INPUT"] |= {"MIN_SIZE_TEST": _SHORT_SIDE, "MAX_SIZE_TEST": 100 * _SHORT_SIDE}
    weights = {name: state[key] for key, name in names.items()}
    title = f"torchvision's {kind}_resnet{keys['DEPTH']}"
    return Imported(title, config, names, weights, left_out=left_out, classes={"semantic": _categories(classes)})


def _mask_rcnn(state: Mapping[str, Tensor]) -> Imported:
    keys, names, left_out = resnet(state, "backbone.body.")
    names = {key: name.replace("backbone.", "backbone.bottom_up.", 1) for key, name in names.items()}
    second = "rpn.head.conv.1.0.weight" in state
    rest = [key for key in state if not key.startswith("backbone.body.")]
    names |= rename(rest, (*_MASK_RCNN, *(_RPN_TWO if second else _RPN_ONE)))[0]
    classes = state["roi_heads.box_predictor.cls_score.weight"].shape[0]
    weights = {name: _background_last(name, state[key]) for key, name in names.items()}
    frozen = "backbone.body.bn1.num_batches_tracked" not in state
    config = _mask_rcnn_config(keys | {"NORM": "FrozenBN" if frozen else "BN"}, classes - 1, second, state)
    title = f"torchvision's maskrcnn_resnet{keys['DEPTH']}_fpn{'_v2' if second else ''}"
    found = _categories(classes)[1:]
    return Imported(title, config, names, weights, left_out=left_out, classes={"instance": found})


def _mask_rcnn_config(keys: dict[str, Any], classes: int, second: bool, state: Mapping[str, Tensor]) -> dict[str, Any]:
    stages = ["res2", "res3", "res4", "res5"]
    levels = ["p2", "p3", "p4", "p5"]
    pooler = {"POOLER_TYPE": "ROIAlign", "POOLER_SAMPLING_RATIO": 2}
    norm = "BN" if second else ""
    fc = state["roi_heads.box_head.5.weight" if second else "roi_heads.box_head.fc6.weight"].shape[0]
    box = {"NUM_CONV": 4, "CONV_DIM": state["roi_heads.box_head.0.0.weight"].shape[0]} if second else {}
    first = next(key for key in state if key.startswith("roi_heads.mask_head.") and state[key].dim() == 4)
    mask = sum(name in state for name in (f"roi_heads.mask_head.{i}.0.weight" for i in range(4))) or 4
    return {
        "MODEL": {
            "META_ARCHITECTURE": "PanopticSegmentor",
            "MASK_ON": True,
            **RGB,
            "BACKBONE": {"NAME": "build_seg_ext_resnet_fpn_backbone", "FREEZE_AT": 0},
            "RESNETS": keys | {"OUT_FEATURES": stages},
            "FPN": {"IN_FEATURES": stages, "NORM": norm, "OUT_CHANNELS": state["rpn.head.cls_logits.weight"].shape[1]},
            "SEM_SEG_HEAD": {"NAME": ""},
            "ANCHOR_GENERATOR": {
                "NAME": "RoundedAnchorGenerator",
                "SIZES": [[32], [64], [128], [256], [512]],
                "ASPECT_RATIOS": [[0.5, 1.0, 2.0]],
            },
            "RPN": {"IN_FEATURES": [*levels, "p6"], "CONV_DIMS": [-1, -1] if second else [-1],
                    "PRE_NMS_TOPK_TRAIN": 2000, "POST_NMS_TOPK_TRAIN": 2000, "PRE_NMS_TOPK_TEST": 1000,
                    "POST_NMS_TOPK_TEST": 1000},
            "ROI_HEADS": {"NAME": "StandardROIHeads", "NUM_CLASSES": classes, "IN_FEATURES": levels},
            "ROI_BOX_HEAD": {"NAME": "FastRCNNConvFCHead", "NUM_FC": 1 if second else 2, "FC_DIM": fc, "NORM": norm,
                             "POOLER_RESOLUTION": 7, **box, **pooler},
            "ROI_MASK_HEAD": {"NAME": "MaskRCNNConvUpsampleHead", "NUM_CONV": mask, "NORM": norm,
                              "CONV_DIM": state[first].shape[0], "POOLER_RESOLUTION": 14, **pooler},
        },
        "INPUT": {"FORMAT": "RGB", "MIN_SIZE_TEST": 800, "MAX_SIZE_TEST": 1333},
    }  # fmt: skip


def _background_last(name: str, value: Tensor) -> Tensor:
    """Rows of class scores with torchvision's first one, the background, last; boxes and masks have none for it."""
    if name.startswith(f"{_BOX}.cls_score"):
        return torch.cat((value[1:], value[:1]))
    if name.startswith(f"{_BOX}.bbox_pred"):
        return value[4:]
    return value[1:] if name.startswith(f"{_MASK}.predictor") else value


def background_first(name: str, value: Tensor) -> Tensor:
    """The inverse for our names; rows of boxes and masks of the background, which nothing reads, are 0."""
    if name.startswith(f"{_BOX}.cls_score"):
        return torch.cat((value[-1:], value[:-1]))
    rows = 4 if name.startswith(f"{_BOX}.bbox_pred") else 1 if name.startswith(f"{_MASK}.predictor") else 0
    return torch.cat((value.new_zeros(rows, *value.shape[1:]), value)) if rows else value


def _categories(classes: int) -> list[str]:
    """The classes of the networks that torchvision publishes with so many; else none."""
    from torchvision import models

    return list(models.get_weight(_PUBLISHED[classes]).meta["categories"]) if classes in _PUBLISHED else []
