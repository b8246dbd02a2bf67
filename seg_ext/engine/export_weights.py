"""A checkpoint's weights in torchvision's names, or as safetensors with its sidecar."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from seg_ext.checkpoint.files import read_checkpoint, write_safetensors, write_whole
from seg_ext.checkpoint.locate import locate
from seg_ext.checkpoint.sidecar import read_sidecar
from seg_ext.checkpoint.sources import Hints, Imported
from seg_ext.checkpoint.sources.torchvision import background_first, import_torchvision
from seg_ext.errors import UserError

TARGETS = ("torchvision", "safetensors")
_STEPS = "num_batches_tracked"


def export_weights(checkpoint: str, target: str, output: str) -> str:
    """Write the weights of a checkpoint to one file.

    Args:
        checkpoint: as MODEL.WEIGHTS takes it.
        target: "safetensors", any model's with its sidecar; or "torchvision", of fcn_resnet, deeplabv3_resnet and
            maskrcnn_resnet50_fpn, for that network's ``load_state_dict``.
        output: the file; its folder is made.

    Returns:
        A line that says what was written.

    Raises:
        UserError: no such checkpoint or target, a model that is none of torchvision's, or a file that cannot be
            written or is the checkpoint.
    """
    if target not in TARGETS:
        raise UserError(f"--to {target}: takes one of {', '.join(TARGETS)}")
    file, source = Path(output), locate(checkpoint)
    if target == "safetensors" and file.suffix != ".safetensors":
        raise UserError(f"--output {file}: takes a name that ends in .safetensors")
    if file.exists() and file.samefile(source):
        raise UserError(f"--output {file}: is the checkpoint itself; give another name")
    title, state, sidecar = "seg_ext's names", read_checkpoint(source)["model"], None
    if target == "torchvision":
        title, state = _torchvision(checkpoint, state)
    else:
        sidecar = read_sidecar(checkpoint)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".safetensors":
            write_safetensors(file, state, sidecar=sidecar)
        else:
            write_whole(file, lambda stream: torch.save(state, stream))
    except OSError as error:
        raise UserError(f"--output {file}: cannot be written: {error.strerror or error}") from error
    return f"{file}: {len(state)} tensors, {title}"


def _torchvision(checkpoint: str, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    """Title and weights of the torchvision network whose import has the same names and shapes."""
    for title, build in _candidates(state):
        with torch.device("meta"):
            theirs = build().state_dict()
        imported = import_torchvision(theirs, Hints())
        if _shapes(imported.weights) == _shapes(state):
            return f"torchvision's {title}", _back(imported, state, theirs)
    raise UserError(
        f"weights {checkpoint}: not of a network that torchvision has; --to torchvision takes those of its "
        "fcn_resnet50, fcn_resnet101, deeplabv3_resnet50, deeplabv3_resnet101, maskrcnn_resnet50_fpn and its _v2"
    )


def _back(imported: Imported, state: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    back = {}
    for key, like in theirs.items():
        ours = imported.names[key]
        value = state.get(ours)
        back[key] = torch.zeros_like(like, device="cpu") if value is None else background_first(ours, value)
    return back


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in state.items() if not key.endswith(_STEPS)}


def _candidates(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """torchvision's networks that a state dict may be of, by its heads and its number of classes."""
    from torchvision.models import detection, segmentation

    bare: dict[str, Any] = {"weights": None, "weights_backbone": None}
    box = state.get("roi_heads.box_predictor.cls_score.weight")
    if box is not None:
        for name in ("maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2"):
            yield name, partial(getattr(detection, name), num_classes=len(box), **bare)
    for score, aux, kind in (
        ("heads.res5.2.weight", "heads.res4.2.weight", "fcn"),
        ("score.weight", "aux_head.2.weight", "deeplabv3"),
    ):
        scores = state.get(f"sem_seg_head.decoder.{score}")
        if scores is not None:
            has_aux = f"sem_seg_head.decoder.{aux}" in state
            for depth in (50, 101):
                name = f"{kind}_resnet{depth}"
                yield name, partial(getattr(segmentation, name), num_classes=len(scores), aux_loss=has_aux, **bare)
