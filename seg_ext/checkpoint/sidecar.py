"""What a checkpoint says of itself: config, classes, colours, label map, preprocessing, versions, scores.

A sidecar is a dict of text, numbers, lists and dicts alone, under "sidecar" in a ``.pth`` and as JSON in the header of
a ``.safetensors``:

    format          1
    config          the resolved config, yaml
    metadata        of the data, by detectron2's names: stuff_classes, thing_classes, their colours, label_map, ...
    thing_ids       semantic ids that denote things
    preprocessing   channels, mean, std, sizes
    versions        of seg_ext, torch, detectron2, Python
    metrics         iteration and scores of the last evaluation
    source          library and file that imported weights came from
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.catalog import Metadata

from seg_ext.checkpoint.files import SIDECAR, read_sidecar_of
from seg_ext.checkpoint.locate import locate
from seg_ext.config import parse_config, refuse_foreign_code
from seg_ext.errors import UserError

FORMAT = 1
METADATA = (  # plain, and of no particular machine
    "stuff_classes",
    "stuff_colors",
    "thing_classes",
    "thing_colors",
    "label_map",
    "ignore_label",
    "label_divisor",
    "stuff_dataset_id_to_contiguous_id",
    "thing_dataset_id_to_contiguous_id",
    "keypoint_names",
    "keypoint_flip_map",
    "keypoint_connection_rules",
    "evaluator_type",
)
_ID_MAPS = ("label_map", "stuff_dataset_id_to_contiguous_id", "thing_dataset_id_to_contiguous_id")
_PLAIN = (str, int, float, bool, type(None))


def read_sidecar(checkpoint: str) -> dict[str, Any]:
    """What a checkpoint says of itself; empty where it says nothing.

    Args:
        checkpoint: as MODEL.WEIGHTS takes it.

    Raises:
        UserError: no such file or no checkpoint, or a sidecar of a later version of seg_ext.
    """
    found = read_sidecar_of(locate(checkpoint)) or {}
    if found.get("format", FORMAT) != FORMAT:
        raise UserError(
            f"weights {checkpoint}: sidecar of format {found['format']}, of a later seg_ext; takes {FORMAT}"
        )
    found = plain(found)
    for key in ("metadata", "preprocessing", "versions", "metrics"):
        if not isinstance(found.get(key, {}), Mapping):
            raise UserError(f"weights {checkpoint}: '{key}' in its sidecar is {found[key]!r}; takes a dict")
    if not isinstance(found.get("metrics", {}).get("scores", {}), Mapping):
        raise UserError(f"weights {checkpoint}: 'scores' in its sidecar is no dict")
    metadata = found.get("metadata", {})
    for key in _ID_MAPS:  # JSON has text for keys
        if isinstance(metadata.get(key), Mapping):
            metadata[key] = {_number(name): value for name, value in metadata[key].items()}
    return found


def config_of(checkpoint: str, opts: Sequence[str] = (), *, trust_code: bool = False) -> CfgNode:
    """The config that a checkpoint carries, with its own weights and without data; all that a prediction needs.

    Args:
        checkpoint: as MODEL.WEIGHTS takes it.
        opts: ``KEY VALUE`` overrides.
        trust_code: allow a decoder outside seg_ext, whose module is imported.

    Raises:
        UserError: no such file, one without a config, foreign code, or overrides that do not fit.
    """
    text = read_sidecar(checkpoint).get("config")
    if not text:
        raise UserError(f"weights {checkpoint}: carries no config: give --config-file")
    found = parse_config(str(text), f"the config in {checkpoint}", opts)
    if not trust_code:
        refuse_foreign_code(found, f"weights {checkpoint}", "allow it with --trust-code")
    found.MODEL.WEIGHTS = str(checkpoint)
    found.DATASETS.TRAIN = found.DATASETS.TEST = ()
    found.DATASETS.FILES, found.DATASETS.FOLDERS = [], []
    return found


def metadata_of(sidecar: Mapping[str, Any]) -> Metadata:
    """Class names and colours as detectron2's, for visualizers and writers; empty where there are none."""
    return Metadata(**{key: value for key, value in sidecar.get("metadata", {}).items() if key in METADATA})


def classes_of(checkpoint: Mapping[str, Any]) -> dict[str, list[str]]:
    """Class names by "semantic" and "instance", as far as a checkpoint's content says them.

    Beside a sidecar's those of mmsegmentation's files, and of detectron2's model zoo, which has COCO's.
    """
    metadata = _node(_node(checkpoint, SIDECAR), "metadata")
    found = {"semantic": metadata.get("stuff_classes"), "instance": metadata.get("thing_classes")}
    meta = _node(checkpoint, "meta")
    found["semantic"] = found["semantic"] or meta.get("CLASSES") or _node(meta, "dataset_meta").get("classes")
    if str(checkpoint.get("__author__", "")).startswith("Detectron2 Model Zoo"):
        found |= _coco()
    lists = {kind: names for kind, names in found.items() if isinstance(names, (list, tuple)) and names}
    return {kind: [str(name) for name in names] for kind, names in lists.items()}


def plain(value: Any) -> Any:
    """Text, numbers, lists and dicts of them: arrays and tensors become lists, what is none of these its text."""
    if isinstance(value, Mapping):
        return {key if isinstance(key, (str, int)) else str(key): plain(x) for key, x in value.items()}
    if isinstance(value, (torch.Tensor, np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(x) for x in value]
    return value if isinstance(value, _PLAIN) else str(value)


def describe(sidecar: Mapping[str, Any]) -> str:
    """Lines for people: what the model is, its classes, its preprocessing and its scores; the config is left out."""
    lines = []
    for key in ("task", "source", "decoder", "backbone"):
        if sidecar.get(key):
            lines.append(f"{key:14}{sidecar[key]}")
    for kind, names in classes_of({SIDECAR: sidecar}).items():
        lines.append(f"{kind:14}{len(names)} classes: {', '.join(names)}")
    for key in ("preprocessing", "versions"):
        entries = sidecar.get(key, {})
        lines += [f"{key if i == 0 else '':14}{name}: {value}" for i, (name, value) in enumerate(entries.items())]
    metrics = sidecar.get("metrics", {})
    if metrics:
        lines.append(f"{'metrics':14}of iteration {metrics.get('iteration')}")
        lines += [f"{'':14}{name}: {_score(value)}" for name, value in flat_scores(metrics.get("scores", {})).items()]
    return "\n".join(lines)


def flat_scores(scores: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested scores by one name each, such as "sem_seg/mIoU"."""
    flat: dict[str, Any] = {}
    for name, value in scores.items():
        flat |= flat_scores(value, f"{prefix}{name}/") if isinstance(value, Mapping) else {prefix + str(name): value}
    return flat


def _node(node: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = node.get(key)
    return found if isinstance(found, Mapping) else {}


def _score(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _number(text: Any) -> Any:
    return int(text) if isinstance(text, str) and text.lstrip("-").isdigit() else text


def _coco() -> dict[str, Any]:
    from detectron2.data import MetadataCatalog

    metadata = MetadataCatalog.get("coco_2017_val_panoptic_separated")
    return {"semantic": metadata.get("stuff_classes"), "instance": metadata.get("thing_classes")}
