"""timm's classification networks as backbones; the decoder above one starts fresh."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from seg_ext.checkpoint.imagenet import fit_timm
from seg_ext.checkpoint.sources.naming import Hints, Imported, semantic
from seg_ext.encoders import TimmEncoder

_HERE = "backbone.encoder."


def import_timm(state: Mapping[str, Tensor], hints: Hints) -> Imported:
    """A network of timm under Semantic FPN with 2 classes, unless overridden.

    Its name comes from ``hints.arch`` or from "architecture" in the config.json that timm writes beside weights.

    Raises:
        ValueError: no name, none that timm knows, or weights of another network.
    """
    arch = hints.arch or str(hints.config.get("architecture", ""))
    if not arch:
        raise ValueError("timm's weights do not say their network: give --arch NAME, as in resnet18.a1_in1k")
    with torch.device("meta"):
        encoder = TimmEncoder(name=arch.partition(".")[0])
    import timm  # the encoder says where it is missing

    try:
        kind = timm.get_pretrained_cfg(arch)
    except RuntimeError as error:
        raise ValueError(f"timm has no {arch}: {error}") from error
    model = {_HERE + key: value for key, value in encoder.state_dict().items()}
    weights = fit_timm(state, model)
    if weights is None:
        raise ValueError(f"not the weights of timm's {arch}")
    places = {id(value): key for key, value in state.items()}
    names = {places[id(value)]: key for key, value in weights.items() if id(value) in places}
    stages = [name for name, spec in encoder.specs.items() if spec.stride >= 4]
    config = semantic(
        "timm",
        "semantic_fpn",
        {"pyramid": 256},
        classes=2,
        features=stages,
        TIMM={"NAME": arch.partition(".")[0], "OUT_FEATURES": stages},
    )
    if kind is not None:
        config["MODEL"] |= {
            "PIXEL_MEAN": [255 * value for value in kind.mean],
            "PIXEL_STD": [255 * value for value in kind.std],
        }
    left_out = [key for key in state if key not in names]
    return Imported(f"timm's {arch}", config, names, weights, left_out=left_out, fresh=("sem_seg_head.",))
