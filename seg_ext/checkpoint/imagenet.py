"""ImageNet weights under torchvision's or detectron2's names, renamed to those of a model's backbone."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from seg_ext.encoders.vgg import from_torchvision

_logger = logging.getLogger(__name__)
_RESNET = (
    *((rf"^stem\.{3 * unit}\.", f"stem.conv{unit + 1}.") for unit in range(3)),
    *((rf"^stem\.{3 * unit + 1}\.", f"stem.conv{unit + 1}.norm.") for unit in range(3)),
    (r"^(conv1|bn1)\.", r"stem.\1."),
    (r"bn(\d)\.", r"conv\1.norm."),
    (r"downsample\.0\.", "shortcut."),
    (r"downsample\.1\.", "shortcut.norm."),
    *((rf"^layer{number}\.", f"res{number + 1}.") for number in range(1, 5)),
)
_TIMM = "encoder.model."  # below it, in a model's names, is a timm backbone
_FC6 = (4096, 512, 7, 7)  # VGG's own; others start fresh


class Layout(NamedTuple):
    """Names that ImageNet weights go by.

    Attributes:
        title: what such a file is.
        marks: names that tell it.
        first: our name of the first convolution.
        rename: a state dict to our names; the second argument says whether the model has VGG's own fc6.
    """

    title: str
    marks: tuple[str, ...]
    first: str
    rename: Callable[[Mapping[str, Tensor], bool], dict[str, Tensor]]


def resnet_name(key: str) -> str | None:
    """Our name of a tensor of torchvision's ResNets or mmsegmentation's with deep stems; None for the classifier's."""
    if key.startswith("fc."):
        return None
    for pattern, name in _RESNET:
        key = re.sub(pattern, name, key)
    return key


def _rename_resnet(state: Mapping[str, Tensor], fc: bool) -> dict[str, Tensor]:
    return {name or key: value for key, value in state.items() for name in (resnet_name(key),)}


def _rename_vgg(state: Mapping[str, Tensor], fc: bool) -> dict[str, Tensor]:
    return from_torchvision(state, fc=fc and "classifier.3.weight" in state)


LAYOUTS = (
    Layout("torchvision ResNet", ("conv1.weight", "layer1.0.conv1.weight"), "stem.conv1.weight", _rename_resnet),
    Layout(
        "detectron2 ResNet",
        ("stem.conv1.weight", "res2.0.conv1.weight"),
        "stem.conv1.weight",
        lambda state, fc: dict(state),
    ),
    Layout("torchvision VGG", ("features.0.weight",), "conv1_1.weight", _rename_vgg),
)


def _recognise(state: Mapping[str, Tensor]) -> Layout | None:
    return next((layout for layout in LAYOUTS if all(mark in state for mark in layout.marks)), None)


def _prefix(layout: Layout, model: Mapping[str, Tensor]) -> str | None:
    """What stands before a layout's names in a model's, such as "backbone.bottom_up."; None where it has no place."""
    return next((key.removesuffix(layout.first) for key in model if f".{key}".endswith(f".{layout.first}")), None)


def fit(state: Mapping[str, Tensor], model: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Rename the weights of an ImageNet network to those of the backbone in a model, wherever it stands there.

    The classifier and stages that the model lacks are left out. Strides and dilations leave no trace in the weights,
    so one file serves every output stride; a cascade's further stages are not in it and start fresh. A first
    convolution of other than 3 input channels takes the file's, see `widen`. Where the model's norms keep no running
    statistics but the file's do, only the convolutions are taken.

    torchvision's networks saw RGB; INPUT.FORMAT RGB, PIXEL_MEAN [123.675, 116.28, 103.53] and PIXEL_STD
    [58.395, 57.12, 57.375] give them what they saw. The channels stay in the file's order: under INPUT.FORMAT BGR,
    which cannot be seen from here, they would be the wrong way round.

    Args:
        state: the file's.
        model: the model's state dict.

    Returns:
        Weights by the model's names, or None where the layout is unknown or has no place in the model.

    Raises:
        ValueError: the network differs from the backbone in depth, width or stem.
    """
    layout = _recognise(state)
    prefix = _prefix(layout, model) if layout else None
    if layout is None or prefix is None:
        return None
    ours = {key.removeprefix(prefix): value for key, value in model.items() if key.startswith(prefix)}
    fc6 = ours.get("fc6.weight")
    theirs = layout.rename(state, fc6 is not None and tuple(fc6.shape) == _FC6)
    theirs[layout.first] = widen(theirs[layout.first], ours[layout.first].shape[1])
    _refuse_another_network(layout.title, theirs, ours)
    stages = {_stage(key) for key in ours}
    bare = {  # layers whose running statistics have no place
        _layer(key) for key in theirs if key.endswith(".running_mean") and _stage(key) in stages and key not in ours
    }
    weights = {prefix + key: value for key, value in theirs.items() if key in ours and _layer(key) not in bare}
    _logger.info("%d of %d tensors, of a %s, go to %s*", len(weights), len(state), layout.title, prefix)
    if bare:
        _logger.warning("left out %d BatchNorm layers: the model has no running statistics there", len(bare))
    return weights


def fit_timm(state: Mapping[str, Tensor], model: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Rename the weights of a timm model to those of the same model as a backbone, wherever it stands.

    As a backbone timm calls a stage "stages_0" that is "stages.0" in the whole model. The classifier is left out.

    Returns:
        Weights by the model's names; None where the model has no timm backbone or less than half of it is in the file.
    """
    places = {key: key.partition(_TIMM)[2] for key in model if _TIMM in key}
    weights = {}
    for key, name in places.items():
        there = next((x for x in (name, re.sub(r"^([a-z]+)_(\d+)\.", r"\1.\2.", name)) if x in state), None)
        if there is not None:
            weights[key] = state[there]
            if weights[key].dim() == 4 and model[key].dim() == 4:
                weights[key] = widen(weights[key], model[key].shape[1])
    if 2 * len(weights) <= len(places):
        return None
    _logger.info("%d of %d tensors, of a timm model, go to its backbone", len(weights), len(state))
    return weights


def widen(weight: Tensor, channels: int) -> Tensor:
    """A first convolution (O, 3, k, k) for images of other than 3 channels, (O, channels, k, k).

    Fewer than 3 all get the mean of the three; with more, the three stay first in their order and the others get
    their mean. All are scaled by 3 / channels, so that an image of equal channels gives what it gave with 3: for one
    channel it is the sum, and a grey image gives what its RGB copy gave.
    """
    if weight.shape[1] != 3 or channels == 3:
        return weight
    kept = weight if channels > 3 else weight[:, :0]
    mean = weight.mean(1, keepdim=True).expand(-1, channels - kept.shape[1], -1, -1)
    return torch.cat([kept, mean], 1) * (3 / channels)


def widen_first(state: dict[str, Tensor], model: Mapping[str, Tensor]) -> None:
    """Give a ResNet under Caffe2's or detectron2's names, in place, a first convolution for the model's channels."""
    prefix = _prefix(LAYOUTS[1], model)
    for key in state.keys() & {"conv1_w", LAYOUTS[1].first}:
        if prefix is not None:
            state[key] = widen(state[key], model[prefix + LAYOUTS[1].first].shape[1])


def explain(state: Mapping[str, Tensor], model: Mapping[str, Tensor]) -> str:
    """What a state dict seems to be, and what the model takes."""
    layout = _recognise(state)
    seems = f"a {layout.title}" if layout else f"tensors named {', '.join(list(state)[:3])}"
    taken = ["a checkpoint of this model", *(f"a {each.title}" for each in LAYOUTS if _prefix(each, model) is not None)]
    return f"it seems to be {seems}; takes {' or '.join(taken)}"


def _refuse_another_network(title: str, theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> None:
    """Refuse weights of which a stage has other convolutions than the same stage of the model."""
    shapes = [{key: tuple(x.shape) for key, x in weights.items() if x.dim() == 4} for weights in (theirs, ours)]
    shared = {_stage(key) for key in shapes[0]} & {_stage(key) for key in shapes[1]}
    for key in sorted(set(shapes[0]) | set(shapes[1])):
        there, here = (shape.get(key) for shape in shapes)
        if _stage(key) in shared and there != here:
            raise ValueError(
                f"a {title} of another depth, width or stem than the model's: "
                f"{key} is {there or 'missing'} in the file, {here or 'missing'} in the model"
            )


def _stage(key: str) -> str:
    return key.partition(".")[0]


def _layer(key: str) -> str:
    return key.rpartition(".")[0]
