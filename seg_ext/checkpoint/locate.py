"""From what MODEL.WEIGHTS names to a file: paths, URLs, and the model zoos of detectron2, torchvision and timm."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

from detectron2.checkpoint.catalog import ModelCatalog
from detectron2.utils.file_io import PathManager

from seg_ext._compat import import_model_zoo
from seg_ext.checkpoint.download import download
from seg_ext.errors import UserError

HEURISTICS = "?matching_heuristics=True"  # detectron2's, after a name: tensors' names need only end alike
TAKES = "a file, a URL, detectron2://, torchvision:// or timm:// and a name, or a config of detectron2's model zoo"
_ZOO = "https://dl.fbaipublicfiles.com/detectron2/"


def locate(name: str) -> Path:
    """The file that a name stands for, fetched into the cache where it is not on this machine.

    Args:
        name: see TAKES: ``detectron2://ImageNetPretrained/MSRA/R-50.pkl``, ``torchvision://resnet50`` (its default
            weights) or ``torchvision://ResNet50_Weights.IMAGENET1K_V1``, ``timm://resnet18.a1_in1k``,
            ``COCO-PanopticSegmentation/panoptic_fpn_R_50_3x.yaml``; HEURISTICS may follow it.

    Raises:
        UserError: nothing of that name, or as :func:`seg_ext.checkpoint.download.download`.
    """
    name = name.removesuffix(HEURISTICS)
    scheme, mark, rest = name.partition("://")
    if not mark:
        if Path(name).is_file():
            return Path(name)
        if name.endswith(".yaml"):
            return download(_zoo_config(name))
        if Path(name).is_dir():
            raise UserError(f"weights {name}: a folder; takes {TAKES}")
        raise UserError(f"weights {name} not found: MODEL.WEIGHTS takes {TAKES}")
    if scheme in ("http", "https"):
        return download(name)
    if scheme in _SCHEMES:
        return download(_SCHEMES[scheme](rest))
    try:
        path = Path(PathManager.get_local_path(name))  # of a path handler that others registered
    except (OSError, AssertionError, RuntimeError) as error:
        raise UserError(f"weights {name}: cannot be fetched: {' '.join(str(error).split())}") from error
    if not path.is_file():
        raise UserError(f"weights {name} not found: MODEL.WEIGHTS takes {TAKES}")
    return path


def check_name(name: str) -> None:
    """Refuse, without fetching anything, what :func:`locate` would not find.

    Raises:
        UserError: no file, and none of TAKES.
    """
    name = name.removesuffix(HEURISTICS)
    if "://" not in name and not Path(name).is_file() and not _is_zoo_config(name):
        raise UserError(f"weights {name} not found: MODEL.WEIGHTS takes {TAKES}")


def _is_zoo_config(name: str) -> bool:
    try:
        return name.endswith(".yaml") and bool(_zoo_config(name))
    except UserError:
        return False


def _zoo_config(name: str) -> str:
    """URL of the weights that detectron2 publishes for one of its configs."""
    try:
        return str(import_model_zoo().get_checkpoint_url(name))
    except RuntimeError as error:
        raise UserError(f"weights {name} not found: no file, and no weights in detectron2's model zoo") from error


def _catalog(name: str) -> str:
    try:
        return str(ModelCatalog.get(name))
    except (RuntimeError, KeyError) as error:
        raise UserError(f"weights catalog://{name}: not in detectron2's catalog") from error


def _torchvision(name: str) -> str:
    """URL of an entry (``ResNet50_Weights.IMAGENET1K_V1``) or of a network's default ones (``resnet50``)."""
    from torchvision import models

    try:
        entry = models.get_weight(name) if "." in name else models.get_model_weights(name).DEFAULT
    except (ValueError, KeyError, AttributeError) as error:
        near = difflib.get_close_matches(name.partition(".")[0], models.list_models(), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"weights torchvision://{name}: torchvision has none of that name{hint}") from error
    return str(entry.url)


def _timm(name: str) -> str:
    try:
        import timm
    except ImportError as error:
        raise UserError(f"weights timm://{name}: needs timm: pip install 'seg-ext[timm]'") from error
    try:
        kind = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    except RuntimeError:  # the model is there, but not with that tag
        kind = None
    if kind is None or not (kind.hf_hub_id or kind.url):
        near = difflib.get_close_matches(name, timm.list_pretrained(), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"weights timm://{name}: timm has none of that name{hint}")
    if kind.hf_hub_id:
        return f"https://huggingface.co/{kind.hf_hub_id}/resolve/main/{kind.hf_hub_filename or 'model.safetensors'}"
    return str(kind.url)


_SCHEMES: dict[str, Callable[[str], str]] = {
    "detectron2": lambda name: _ZOO + name,
    "catalog": _catalog,
    "torchvision": _torchvision,
    "timm": _timm,
}
