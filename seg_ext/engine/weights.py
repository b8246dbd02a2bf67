"""Whole networks from other libraries' files, and back: config, weights and sidecar of one folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor

from seg_ext.checkpoint.detectron2_names import in_our_order, our_names
from seg_ext.checkpoint.files import SIDECAR, read_checkpoint, write_safetensors, write_whole
from seg_ext.checkpoint.locate import locate
from seg_ext.checkpoint.report import LoadingReport
from seg_ext.checkpoint.sidecar import classes_of
from seg_ext.checkpoint.sources import SOURCES, Hints, Imported
from seg_ext.config import parse_config
from seg_ext.engine.sidecar import sidecar_of
from seg_ext.errors import UserError

FORMATS = ("safetensors", "pth")
_NAMED = ("timm", "mmseg")  # sources whose tensors do not say all of their network


def import_weights(
    source: str,
    checkpoint: str,
    folder: str,
    *,
    arch: str = "",
    classes: Sequence[str] = (),
    opts: Sequence[str] = (),
    form: str = "safetensors",
) -> str:
    """Write config.yaml and model.safetensors, or model.pth, of a network that another library saved.

    Args:
        source: a name of :data:`seg_ext.checkpoint.sources.SOURCES`.
        checkpoint: as MODEL.WEIGHTS takes it.
        folder: made if it is not there.
        arch: name of the network or its config in its library, where the weights do not say it.
        classes: their names, in the order of the ids; else the file's own or those of the published network.
        opts: ``KEY VALUE`` overrides.
        form: one of FORMATS.

    Returns:
        A line that accounts for every tensor.

    Raises:
        UserError: no such file or source, a network that is not known or not this source's, a tensor that finds no
            place, other numbers of classes, or a folder that cannot be written or whose model is the file that is read.
    """
    if source not in SOURCES:
        raise UserError(f"--from {source}: takes one of {', '.join(SOURCES)}")
    if arch and source not in _NAMED:
        raise UserError(
            f"--arch {arch}: goes with --from {' or '.join(_NAMED)}; the weights of {source} say their network"
        )
    if not all(classes):
        raise UserError(f"--classes {','.join(classes)}: a name is empty; takes one a class")
    if form not in FORMATS:
        raise UserError(f"--format {form}: takes one of {', '.join(FORMATS)}")
    file, target = locate(checkpoint), Path(folder) / f"model.{form}"
    if target.exists() and target.samefile(file):
        raise UserError(f"--output {folder}: its {target.name} is the file that is read; give another folder")
    data = read_checkpoint(file)
    meta = data.get("meta")
    meta = meta if isinstance(meta, Mapping) else {}
    hints = Hints(arch=arch, config=_beside(file), meta=meta, file=file.name)
    imported = _recognise(source, checkpoint, data["model"], hints)
    cfg = parse_config(yaml.safe_dump(imported.config), f"the config of {imported.title}", opts, base=imported.base)
    report = _place(imported, cfg, checkpoint)
    named = {kind: names for kind, names in {**imported.classes, **classes_of(data)}.items() if names}
    named = _checked(cfg, {"semantic": list(classes)} if classes else named, strict=bool(classes))
    cfg.MODEL.WEIGHTS = str(target)
    origin = {"library": source, "network": imported.title, "file": file.name}
    _write(target, imported.weights, sidecar_of(cfg, classes=named, source=origin))
    fresh = f", {len(report.missing)} of the decoder start fresh" if report.missing else ""
    left_out = f", {len(imported.left_out)} that inference does not read left out" if imported.left_out else ""
    return f"{imported.title}: all {len(report.loaded)} tensors placed{left_out}{fresh}"


def _write(file: Path, weights: Mapping[str, Tensor], sidecar: Mapping[str, Any]) -> None:
    """The weights with their sidecar, and config.yaml beside them."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".pth":
            content = {"model": dict(weights), SIDECAR: dict(sidecar)}
            write_whole(file, lambda stream: torch.save(content, stream))
        else:
            write_safetensors(file, weights, sidecar=sidecar)
        write_whole(file.with_name("config.yaml"), lambda stream: stream.write(sidecar["config"].encode()))
    except OSError as error:
        raise UserError(f"--output {file.parent}: cannot be written: {error.strerror or error}") from error


def _beside(file: Path) -> dict[str, Any]:
    """The config.json that smp and timm write beside their weights."""
    try:
        found = json.loads((file.parent / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _recognise(source: str, checkpoint: str, state: Mapping[str, Tensor], hints: Hints) -> Imported:
    try:
        return _import(source, state, hints)
    except ValueError as error:
        others = [name for name in SOURCES if name not in (source, "timm") and _known(name, state, hints)]
        seems = f"; it seems to be of {' or '.join(others)}" if others else ""
        raise UserError(f"weights {checkpoint}: --from {source}: {error}{seems}") from error


def _import(source: str, state: Mapping[str, Tensor], hints: Hints) -> Imported:
    try:
        return SOURCES[source](state, hints)
    except KeyError as error:
        raise ValueError(f"lacks the tensor {error.args[0]}") from error
    except IndexError as error:
        raise ValueError("a tensor of it has fewer dimensions than that network's") from error


def _known(source: str, state: Mapping[str, Tensor], hints: Hints) -> bool:
    try:
        return bool(_import(source, state, hints))
    except ValueError:
        return False


def _place(imported: Imported, cfg: CfgNode, checkpoint: str) -> LoadingReport:
    """Bring the weights under the names of the config's model; every tensor has to find its place there."""
    with torch.device("meta"):
        model = build_model(_on_meta(cfg)).state_dict()
    if not imported.names:
        imported.names = our_names(imported.weights, model)
        imported.weights = in_our_order(imported.weights, imported.names)
    report = LoadingReport.compare(imported.weights, model, {ours: theirs for theirs, ours in imported.names.items()})
    report.missing = [name for name in report.missing if not name.startswith(imported.fresh)]
    if not report.clean:
        raise UserError(f"weights {checkpoint}: {imported.title} does not fit its config: {report.line()}")
    imported.left_out += [name for name in imported.weights if name not in model]
    imported.weights = {name: value for name, value in imported.weights.items() if name in model}
    report.missing = [name for name in model if name.startswith(imported.fresh)]
    return report


def _on_meta(cfg: CfgNode) -> CfgNode:
    copy = cfg.clone()
    copy.defrost()
    copy.MODEL.DEVICE = "meta"
    return copy


def _checked(cfg: CfgNode, classes: Mapping[str, Sequence[str]], *, strict: bool) -> dict[str, list[str]]:
    """The names of which there are as many as classes in the config.

    Raises:
        UserError: with ``strict``, where there are not.
    """
    counts = {"semantic": max(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, 2), "instance": cfg.MODEL.ROI_HEADS.NUM_CLASSES}
    if not cfg.MODEL.SEM_SEG_HEAD.NAME:
        classes = {"instance" if kind == "semantic" and strict else kind: names for kind, names in classes.items()}
    for kind, names in classes.items():
        if strict and len(names) != counts[kind]:
            raise UserError(f"--classes: {len(names)} names, and the weights have {counts[kind]} classes")
    return {kind: list(names) for kind, names in classes.items() if len(names) == counts[kind]}
