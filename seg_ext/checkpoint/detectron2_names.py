"""detectron2's names of its semantic heads and of its DeepLab projects', in ours; all else is called the same."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping

import torch
from torch import Tensor

_HEADS = {"sem_seg_head.": "sem_seg_head.decoder.", "ins_embed_head.": "ins_embed_head.branch."}
_ASPP = (
    (r"convs\.0", "point"),
    *((rf"convs\.{number}(?P<last>\.depthwise|\.pointwise|)", rf"atrous.{number - 1}\g<last>") for number in (1, 2, 3)),
    (r"convs\.4\.1", "image"),
    (r"project", "project"),
)
_CONVS = (  # convolutions, with a norm or without, by what follows the head's name
    *(
        (rf"(p\d)\.{2 * unit}", rf"branches.\1.{unit}") for unit in range(4)
    ),  # Semantic FPN: each is followed by a resize
    *((rf"aspp\.{theirs}", f"aspp.{ours}") for theirs, ours in _ASPP),
    *((rf"decoder\.\w+\.project_conv\.{theirs}", f"aspp.{ours}") for theirs, ours in _ASPP),
    *((rf"decoder\.\w+\.project_conv\.{theirs}", f"trunk.aspp.{ours}") for theirs, ours in _ASPP),
    (r"decoder\.\w+\.project_conv", "low_level"),
    (r"decoder\.\w+\.fuse_conv\.(\d)", r"refine.\1"),
    (r"decoder\.(\w+)\.project_conv", r"trunk.projections.\1"),
    (r"decoder\.(\w+)\.fuse_conv\.(\d|depthwise|pointwise)", r"trunk.joins.\1.\2"),
    (r"head\.(\d|depthwise|pointwise)", r"head.\1"),
    (r"center_head\.(\d)", r"centre.0.\1"),
    (r"offset_head\.(\d|depthwise|pointwise)", r"offset.0.\1"),
)
_SCORES = (("predictor", "score"), ("center_predictor", "centre.1"), ("offset_predictor", "offset.1"))
_REFINE = "sem_seg_head.decoder.refine.0.conv.weight"
_LOW = "sem_seg_head.decoder.low_level.conv.weight"


def our_names(state: Collection[str], model: Collection[str]) -> dict[str, str]:
    """Our name of each of detectron2's that the model lacks, as far as the model has it under ours.

    Args:
        state: names in the file.
        model: names in a model of seg_ext.
    """
    found = {}
    for key in state:
        if key not in model:
            name = next((name for name in _candidates(key) if name in model), None)
            if name is not None:
                found[key] = name
    return found


def in_our_order(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """A state dict under our names, with the inputs of DeepLabv3+'s join in our order.

    detectron2 joins (low level, ASPP), we (ASPP, low level).

    Args:
        state: detectron2's.
        names: :func:`our_names` of it.
    """
    renamed = {names.get(key, key): value for key, value in state.items()}
    if _REFINE in names.values() and _LOW in renamed:
        low = renamed[_LOW].shape[0]
        weight = renamed[_REFINE]
        renamed[_REFINE] = torch.cat((weight[:, low:], weight[:, :low]), dim=1)
    return renamed


def _candidates(key: str) -> Iterator[str]:
    """What a tensor may be called in our decoders."""
    for theirs, ours in _HEADS.items():
        if not key.startswith(theirs):
            continue
        rest = key[len(theirs) :]
        for layer, name in _CONVS:
            match = re.fullmatch(rf"{layer}\.(norm\..+|weight|bias)", rest)
            if match:
                tail = match[match.lastindex or 0]
                yield f"{ours}{match.expand(name)}.{tail if tail.startswith('norm.') else f'conv.{tail}'}"
        for layer, name in _SCORES:
            if rest in (f"{layer}.weight", f"{layer}.bias"):
                yield f"{ours}{name}.{rest.rpartition('.')[2]}"
