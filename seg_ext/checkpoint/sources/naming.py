"""What importers share: names by rules, ResNets and VGGs of any library, the config around a semantic decoder."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from seg_ext.checkpoint.imagenet import resnet_name
from seg_ext.encoders.vgg import from_torchvision
from seg_ext.modeling.resnet import UNITS

RGB = {"PIXEL_MEAN": [123.675, 116.28, 103.53], "PIXEL_STD": [58.395, 57.12, 57.375]}  # of ImageNet, in 0 to 255
Rules = Iterable[tuple[str, str | None]]


@dataclass(frozen=True)
class Hints:
    """What a state dict cannot say.

    Attributes:
        arch: name of the network or its config in its library, or "".
        config: what the library wrote beside the weights, such as config.json.
        meta: what the checkpoint says of itself, as mmsegmentation's do.
        file: its name, which may say its network too.
    """

    arch: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)
    file: str = ""


@dataclass
class Imported:
    """A network of another library as one of ours.

    Attributes:
        title: what it is.
        config: over the defaults, nested as a yaml is.
        base: shipped config under it, or "".
        names: each of their tensors -> ours.
        weights: by our names.
        left_out: their tensors that inference does not read.
        classes: names by "semantic" and "instance", where they are known.
        fresh: what the file does not hold and starts fresh, as our names begin.
    """

    title: str
    config: dict[str, Any]
    names: dict[str, str]
    weights: dict[str, Tensor]
    base: str = ""
    left_out: list[str] = field(default_factory=list)
    classes: dict[str, list[str]] = field(default_factory=dict)
    fresh: tuple[str, ...] = ()


def rename(keys: Iterable[str], rules: Rules) -> tuple[dict[str, str], list[str]]:
    """Names by the first rule that a key matches whole, and the keys whose rule says None.

    Raises:
        ValueError: a key without a rule.
    """
    compiled = [(re.compile(pattern), name) for pattern, name in rules]
    names: dict[str, str] = {}
    left_out: list[str] = []
    for key in keys:
        match, name = next(((m, name) for pattern, name in compiled if (m := pattern.fullmatch(key))), (None, None))
        if match is None:
            raise ValueError(f"unknown tensor {key}")
        if name is None:
            left_out.append(key)
        else:
            names[key] = match.expand(name)
    return names, left_out


def conv_norm(theirs: str, ours: str, conv: str = "0", norm: str = "1") -> Rules:
    """Rules of a convolution and its norm -> those of our ConvNormAct."""
    return ((rf"{theirs}\.{conv}\.(.+)", rf"{ours}.conv.\g<{_groups(theirs) + 1}>"),
            (rf"{theirs}\.{norm}\.(.+)", rf"{ours}.norm.\g<{_groups(theirs) + 1}>"))  # fmt: skip


def _groups(pattern: str) -> int:
    return re.compile(pattern).groups


def resnet(state: Mapping[str, Tensor], prefix: str) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """MODEL.RESNETS of a ResNet under torchvision's names or mmsegmentation's, its names in ours, and what is left out.

    Args:
        state: theirs.
        prefix: of the backbone.

    Raises:
        ValueError: no ResNet that we have.
    """
    own = [key.removeprefix(prefix) for key in state if key.startswith(prefix)]
    counts = tuple(len({key.split(".")[1] for key in own if key.startswith(f"layer{i}.")}) for i in (1, 2, 3, 4))
    bottleneck = "layer1.0.conv3.weight" in own
    depth = next((d for d, units in UNITS.items() if units == counts and (d >= 50) == bottleneck), None)
    if depth is None:
        raise ValueError(f"its backbone is no ResNet of {', '.join(map(str, UNITS))}: {counts} units a stage")
    deep = "stem.0.weight" in own
    names, left_out = {}, []
    for key in own:
        name = resnet_name(key)
        if name is None:
            left_out.append(prefix + key)
        elif name.startswith(("stem.", "res")):
            names[prefix + key] = f"backbone.{name}"
        else:
            raise ValueError(f"unknown tensor {prefix}{key}")
    first = state[f"{prefix}{'stem.6' if deep else 'conv1'}.weight"]
    unit = state[f"{prefix}layer1.0.conv2.weight"]
    keys = {"DEPTH": depth, "NORM": "BN", "STRIDE_IN_1X1": False, "STEM_OUT_CHANNELS": first.shape[0],
            "RES2_OUT_CHANNELS": 256 if bottleneck else 64, "DEEP_STEM": deep}  # fmt: skip
    if bottleneck:
        keys |= {"NUM_GROUPS": unit.shape[0] // unit.shape[1], "WIDTH_PER_GROUP": unit.shape[1]}
    return keys, names, left_out


def vgg(state: Mapping[str, Tensor], prefix: str) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """MODEL.VGG of a VGG-16 under torchvision's names, its names in ours, and what is left out.

    Raises:
        ValueError: another VGG.
    """
    own = {key.removeprefix(prefix): x for key, x in state.items() if key.startswith(f"{prefix}features.")}
    ours = list(from_torchvision(own, fc=False))
    names = {prefix + key: f"backbone.encoder.{name}" for key, name in zip(own, ours, strict=True)}
    left_out = [key for key in state if key.startswith(f"{prefix}classifier.")]
    return {"NORM": "BN" if any(".running_mean" in key for key in own) else ""}, names, left_out


def semantic(
    backbone: str, decoder: str, args: Mapping[str, Any], *, classes: int, features: Collection[str], **model: Any
) -> dict[str, Any]:
    """The config of a backbone and a semantic decoder, RGB images at their own size.

    Args:
        backbone: "resnet", "vgg", "unet" or "timm".
        decoder: a name of DECODERS.
        args: its arguments.
        classes: number of them.
        features: what it reads.
        model: further nodes of MODEL.
    """
    head = {
        "NAME": "SegHead",
        "NUM_CLASSES": classes,
        "NORM": "BN",
        "IN_FEATURES": list(features),
        "DECODER": {"NAME": decoder, "ARGS": dict(args)},
        **model.pop("SEM_SEG_HEAD", {}),
    }
    return {
        "MODEL": {
            "META_ARCHITECTURE": "PanopticSegmentor",
            **RGB,
            "BACKBONE": {"NAME": f"build_seg_ext_{backbone}_backbone", "FREEZE_AT": 0},
            "SEM_SEG_HEAD": head,
            "PROPOSAL_GENERATOR": {"NAME": ""},
            "ROI_HEADS": {"NAME": ""},
            **model,
        },
        "INPUT": {"FORMAT": "RGB", "MIN_SIZE_TEST": 0},
        "SOLVER": {"LR_SCHEDULER_NAME": "WarmupPolyLR", "WARMUP_ITERS": 0},
    }
