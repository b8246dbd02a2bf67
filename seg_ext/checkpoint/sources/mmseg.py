"""mmsegmentation's FCN, PSPNet, DeepLabv3, DeepLabv3+ on ResNet and ResNetV1c, and its U-Net with an FCN head.

Derived from mmsegmentation 1.2.2: mmseg/models/backbones/{resnet,unet}.py, utils/{res_layer,up_conv_block}.py and
decode_heads/{fcn,psp,aspp,sep_aspp}_head.py, which rename no tensor when they load a file of version 0.x.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from seg_ext.checkpoint.sources.mmseg_config import Recipe, recipe_of
from seg_ext.checkpoint.sources.naming import Hints, Imported, Rules, conv_norm, rename, resnet, semantic

_D = "sem_seg_head.decoder"


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
        for unit in range(1, 9)
        for rule in (
            *_module(rf"decode_head\.aspp_modules\.{unit}", f"{_D}.aspp.atrous.{unit - 1}"),
            *_separable(rf"decode_head\.aspp_modules\.{unit}", f"{_D}.aspp.atrous.{unit - 1}"),
        )
    ),
    *_module(r"decode_head\.bottleneck", f"{_D}.aspp.project"),
)
_HEADS: dict[str, Rules] = {
    "fcn": (
        *_module(r"decode_head\.convs\.(\d)", rf"{_D}.heads.res5.convs.\1"),
        *_module(r"decode_head\.conv_cat", f"{_D}.heads.res5.join"),
        (r"decode_head\.conv_seg\.(.+)", rf"{_D}.heads.res5.score.\1"),
    ),
    "pspnet": (
        *_module(r"decode_head\.psp_modules\.(\d)\.1", rf"{_D}.pyramid.projections.\1"),
        *_module(r"decode_head\.bottleneck", f"{_D}.head.0"),
        (r"decode_head\.conv_seg\.(.+)", rf"{_D}.head.2.\1"),
    ),
    "deeplabv3": (*_ASPP, (r"decode_head\.conv_seg\.(.+)", rf"{_D}.score.\1")),
    "deeplabv3plus": (
        *_ASPP,
        *_module(r"decode_head\.c1_bottleneck", f"{_D}.low_level"),
        *(
            rule
            for unit in (0, 1)
            for rule in _separable(rf"decode_head\.sep_bottleneck\.{unit}", f"{_D}.refine.{unit}")
        ),
        (r"decode_head\.conv_seg\.(.+)", rf"{_D}.score.\1"),
    ),
}
_AUX_HEADS = {"fcn": f"{_D}.heads.res4", "pspnet": f"{_D}.aux_head", "deeplabv3": f"{_D}.aux_head"}
_NO_AUX: Rules = ((r"auxiliary_head\..+", None),)


def _unet_rules(levels: int) -> Rules:
    """Of a U-Net of so many levels; decoder.0 is the shallowest of theirs, and the last of ours."""
    yield from (*_NO_AUX, (r"decode_head\.conv_seg\.(.+)", rf"{_D}.score.\1"))
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
    """A state dict of mmsegmentation; what its tensors do not say is as :func:`recipe_of` finds it.

    Raises:
        ValueError: another network.
    """
    if "decode_head.conv_seg.weight" not in state:
        if any(key.startswith("decode_head.") for key in state):
            raise ValueError(f"a decode_head of mmsegmentation other than those of {', '.join(_HEADS)}, unet")
        raise ValueError("no network of mmsegmentation: it has no decode_head.conv_seg")
    if "backbone.encoder.0.0.convs.0.conv.weight" in state:
        return _unet(state, hints)
    kind = _kind(state)
    if any(".downsample.2." in key for key in state):
        raise ValueError("its backbone averages in its shortcuts (ResNetV1d, ResNeSt): takes ResNet and ResNetV1c")
    keys, names, left_out = resnet(state, "backbone.")
    recipe = recipe_of(hints, kind=kind, depth=keys["DEPTH"])
    aux = _has_aux(kind, state, recipe)
    rules = _aux_rules(_AUX_HEADS[kind]) if aux else _NO_AUX
    head, unread = rename([key for key in state if not key.startswith("backbone.")], (*_HEADS[kind], *rules))
    names |= head
    weights = {name: state[key] for key, name in names.items()}
    project = f"{_D}.aspp.project.conv.weight"
    if project in weights:  # theirs begins with the image's mean, ours ends with it
        width = weights[f"{_D}.aspp.image.conv.weight"].shape[0]
        weights[project] = torch.cat((weights[project][:, width:], weights[project][:, :width]), dim=1)
    features = {"deeplabv3plus": ["res2", "res5"]}.get(kind, ["res4", "res5"] if aux else ["res5"])
    args = _arguments(kind, state, recipe) | ({} if kind == "deeplabv3plus" else {"aux": "res4" if aux else False})
    backbone = keys | _dilations(recipe) | {"OUT_FEATURES": ["res2", "res3", "res4", "res5"]}
    config = _config("resnet", "fcn_head" if kind == "fcn" else kind, args, state, features, recipe, RESNETS=backbone)
    title = f"mmsegmentation's {kind} on ResNet-{keys['DEPTH']}, d{recipe.stride}{'' if recipe.known else ' assumed'}"
    return Imported(title, config, names, weights, left_out=[*left_out, *unread])


def _kind(state: Mapping[str, Tensor]) -> str:
    if "decode_head.sep_bottleneck.0.depthwise_conv.conv.weight" in state:
        return "deeplabv3plus"
    if "decode_head.aspp_modules.0.conv.weight" in state:
        return "deeplabv3"
    if "decode_head.psp_modules.0.1.conv.weight" in state:
        return "pspnet"
    if "decode_head.convs.0.conv.weight" in state:
        return "fcn"
    raise ValueError(f"a decode_head of mmsegmentation other than those of {', '.join(_HEADS)}, unet")


def _has_aux(kind: str, state: Mapping[str, Tensor], recipe: Recipe) -> bool:
    """Whether its auxiliary head, which inference does not read, is as ours."""
    own = {key.split(".")[1] + key.split(".")[2] for key in state if key.startswith("auxiliary_head.")}
    if kind not in _AUX_HEADS or own != {"convs0", "conv_segweight", "conv_segbias"}:
        return False
    channels = state["backbone.layer4.0.conv1.weight"].shape[1]  # of layer3
    shape = (channels // 4, channels, 3, 3)
    fits = recipe.aux == (recipe.head if kind == "fcn" else 1)
    return fits and tuple(state["auxiliary_head.convs.0.conv.weight"].shape) == shape


def _aux_rules(ours: str) -> Rules:
    return (
        *_module(r"auxiliary_head\.convs\.0", f"{ours}.0"),
        (r"auxiliary_head\.conv_seg\.(.+)", rf"{ours}.2.\1"),
    )


def _dilations(recipe: Recipe) -> dict[str, Any]:
    """Keys of MODEL.RESNETS; its units of two convolutions dilate the first alone.

    Raises:
        ValueError: strides or dilations that our ResNet does not have.
    """
    grid = list(recipe.multi_grid)
    rates = [*recipe.dilations[:3], 1] if grid else list(recipe.dilations)  # their grid is the dilations, ours factors
    contracted = all(max(rate // 2, 1) == before for before, rate in pairwise(rates))
    if len(recipe.dilations) != 4 or rates[0] != 1 or (recipe.contract and not contracted):
        behind = f" and multi_grid {recipe.multi_grid}" if grid else ""
        raise ValueError(f"dilations {recipe.dilations}{behind} of its backbone: takes such as (1, 1, 2, 4)")
    usual = {8: [1, 1, 2, 4], 16: [1, 1, 1, 2], 32: [1, 1, 1, 1]}[recipe.stride]
    return {
        "OUTPUT_STRIDE": recipe.stride,
        "FIRST_DILATION": "previous" if recipe.contract else "own",
        "BASIC_DILATION": "first",
        "STRIDE_IN_1X1": recipe.caffe,
        **({} if rates == usual else {"DILATIONS": rates}),
        **({"MULTI_GRID": grid} if grid else {}),
    }


def _arguments(kind: str, state: Mapping[str, Tensor], recipe: Recipe) -> dict[str, Any]:
    head = {key.removeprefix("decode_head."): x for key, x in state.items() if key.startswith("decode_head.")}
    width = head["conv_seg.weight"].shape[1]
    if kind == "fcn":
        convs = sum(key.startswith("convs.") and key.endswith(".conv.weight") for key in head)
        dilation = {"dilation": recipe.head} if recipe.head > 1 else {}
        return {"channels": width, "convs": convs, "join_input": "conv_cat.conv.weight" in head, **dilation}
    if kind == "pspnet":
        return {"channels": width, "bins": list(recipe.bins), "align_corners": recipe.align_corners}
    if recipe.rates[:1] != (1,):
        raise ValueError(f"dilations {recipe.rates} of its decode_head: takes 1 before the others")
    args = {"rates": list(recipe.rates[1:]), "channels": width, "project_kernel_size": 3}
    if kind == "deeplabv3plus":
        low = head["c1_bottleneck.conv.weight"].shape[0]
        args |= {"separable": True, "low_level_channels": low, "align_corners": recipe.align_corners}
    return args


def _config(
    backbone: str,
    decoder: str,
    args: Mapping[str, Any],
    state: Mapping[str, Tensor],
    features: list[str],
    recipe: Recipe,
    **model: Any,
) -> dict[str, Any]:
    """The config around a decoder, with what the recipe says of images.

    Raises:
        ValueError: one score against another threshold than ours.
    """
    classes = state["decode_head.conv_seg.weight"].shape[0]
    if classes == 1 and recipe.threshold != 0.5:
        raise ValueError(f"one score a pixel, whose probability counts above {recipe.threshold:g}: takes 0.5")
    head = {"ALIGN_CORNERS": True} if recipe.align_corners else {}
    config = semantic(backbone, decoder, args, classes=classes, features=features, **model, SEM_SEG_HEAD=head)
    config["MODEL"] |= recipe.model
    config["INPUT"] |= recipe.inputs
    return config | ({"TEST": dict(recipe.test)} if recipe.test else {})


def _unet(state: Mapping[str, Tensor], hints: Hints) -> Imported:
    if "decode_head.psp_modules.0.1.conv.weight" in state or "decode_head.aspp_modules.0.conv.weight" in state:
        raise ValueError(
            "mmsegmentation's U-Net under a PSPNet or DeepLabv3 head, which is here with an FCN head alone"
        )
    recipe = recipe_of(hints, kind="unet")
    levels = len({key.split(".")[2] for key in state if key.startswith("backbone.encoder.")})
    names, unread = rename(state, list(_unet_rules(levels)))
    stages = [f"level{level + 1}" for level in range(levels)]
    width = state["backbone.encoder.0.0.convs.0.conv.weight"].shape[0]
    keys = {"WIDTH": width, "DEPTH": levels, "NORM": "BN", "DROPOUT": 0.0, "OUT_FEATURES": stages}
    args = {"up": "bilinear_conv", "head_conv": True}
    config = _config("unet", "unet", args, state, stages, recipe, UNET=keys)
    weights = {name: state[key] for key, name in names.items()}
    return Imported("mmsegmentation's U-Net with an FCN head", config, names, weights, left_out=unread)
