"""detectron2 under today's packages: its import of pkg_resources, and the warnings it cannot help raising."""

from __future__ import annotations

import logging
import sys
import warnings
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

UPSTREAM_WARNINGS = (  # message, category, module: regular expressions, as in pyproject.toml
    (r"`torch\.jit\.script` is (deprecated|not supported)", FutureWarning, r"torch\.jit\._script"),
    (r"torch\.meshgrid. in an upcoming release", UserWarning, r"torch\.functional"),
    (r"`torch\.cuda\.amp\.\w+\(args\.\.\.\)` is deprecated", FutureWarning, r"detectron2\.engine\.train_loop"),
    (r"__array__ implementation doesn't accept", DeprecationWarning, r"(detectron2\.evaluation|pycocotools)\.\w+"),
    (r"Detected pickle protocol", UserWarning, r"torch\._weights_only_unpickler"),
)


def quiet_upstream_warnings() -> None:
    """Hide the warnings that detectron2, pycocotools and torch raise by no fault of the user; all others stay."""
    for message, category, module in UPSTREAM_WARNINGS:
        warnings.filterwarnings("ignore", message, category, module)
    logging.getLogger("torch.fx._symbolic_trace").addFilter(_is_no_tracing_advice)


def _is_no_tracing_advice(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("is_fx_tracing will return true")


def import_model_zoo() -> ModuleType:
    """``detectron2.model_zoo``, whose ``pkg_resources`` setuptools 82 removed and older ones warn about.

    A stand-in with the one function it uses is in ``sys.modules`` while it is imported, and not after.
    """
    stand_in = ModuleType("pkg_resources", "What detectron2.model_zoo uses of pkg_resources.")
    stand_in.resource_filename = _resource_filename  # type: ignore[attr-defined]
    real = sys.modules.get("pkg_resources")
    sys.modules["pkg_resources"] = stand_in
    try:
        return import_module("detectron2.model_zoo")
    finally:
        if real is None:
            del sys.modules["pkg_resources"]
        else:
            sys.modules["pkg_resources"] = real


def _resource_filename(package: str, resource: str) -> str:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"no package {package} to look for {resource} in")
    return str(Path(spec.origin).parent / resource)
