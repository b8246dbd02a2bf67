"""mmsegmentation's FCN, PSPNet, DeepLabv3, DeepLabv3+ (ResNetV1c, output stride 8) and U-Net with an FCN head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from seg_ext.checkpoint.sources.naming import Hints, Imported, Rules, conv_norm, rename, resnet, semantic

_D = "sem_seg_head.decoder"
_AUX = r"auxiliary_head\.convs\.0"


def _module(theirs: str, ours: str) -> Rules:
    return conv_norm(theirs, ours, "conv", "bn")


def _separable(theirs: str, ours: str) -> Rules:
    return (
        *_module(rf"{theirs}\.depthwise_conv", f"{ours}.depthwise"),
        *_module(rf"{theirs}\.pointwise_conv", f"{ours}.pointwise"),
    )


_ASPP: Rules = (
    *_module(r"decode_head\.image_pool\.1", f"{_D}.aspp.image"),
    *_module(r"decode_head\.aspp_modules\.0", f"{_D}.aspp.point"),
    *(
        rule
        for unit in (1, 2, 3)
        for rule in (
            *_module(rf"decode_head\.aspp_modules\.{unit}", f"{_D}.aspp.atrous.{unit - 1}"),
            *_separable(rf"decode_head\.aspp_modules\.{unit}", f"{_D}.aspp.atrous.{unit - 1}"),
        )
    ),
    *_module(r"decode_head\.bottleneck", f"{_D}.aspp.project"),
)
_HEADS: dict[str, Rules] = {
    "fcn_head": (
        *_module(r"decode_head\.convs\.(\d)", rf"{_D}.heads.res5.convs.\1"),
        *_module(r"decode_head\.conv_cat", f"{_D}.heads.res5.join"),
        (r"decode_head\.conv_seg\.(.+)", rf"{_D}.heads.res5.score.\1"),
        *_module(_AUX, f"{_D}.heads.res4.0"),
        (r"auxiliary_head\.conv_seg\.(.+)", rf"{_D}.heads.res4.2.\1"),
    ),
    "pspnet": (
        *_module(r"decode_head\.psp_modules\.(\d)\.1", rf"{_D}.pyramid.projections.\1"),
        *_module(r"decode_head\.bottleneck", f"{_D}.head.0"),
        (r"decode_head\.conv_seg\.(.+)", rf"{_D}.head.2.\1"),
        *_module(_AUX, f"{_D}.aux_head.0"),
        (r"auxiliary_head\.conv_seg\.(.+)", rf"{_D}.aux_head.2.\1"),
    ),
    "deeplabv3": (
        *_ASPP,
        (r"decode_head\.conv_seg\.(.+)", rf"{_D}.score.\1"),
        *_module(_AUX, f"{_D}.aux_head.0"),
        (r"auxiliary_head\.conv_seg\.(.+)", rf"{_D}.aux_head.2.\1"),
    ),
    "deeplabv3plus": (
        *_ASPP,
        *_module(r"decode_head\.c1_bottleneck", f"{_D}.low_level"),
        *(
            rule
            for unit in (0, 1)
            for rule in _separable(rf"decode_head\.sep_bottleneck\.{unit}", f"{_D}.refine.{unit}")
        ),
        (r"decode_head\.conv_seg\.(.+)", rf"{_D}.score.\1"),
        (r"auxiliary_head\..+", None),  # our DeepLabv3+ has no auxiliary head
    ),
}


def _unet_rules(levels: int) -> Rules:
    """Of a U-Net of so many levels; decoder.0 is the shallowest of theirs, and the last of ours."""
    yield from ((r"auxiliary_head\..+", None), (r"decode_head\.conv_seg\.(.+)", rf"{_D}.score.\1"))
    yield from _module(r"decode_head\.convs\.0", f"{_D}.refine")
    for level in range(levels):
        yield from _module(
            rf"backbone\.encoder\.{level}\.{int(level > 0)}\.convs\.(\d)",
            rf"backbone.encoder.levels.level{level + 1}.\1",
        )
        block = f"{_D}.blocks.{levels - 2 - level}"
        yield from _module(rf"backbone\.decoder\.{level}\.conv_block\.convs\.(\d)", rf"{block}.convs.\1")
        yield from _module(rf"backbone\.decoder\.{level}\.upsample\.interp_upsample\.1", f"{block}.reduce")


def import_mmseg(state: Mapping[str, Tensor], hints: Hints) -> Imported:
    """A state dict of mmsegmentation; rates and output stride are those of its public configs (d8).

    Raises:
        ValueError: another network.
    """
    if "decode_head.conv_seg.weight" not in state:
        raise ValueError("no network of mmsegmentation: it has no decode_head.conv_seg")
    if "backbone.encoder.0.0.convs.0.conv.weight" in state:
        return _unet(state)
    kind = _kind(state)
    keys, names, left_out = resnet(state, "backbone.")
    head, unread = rename([key for key in state if not key.startswith("backbone.")], _HEADS[kind])
    names |= head
    weights = {name: state[key] for key, name in names.items()}
    project = f"{_D}.aspp.project.conv.weight"
    if project in weights:  # theirs begins with the image's mean, ours ends with it
        width = weights[f"{_D}.aspp.image.conv.weight"].shape[0]
        weights[project] = torch.cat((weights[project][:, width:], weights[project][:, :width]), dim=1)
    aux = "auxiliary_head.conv_seg.weight" in state and kind != "deeplabv3plus"
    features = {"deeplabv3plus": ["res2", "res5"]}.get(kind, ["res4", "res5"] if aux else ["res5"])
    config = semantic(
        "resnet",
        kind,
        _arguments(kind, state) | ({} if kind == "deeplabv3plus" else {"aux": "res4" if aux else False}),
        classes=state["decode_head.conv_seg.weight"].shape[0],
        features=features,
        RESNETS=keys
        | {"OUTPUT_STRIDE": 8, "FIRST_DILATION": "previous", "OUT_FEATURES": ["res2", "res3", "res4", "res5"]},
    )
    title = f"mmsegmentation's {kind} on ResNet-{keys['DEPTH']}"
    return Imported(title, config, names, weights, left_out=[*left_out, *unread])


def _kind(state: Mapping[str, Tensor]) -> str:
    if "decode_head.sep_bottleneck.0.depthwise_conv.conv.weight" in state:
        return "deeplabv3plus"
    if "decode_head.aspp_modules.0.conv.weight" in state:
        return "deeplabv3"
    if "decode_head.psp_modules.0.1.conv.weight" in state:
        return "pspnet"
    if "decode_head.convs.0.conv.weight" in state:
        return "fcn_head"
    raise ValueError("a decode_head of mmsegmentation other than those of fcn, pspnet, deeplabv3, deeplabv3plus, unet")


def _arguments(kind: str, state: Mapping[str, Tensor]) -> dict[str, Any]:
    head = {key.removeprefix("decode_head."): x for key, x in state.items() if key.startswith("decode_head.")}
    width = head["conv_seg.weight"].shape[1]
    if kind == "fcn_head":
        convs = sum(key.startswith("convs.") and key.endswith(".conv.weight") for key in head)
        return {"channels": width, "convs": convs, "join_input": "conv_cat.conv.weight" in head}
    if kind == "pspnet":
        return {"channels": width, "align_corners": False}
    args = {"rates": [12, 24, 36], "channels": width, "project_kernel_size": 3}
    if kind == "deeplabv3plus":
        args |= {"separable": True, "low_level_channels": head["c1_bottleneck.conv.weight"].shape[0]}
    return args


def _unet(state: Mapping[str, Tensor]) -> Imported:
    if "decode_head.psp_modules.0.1.conv.weight" in state or "decode_head.aspp_modules.0.conv.weight" in state:
        raise ValueError(
            "mmsegmentation's U-Net under a PSPNet or DeepLabv3 head, which is here with an FCN head alone"
        )
    levels = len({key.split(".")[2] for key in state if key.startswith("backbone.encoder.")})
    names, unread = rename(state, list(_unet_rules(levels)))
    config = semantic(
        "unet",
        "unet",
        {"up": "bilinear_conv", "head_conv": True},
        classes=state["decode_head.conv_seg.weight"].shape[0],
        features=[f"level{level + 1}" for level in range(levels)],
        UNET={
            "WIDTH": state["backbone.encoder.0.0.convs.0.conv.weight"].shape[0],
            "DEPTH": levels,
            "NORM": "BN",
            "DROPOUT": 0.0,
            "OUT_FEATURES": [f"level{level + 1}" for level in range(levels)],
        },
    )
    weights = {name: state[key] for key, name in names.items()}
    return Imported("mmsegmentation's U-Net with an FCN head", config, names, weights, left_out=unread)
