"""segmentation_models_pytorch: Unet, UnetPlusPlus, Linknet, FPN, PSPNet and its DeepLabs, on ResNets and VGG-16."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from seg_ext.checkpoint.sources.naming import Hints, Imported, Rules, conv_norm, rename, resnet, semantic, vgg

_D = "sem_seg_head.decoder"
_MAPS = {  # names of the maps that smp counts as 1, 2, ...; its 0 is not read
    "resnet": ("conv1", "res2", "res3", "res4", "res5"),
    "vgg": ("conv2", "conv3", "conv4", "conv5", "pool5"),
}


@dataclass(frozen=True)
class _Net:
    """What a network's rules and arguments are made from."""

    state: Mapping[str, Tensor]
    maps: Sequence[str]
    rates: Sequence[int]
    depth: int  # of PSPNet's encoder, where its channels do not tell it

    def width(self, key: str, axis: int = 0) -> int:
        return int(self.state[f"{key}.weight"].shape[axis])

    def count(self, start: str, end: str) -> int:
        return sum(key.startswith(start) and key.endswith(end) for key in self.state)


Made = tuple[str, list[str], dict[str, Any], list[Any]]  # decoder, features, arguments, rules


def _unet(net: _Net) -> Made:
    blocks = net.count("decoder.blocks.", ".conv1.0.weight")
    widths = [net.width(f"decoder.blocks.{i}.conv1.0") for i in range(blocks)]
    centre = net.count("decoder.center.", ".0.weight")
    args = {"up": "nearest", "skip_first": False, "channels": widths[:-1], "extra_ups": widths[-1:],
            "centre_convs": centre, "score_kernel_size": net.width("segmentation_head.0", 2)}  # fmt: skip
    rules = [
        *(
            rule
            for i in (1, 2)
            for rule in conv_norm(rf"decoder\.blocks\.(\d)\.conv{i}", rf"{_D}.blocks.\1.convs.{i - 1}")
        ),
        *conv_norm(r"decoder\.center\.(\d)", rf"{_D}.centre.\1"),
        (r"segmentation_head\.0\.(.+)", rf"{_D}.score.\1"),
    ]
    return "unet", list(net.maps[:blocks]), args, rules


def _unetpp(net: _Net) -> Made:
    def nodes() -> Iterator[tuple[str, str | None]]:
        for layer in range(4):
            for depth in range(layer + 1):
                ours = f"{_D}.nodes.x{3 - layer}{1 + layer - depth}.convs"
                for i in (1, 2):
                    yield from conv_norm(rf"decoder\.blocks\.x_{depth}_{layer}\.conv{i}", f"{ours}.{i - 1}")
        for i in (1, 2):
            yield from conv_norm(rf"decoder\.blocks\.x_0_4\.conv{i}", f"{_D}.extra.0.convs.{i - 1}")

    widths = [net.width(f"decoder.blocks.x_0_{i}.conv1.0") for i in range(5)]
    args = {"deep_supervision": False, "up": "nearest", "skip_first": False, "channels": widths[:-1],
            "extra_ups": widths[-1:], "dropout": 0.0,
            "score_kernel_size": net.width("segmentation_head.0", 2)}  # fmt: skip
    head = (r"segmentation_head\.0\.(.+)", rf"{_D}.heads.x04.\1")
    return "unetpp", list(net.maps), args, [*nodes(), (r"decoder\.center\..+", None), head]


def _linknet(net: _Net) -> Made:
    blocks = net.count("decoder.blocks.", ".block.0.0.weight")
    rules = [
        rule
        for i, part in enumerate(("reduce", "up", "expand"))
        for rule in conv_norm(rf"decoder\.blocks\.(\d)\.block\.{i}", rf"{_D}.blocks.\1.{part}")
    ]
    head = (r"segmentation_head\.0\.(.+)", rf"{_D}.score.\1")
    last = net.width(f"decoder.blocks.{blocks - 1}.block.2.0")
    return "linknet", list(net.maps[:blocks]), {"channels": last}, [*rules, head]


def _fpn(net: _Net) -> Made:
    names = list(net.maps[1:])
    channels = net.width("decoder.seg_blocks.0.block.0.block.0")
    merge = "sum" if net.width("segmentation_head.0", 1) == channels else "cat"
    rules: list[Any] = [(r"decoder\.p5\.(.+)", rf"{_D}.laterals.{names[-1]}.\1")]
    rules += [(rf"decoder\.p{i + 2}\.skip_conv\.(.+)", rf"{_D}.laterals.{names[i]}.\1") for i in range(3)]
    for i, name in enumerate(reversed(names)):
        rules += conv_norm(rf"decoder\.seg_blocks\.{i}\.block\.(\d)\.block", rf"{_D}.branches.{name}.\1")
    rules.append((r"segmentation_head\.0\.(.+)", rf"{_D}.score.\1"))
    args = {"pyramid": net.width("decoder.p5"), "channels": channels, "merge": merge, "align_corners": True,
            "dropout": 0.2}  # fmt: skip
    return "semantic_fpn", names, args, rules


def _pspnet(net: _Net) -> Made:
    rules = [
        *conv_norm(r"decoder\.psp\.blocks\.(\d)\.pool\.1", rf"{_D}.pyramid.projections.\1"),
        *conv_norm(r"decoder\.conv", f"{_D}.head.0"),
        (r"segmentation_head\.0\.(.+)", rf"{_D}.head.2.\1"),
    ]
    deep = net.width("decoder.psp.blocks.0.pool.1.0", 1)
    shapes = {"resnet": ((64, 64, 128, 256, 512), (64, 256, 512, 1024, 2048)), "vgg": ((128, 256, 512, 512, 512),)}
    family = "resnet" if net.maps[0] == "conv1" else "vgg"
    bottleneck = "encoder.layer1.0.conv3.weight" in net.state
    place = shapes[family][int(bottleneck)].index(deep)
    if family == "vgg" and place == 2:  # the deeper maps have as many channels
        place = net.depth - 1
    if place < 2:
        raise ValueError("smp's PSPNet with encoder_depth below 3: takes 3 to 5")
    args = {"channels": net.width("decoder.conv.0"), "kernel_size": 1, "score_kernel_size": 3, "norm_mean": False,
            "aux": False, "dropout": 0.2}  # fmt: skip
    return "pspnet", [net.maps[place]], args, rules


def _deeplabv3(net: _Net) -> Made:
    if "decoder.aspp.convs.1.0.0.weight" in net.state:
        raise ValueError("smp's DeepLabV3 with decoder_aspp_separable True: takes False, its default")
    rules = [
        *_aspp(r"decoder\.aspp", separable=False),
        (r"decoder\.conv\.(.+)", rf"{_D}.refine.conv.\1"),
        (r"decoder\.bn\.(.+)", rf"{_D}.refine.norm.\1"),
        (r"segmentation_head\.0\.(.+)", rf"{_D}.score.\1"),
    ]
    args = {"rates": list(net.rates), "channels": net.width("decoder.conv"), "head_conv": True, "dropout": 0.5}
    return "deeplabv3", [net.maps[-1]], args, rules


def _deeplabv3plus(net: _Net) -> Made:
    separable = "decoder.aspp.0.convs.1.0.0.weight" in net.state
    rules = [
        *_aspp(r"decoder\.aspp\.0", separable=separable),
        *_separable(r"decoder\.aspp", f"{_D}.aspp_conv", at=1),
        *conv_norm(r"decoder\.block1", f"{_D}.low_level"),
        *_separable(r"decoder\.block2", f"{_D}.refine.0"),
        (r"segmentation_head\.0\.(.+)", rf"{_D}.score.\1"),
    ]
    args = {"rates": list(net.rates), "channels": net.width("segmentation_head.0", 1), "separable": True,
            "aspp_separable": separable, "bare_depthwise": True, "aspp_conv": True, "refine_convs": 1,
            "align_corners": True, "low_level_channels": net.width("decoder.block1.0"), "dropout": 0.5}  # fmt: skip
    return "deeplabv3plus", [net.maps[1], net.maps[-1]], args, rules


def _separable(theirs: str, ours: str, at: int = 0) -> Rules:
    return (
        (rf"{theirs}\.{at}\.0\.(.+)", rf"{ours}.depthwise.conv.\1"),
        (rf"{theirs}\.{at}\.1\.(.+)", rf"{ours}.pointwise.conv.\1"),
        (rf"{theirs}\.{at + 1}\.(.+)", rf"{ours}.pointwise.norm.\1"),
    )


def _aspp(theirs: str, *, separable: bool) -> Rules:
    yield from conv_norm(rf"{theirs}\.convs\.0", f"{_D}.aspp.point")
    for i in (1, 2, 3):
        branch = rf"{theirs}\.convs\.{i}", f"{_D}.aspp.atrous.{i - 1}"
        yield from _separable(*branch) if separable else conv_norm(*branch)
    yield from conv_norm(rf"{theirs}\.convs\.4", f"{_D}.aspp.image", "1", "2")
    yield from conv_norm(rf"{theirs}\.project", f"{_D}.aspp.project")


_NETWORKS: dict[
    str, tuple[str, Callable[[_Net], Made], int | None]
] = {  # a tensor that only this one has -> what makes it, its output stride
    "decoder.blocks.x_0_0.conv1.0.weight": ("UnetPlusPlus", _unetpp, None),
    "decoder.blocks.0.block.0.0.weight": ("Linknet", _linknet, None),
    "decoder.blocks.0.conv1.0.weight": ("Unet", _unet, None),
    "decoder.p5.weight": ("FPN", _fpn, None),
    "decoder.psp.blocks.0.pool.1.0.weight": ("PSPNet", _pspnet, None),
    "decoder.aspp.0.convs.0.0.weight": ("DeepLabV3Plus", _deeplabv3plus, 16),
    "decoder.aspp.convs.0.0.weight": ("DeepLabV3", _deeplabv3, 8),
}


def _recognise(state: Mapping[str, Tensor]) -> tuple[tuple[str, Callable[[_Net], Made], int | None], str]:
    """The network's row, and the family of its encoder."""
    found = next((entry for mark, entry in _NETWORKS.items() if mark in state), None)
    if found is None or "segmentation_head.0.weight" not in state:
        raise ValueError(f"no network of smp that is known here: {', '.join(entry[0] for entry in _NETWORKS.values())}")
    if "encoder.features.0.weight" in state:
        return found, "vgg"
    if "encoder.layer1.0.conv1.weight" not in state:
        raise ValueError("an encoder of smp other than its resnets, resnexts, vgg16 and vgg16_bn")
    return found, "resnet"


def import_smp(state: Mapping[str, Tensor], hints: Hints) -> Imported:
    """A network of segmentation_models_pytorch.

    Output stride, rates and the depth of a PSPNet on VGG are its defaults, or of config.json beside it.

    Raises:
        ValueError: another network or interpolation, or another encoder than ResNet and VGG-16.
    """
    interpolation = hints.config.get("decoder_interpolation", "nearest")
    if interpolation != "nearest":
        raise ValueError(f"smp's decoder_interpolation {interpolation!r}: takes 'nearest', its default")
    (title, make, stride), family = _recognise(state)
    keys, names, left_out = resnet(state, "encoder.") if family == "resnet" else vgg(state, "encoder.")
    stride = hints.config.get("encoder_output_stride", stride) if stride else None
    rates = hints.config.get("decoder_atrous_rates", (12, 24, 36))
    depth = hints.config.get("encoder_depth", 3)
    decoder, features, args, rules = make(_Net(state, _MAPS[family], rates, depth))
    own = [key for key in state if not key.startswith(("encoder.", "classification_head."))]
    left_out += [key for key in state if key.startswith("classification_head.")]
    head, unread = rename(own, rules)
    names |= head
    if stride:
        keys["OUTPUT_STRIDE"] = stride
    config = semantic(
        family,
        decoder,
        args,
        classes=state["segmentation_head.0.weight"].shape[0],
        features=features,
        **{"VGG" if family == "vgg" else "RESNETS": keys | {"OUT_FEATURES": features}},
        SEM_SEG_HEAD={"ALIGN_CORNERS": True, **({"NORM": "GN"} if decoder == "semantic_fpn" else {})},
    )
    deeper = (
        tuple(f"backbone.{name}." for name in ("res4", "res5") if features[-1] < name) if family == "resnet" else ()
    )
    unread += [key for key, name in names.items() if name.startswith(deeper)] if deeper else []
    names = {key: name for key, name in names.items() if key not in unread}
    weights = {name: state[key] for key, name in names.items()}
    if decoder == "pspnet":  # their concatenation ends with the map itself, ours begins with it
        weight = weights[f"{_D}.head.0.conv.weight"]
        means = weight.shape[1] // 2
        weights[f"{_D}.head.0.conv.weight"] = torch.cat((weight[:, means:], weight[:, :means]), dim=1)
    if args.get("merge") == "cat":  # theirs begins with the deepest branch, ours with the shallowest
        weight = weights[f"{_D}.score.weight"]
        weights[f"{_D}.score.weight"] = torch.cat(weight.chunk(len(features), dim=1)[::-1], dim=1)
    return Imported(f"smp's {title} on a {family}", config, names, weights, left_out=[*left_out, *unread])
