"""Imports go down only, ``cfg`` stays where it belongs, files stay short: read off the source, nothing is imported."""

import ast
import re
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FLOORS = {
    **dict.fromkeys(["layers", "losses", "metrics", "postprocess"], 0),
    **dict.fromkeys(["encoders", "decoders"], 1),
    **dict.fromkeys(["config", "data", "modeling", "checkpoint", "evaluation", "inference", "export", "visualize"], 2),
    **dict.fromkeys(["errors", "_compat", "runtime"], 2),
    "engine": 3,
    **dict.fromkeys(["cli", "serve", "__init__", "__main__"], 4),
}
STANDALONE = {
    "errors": set(),
    "_compat": {"detectron2"},
    "runtime": {"numpy", "onnxruntime", "PIL"},
}  # nothing of seg_ext, only these
THIRD_PARTY = {  # what the two lowest floors may import
    **dict.fromkeys(["layers", "losses", "decoders"], {"torch", "numpy"}),
    **dict.fromkeys(["metrics", "postprocess"], {"torch", "numpy", "scipy", "cv2"}),
    "encoders": {"torch", "numpy", "timm"},
}
BANNED_STDLIB = {"os", "pathlib", "logging"}  # on the two lowest floors
OUTSIDE = {"projects", "tools", "tests", "benchmarks"}  # nothing imports these
NAMES_CFG = {"config", "engine", "cli"}
MAX_LINES = {"seg_ext": 400, "tools": 60, "configs": 30}


def violations(sources: dict[str, str]) -> list[str]:
    """Every breach of the layout in ``{path: text}``, as ``path:line: what``; paths are relative to the repository."""
    found = [
        f"{path}:{len(text.splitlines())}: more than {limit} lines"
        for path, text in sources.items()
        if len(text.splitlines()) > (limit := MAX_LINES[path.split("/")[0]])
    ]
    trees = {path: ast.parse(text) for path, text in sources.items() if path.endswith(".py")}
    imports = {path: list(_imports(path, tree, set(trees))) for path, tree in trees.items()}
    for path, tree in trees.items():
        found += _docstring_breaches(path, tree)
        if path.startswith("seg_ext/"):
            found += [f"{path}:{line}: {breach}" for line, breach in _import_breaches(path, imports[path])]
            lines = () if _package(path) in NAMES_CFG else dict.fromkeys(_cfg_lines(tree))
            found += [f"{path}:{line}: names cfg" for line in lines]
    found += _cycles(imports)
    return found + _base_breaches({path: text for path, text in sources.items() if path.endswith(".yaml")})


def _package(path: str) -> str:
    """The row of ``FLOORS``: ``seg_ext/data/mapper.py`` -> ``data``, ``seg_ext/config.py`` -> ``config``."""
    return path.split("/")[1].removesuffix(".py")


def _imports(path: str, tree: ast.AST, paths: set[str]) -> Iterator[tuple[int, str]]:
    """Line and target of each import, wherever it stands: a path where it is one of ours, else a dotted name."""
    parents = path.split("/")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = parents[: len(parents) - node.level + 1] if node.level else []
            home = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{home}.{alias.name}" if _file(f"{home}.{alias.name}", paths) else home for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            first = node.args[0] if node.args else None
            names = [first.value] if isinstance(first, ast.Constant) and isinstance(first.value, str) else []
        else:
            continue
        yield from ((node.lineno, _file(name, paths) or name) for name in dict.fromkeys(names))


def _file(name: str, paths: set[str]) -> str | None:
    stem = name.replace(".", "/")
    return next((path for path in (f"{stem}.py", f"{stem}/__init__.py") if path in paths), None)


def _import_breaches(path: str, imports: list[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    package = _package(path)
    if package not in FLOORS:
        yield 1, f"package {package} has no floor"
        return
    for line, target in imports:
        top = re.split(r"[./]", target)[0]
        if top == "seg_ext":
            other = _package(target if "/" in target else target.replace(".", "/") + "/")
            if other != package and not _goes_down(package, other):
                yield line, f"{package} may not import {other}"
        elif top in OUTSIDE:
            yield line, f"nothing imports {top}"
        elif package in STANDALONE:
            if top not in sys.stdlib_module_names and top not in STANDALONE[package]:
                yield line, f"{package} may not import {top}"
        elif package in THIRD_PARTY:
            if top in BANNED_STDLIB or top not in sys.stdlib_module_names | THIRD_PARTY[package]:
                yield line, f"{package} may not import {top}"


def _goes_down(package: str, other: str) -> bool:
    if package in STANDALONE or FLOORS[package] == 0:
        return False
    return other == "layers" if FLOORS[package] == 1 else FLOORS.get(other, 5) <= FLOORS[package]


def _cycles(imports: dict[str, list[tuple[int, str]]]) -> list[str]:
    """One cycle among the modules, or else among the packages, if there is any."""
    ours = {path: {target for _, target in found if target in imports} - {path} for path, found in imports.items()}
    packages: dict[str, set[str]] = {}
    for path, targets in ours.items():
        packages.setdefault(_package(path), set()).update({_package(target) for target in targets} - {_package(path)})
    for graph in (ours, packages):
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            return [f"cycle: {' -> '.join(reversed(error.args[1]))}"]
    return []


def _cfg_lines(node: ast.AST) -> Iterator[int]:
    """Lines that name ``cfg`` outside ``from_config`` and functions registered with detectron2."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef) and (child.name == "from_config" or _is_registered(child)):
            continue
        names = (getattr(child, field, None) for field in ("id", "arg", "attr"))
        if "cfg" in names:
            yield child.lineno
        yield from _cfg_lines(child)


def _is_registered(function: ast.FunctionDef) -> bool:
    return any(re.search(r"_REGISTRY\.register\(.*\)$", ast.unparse(mark)) for mark in function.decorator_list)


def _docstring_breaches(path: str, tree: ast.Module) -> list[str]:
    first, *rest = (ast.get_docstring(tree) or "").split("\n")
    return [] if first and not (rest and rest[0]) else [f"{path}:1: does not open with one line that says what it is"]


def _base_breaches(configs: dict[str, str]) -> list[str]:
    bases = {path: re.findall(r"^_BASE_:\s*[\"']?([^\"'\s]+)", text, re.M) for path, text in configs.items()}
    above = {path: [_joined(path, base) for base in found] for path, found in bases.items()}
    missing = [f"{path}:1: no {base}" for path, found in above.items() for base in found if base not in configs]
    deep = [f"{path}:1: more than one _BASE_ above it" for path, found in above.items() if any(map(above.get, found))]
    return missing + deep


def _joined(path: str, base: str) -> str:
    parts: list[str] = []
    for part in [*path.split("/")[:-1], *base.split("/")]:
        if part == "..":
            parts.pop()
        elif part != ".":
            parts.append(part)
    return "/".join(parts)


def test_the_repository_keeps_its_layout() -> None:
    files = [file for top in MAX_LINES for file in (ROOT / top).rglob("*") if file.suffix in (".py", ".yaml")]
    assert len(files) > 20
    found = violations({file.relative_to(ROOT).as_posix(): file.read_text(encoding="utf-8") for file in files})
    assert not found, "\n".join(found)


DOC = '"""What it is."""\n'
SOUND = {
    "seg_ext/__init__.py": DOC + "def register():\n    from seg_ext.modeling import head",
    "seg_ext/errors.py": DOC + "import os",
    "seg_ext/layers/__init__.py": DOC + "from seg_ext.layers.conv import Conv",
    "seg_ext/layers/conv.py": DOC + "import math\nimport numpy as np\nfrom torch import nn",
    "seg_ext/metrics/edges.py": DOC + "import cv2\nfrom scipy import ndimage",
    "seg_ext/decoders/fcn.py": DOC + "from seg_ext.layers import Conv\nfrom ..layers.conv import Conv",
    "seg_ext/config.py": DOC + "import detectron2\ndef add(cfg): cfg.A = 1",
    "seg_ext/data/label_io.py": DOC + "import os\nfrom seg_ext.errors import UserError",
    "seg_ext/modeling/head.py": DOC + "from seg_ext.decoders import fcn\n"
    "@SEM_SEG_HEADS_REGISTRY.register()\ndef build(cfg): return cfg\n"
    "class Head:\n    def from_config(cls, cfg): return {'a': cfg.A}",
    "seg_ext/engine/trainer.py": DOC + "from seg_ext.modeling import head\ndef build(cfg): return cfg",
    "tools/train_net.py": DOC + "from seg_ext.cli.main import main",
    "configs/Base.yaml": "MODEL: {}",
    "configs/voc/fcn.yaml": "_BASE_: ../Base.yaml",
}
PLANTED = {
    "F0 imports detectron2": (
        "seg_ext/layers/x.py",
        DOC + "import detectron2.layers",
        ":2: layers may not import detec",
    ),
    "F0 imports os": ("seg_ext/losses/x.py", DOC + "import os.path", ":2: losses may not import os"),
    "F0 imports cv2 outside metrics": ("seg_ext/layers/x.py", DOC + "import cv2", ":2: layers may not import cv2"),
    "F0 imports F0": ("seg_ext/losses/x.py", DOC + "from seg_ext.layers import Conv", "losses may not import layers"),
    "F1 imports F1": ("seg_ext/encoders/x.py", DOC + "import seg_ext.decoders.fcn", "encoders may not import decoders"),
    "F1 imports F2": ("seg_ext/decoders/x.py", DOC + "from ..data import label_io", "decoders may not import data"),
    "F1 imports errors": ("seg_ext/decoders/x.py", DOC + "import seg_ext.errors", "decoders may not import errors"),
    "F1 imports yacs": ("seg_ext/decoders/x.py", DOC + "from yacs import config", "decoders may not import yacs"),
    "F2 imports F3": ("seg_ext/data/x.py", DOC + "from seg_ext.engine import trainer", "data may not import engine"),
    "F2 imports the root": ("seg_ext/data/x.py", DOC + "from seg_ext import register", "data may not import __init__"),
    "F3 imports F4": ("seg_ext/engine/x.py", DOC + "import seg_ext.cli.main", "engine may not import cli"),
    "in a function": ("seg_ext/data/x.py", DOC + "def f():\n    import seg_ext.engine", ":3: data may not import engi"),
    "for type checkers": (
        "seg_ext/losses/x.py",
        DOC + "if TYPE_CHECKING:\n    from PIL import Image",
        ":3: losses may not import PIL",
    ),
    "by name": ("seg_ext/layers/x.py", DOC + "importlib.import_module('fvcore.nn')", "layers may not import fvcore"),
    "runtime imports seg_ext": (
        "seg_ext/runtime.py",
        DOC + "import numpy\nimport seg_ext.errors",
        ":3: runtime may not import errors",
    ),
    "runtime imports torch": ("seg_ext/runtime.py", DOC + "import torch", ":2: runtime may not import torch"),
    "_compat imports torch": ("seg_ext/_compat.py", DOC + "import torch", ":2: _compat may not import torch"),
    "a project is imported": ("seg_ext/data/x.py", DOC + "import projects.a", ":2: nothing imports projects"),
    "a package without a floor": ("seg_ext/utils/x.py", DOC, ":1: package utils has no floor"),
    "a cycle of modules": (
        "seg_ext/layers/conv.py",
        DOC + "from . import Conv",
        "cycle: seg_ext/layers/__init__.py -> seg_ext/layers/conv.py -> seg_ext/layers/__init__.py",
    ),
    "cfg in a decoder": ("seg_ext/decoders/x.py", DOC + "def f(cfg): pass", "seg_ext/decoders/x.py:2: names cfg"),
    "cfg as an attribute": ("seg_ext/data/x.py", DOC + "a = self.cfg", "seg_ext/data/x.py:2: names cfg"),
    "cfg as a keyword": ("seg_ext/data/x.py", DOC + "f(cfg=a)", "seg_ext/data/x.py:2: names cfg"),
    "401 lines": ("seg_ext/data/x.py", DOC + "a = 1\n" * 400, "seg_ext/data/x.py:401: more than 400 lines"),
    "61 lines in a tool": ("tools/x.py", DOC + "a = 1\n" * 60, "tools/x.py:61: more than 60 lines"),
    "31 lines in a config": ("configs/x.yaml", "a: 1\n" * 31, "configs/x.yaml:31: more than 30 lines"),
    "no docstring": ("seg_ext/data/x.py", "a = 1", "seg_ext/data/x.py:1: does not open with one line"),
    "a docstring that opens with two lines": ("tools/x.py", '"""What it\nis."""', "does not open with one line"),
    "two bases": ("configs/voc/x.yaml", "_BASE_: fcn.yaml", "configs/voc/x.yaml:1: more than one _BASE_ above it"),
    "a base that is not there": ("configs/x.yaml", '_BASE_: "./None.yaml"', "configs/x.yaml:1: no configs/None.yaml"),
}


def test_a_sound_tree_has_no_violations() -> None:
    assert violations(SOUND) == []


@pytest.mark.parametrize(("path", "text", "report"), PLANTED.values(), ids=PLANTED)
def test_a_planted_violation_is_reported_alone(path: str, text: str, report: str) -> None:
    found = violations({**SOUND, path: text})
    assert len(found) == 1, found
    assert report in found[0]


def test_packages_that_import_each_other_are_a_cycle_without_one_among_their_modules() -> None:
    planted = {
        "seg_ext/data/mapper.py": DOC + "from seg_ext.inference.tta import flip",
        "seg_ext/inference/tta.py": DOC,
        "seg_ext/inference/predictor.py": DOC + "def f():\n    from seg_ext.data.label_io import read",
    }
    assert violations({**SOUND, **planted}) in (
        ["cycle: data -> inference -> data"],
        ["cycle: inference -> data -> inference"],
    )
