"""seg_ext: any semantic decoder on any backbone, alone or beside Mask R-CNN, as a detectron2 extension.

Importing the package is instant. Touching one of its names registers everything (heads, backbones,
meta-architectures, data sets) with detectron2; :func:`register` does so explicitly.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from seg_ext.config import add_seg_ext_config, find_config, get_cfg, load_config
    from seg_ext.data.datasets.folder import register_folder
    from seg_ext.engine.predictor import Predictor
    from seg_ext.engine.trainer import Trainer
    from seg_ext.errors import UserError

_HOME = {
    "UserError": "seg_ext.errors",
    "add_seg_ext_config": "seg_ext.config",
    "find_config": "seg_ext.config",
    "get_cfg": "seg_ext.config",
    "load_config": "seg_ext.config",
    "register_folder": "seg_ext.data.datasets.folder",
    "Predictor": "seg_ext.engine.predictor",
    "Trainer": "seg_ext.engine.trainer",
}
_REGISTERING = ("seg_ext.modeling", "seg_ext.data", "seg_ext.evaluation")

__all__ = [
    "Predictor",
    "Trainer",
    "UserError",
    "add_seg_ext_config",
    "find_config",
    "get_cfg",
    "load_config",
    "register",
    "register_folder",
]


def register() -> None:
    """Register all heads, backbones, meta-architectures and data sets with detectron2; a second call does nothing.

    Raises:
        UserError: detectron2 is not installed.
    """
    from seg_ext._compat import quiet_upstream_warnings
    from seg_ext.errors import UserError

    if find_spec("detectron2") is None:
        raise UserError("detectron2 is not installed: run `seg-ext install-detectron2`, or build it from its source")
    quiet_upstream_warnings()
    for package in _REGISTERING:
        import_module(package)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'seg_ext' has no attribute {name!r}")
    register()
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
