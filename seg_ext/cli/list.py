"""``seg-ext list``: what can be named in a config, each with a line on what it is."""

from __future__ import annotations

import argparse
import inspect
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

HELP = "list decoders, backbones, losses, augmentations, data sets and configs"
KINDS = ("decoders", "backbones", "losses", "augmentations", "datasets", "configs")
_ALSO = {"encoders": "backbones"}  # what papers call them


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which kinds; all without one."""
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=", ".join(KINDS))


def run(args: argparse.Namespace) -> int:
    """Print a block for each kind: name and caption."""
    import seg_ext
    from seg_ext.errors import UserError

    kinds = [_ALSO.get(kind, kind) for kind in args.kinds]
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise UserError(f"seg-ext list {unknown[0]}: takes some of {', '.join(KINDS)}")
    seg_ext.register()
    captions = _captions()
    for kind in kinds or KINDS:
        rows = captions[kind]()
        width = max(map(len, rows))
        print(f"{kind}", *(f"  {name:{width}}  {text}".rstrip() for name, text in rows.items()), sep="\n")
    return 0


def _captions() -> dict[str, Callable[[], dict[str, str]]]:
    from detectron2.modeling import BACKBONE_REGISTRY

    from seg_ext.data.augmentation import AUGMENTATIONS
    from seg_ext.decoders import DECODERS
    from seg_ext.losses import IMAGE_LOSSES, LOSSES

    backbones = {name: build for name, build in BACKBONE_REGISTRY if name.startswith("build_seg_ext")}
    return {
        "decoders": lambda: _by_module(DECODERS),
        "backbones": lambda: _summaries(backbones),
        "losses": lambda: _by_module({**LOSSES, **IMAGE_LOSSES}),
        "augmentations": lambda: _summaries(AUGMENTATIONS),
        "datasets": _datasets,
        "configs": _configs,
    }


def _by_module(table: Mapping[str, Any]) -> dict[str, str]:
    """A module's caption names paper and year; where entries share one, each has its own docstring's."""
    entries = Counter(entry.__module__ for entry in table.values())
    shared = {name for name, entry in table.items() if entries[entry.__module__] > 1}
    return {n: _summary(entry if n in shared else sys.modules[entry.__module__]) for n, entry in table.items()}


def _summaries(table: Mapping[str, Any]) -> dict[str, str]:
    return {name: _summary(entry) for name, entry in table.items()}


def _summary(entry: Any) -> str:
    return (inspect.getdoc(entry) or "").split("\n")[0].rstrip(".")


def _datasets() -> dict[str, str]:
    """All that are registered, by what they are scored as."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    return {name: MetadataCatalog.get(name).get("evaluator_type", "") for name in sorted(DatasetCatalog.list())}


def _configs() -> dict[str, str]:
    """The shipped yamls with the comment they open with."""
    from seg_ext.config import CONFIG_ROOTS

    return {
        str(file.relative_to(root)): _opening(file) for root in CONFIG_ROOTS for file in sorted(root.glob("*/*.yaml"))
    }


def _opening(file: Path) -> str:
    return file.read_text(encoding="utf-8").split("\n")[0].lstrip("# ").rstrip(".")
