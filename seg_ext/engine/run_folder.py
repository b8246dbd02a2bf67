"""What a run folder tells of its run beside the results: config, environment, git commit, training data."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.utils import comm

from seg_ext.checkpoint import write_whole
from seg_ext.config import get_cfg

CONFIG, ENVIRONMENT, DATA = "config.yaml", "environment.txt", "data.json"
_MOVES = ("OUTPUT_DIR",)  # may differ without a word
_GIT_SECONDS = 10
_logger = logging.getLogger(__name__)


def stored_config(folder: Path) -> dict[str, Any]:
    """The config.yaml that the main process finds in the folder, as plain yaml; empty where it cannot be read."""
    found: dict[str, Any] = {}
    if comm.is_main_process() and (folder / CONFIG).is_file():
        try:
            found = dict(yaml.safe_load((folder / CONFIG).read_text()) or {})
        except (OSError, ValueError, TypeError, yaml.YAMLError):
            _logger.warning("%s: cannot be read, so not compared with the config given", folder / CONFIG)
    return comm.all_gather(found)[0]


def differences(stored: Mapping[str, Any], cfg: CfgNode) -> list[str]:
    """``KEY old -> new`` for every key in which a stored config differs from the one given.

    Keys that the stored one lacks, as one of an older version does, count where they are not at their default.
    """
    default, old, new = _flat(yaml.safe_load(get_cfg().dump())), _flat(stored), _flat(yaml.safe_load(cfg.dump()))
    lines = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key, default.get(key)), new.get(key, default.get(key))
        if before != after and key not in _MOVES:
            lines.append(f"{key} {_short(before)} -> {_short(after)}")
    return lines


def write_environment(folder: Path) -> None:
    """Add time, command, git commit and versions to environment.txt, a block each time that the run goes on."""
    try:
        own = version("seg-ext")
    except PackageNotFoundError:  # on PYTHONPATH alone
        own = "of no installed version"
    versions = f"seg_ext {own}, {comm.get_world_size()} process(es), host {platform.node()}"
    lines = [
        f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S %z}  {shlex.join(sys.argv)}",
        f"folder {os.getcwd()}, {git_commit() or 'no git tree'}",
        versions,
        _libraries(),
    ]
    with (folder / ENVIRONMENT).open("a") as stream:
        stream.write("\n".join(lines) + "\n\n")


def git_commit(folder: str | Path = ".") -> str:
    """The commit of the folder's tree and how many files differ from it; empty outside one, or without git."""
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return ""
    changed = len(_git(folder, "status", "--porcelain", "--untracked-files=no").splitlines())
    return f"git commit {commit}, {changed} file{'s' * (changed != 1)} changed"


def data_fingerprint(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Numbers of images and objects, and SHA-256 of the records in order, wherever their files lie.

    It covers all that the records say, not the files: some seconds for 100 000 images with polygons.
    """
    digest = hashlib.sha256()
    keys = {key for record in records for key in record if key.endswith("file_name")}
    roots = {key: _root([record[key] for record in records if key in record]) for key in keys}
    for record in records:
        relative = {key: os.path.relpath(record[key], roots[key] or None) for key in keys & record.keys()}
        pickler = pickle.Pickler(_Sink(digest), protocol=5)
        pickler.fast = True  # by value: equal objects that are one object, or two, give the same bytes
        pickler.dump(sorted({**record, **relative}.items()))
    objects = sum(len(record.get("annotations", ())) for record in records)
    return {"images": len(records), "objects": objects, "sha256": digest.hexdigest()}


def write_data(folder: Path, sets: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Write data.json: the fingerprint of each training set; warn where a run goes on with others than it had."""
    found = {name: data_fingerprint(records) for name, records in sets.items()}
    file = folder / DATA
    try:
        before = json.loads(file.read_text())
    except (OSError, ValueError):
        before = {}
    for name in found.keys() & before.keys():
        if found[name] != before[name]:
            counts = [f"{x['images']} images, {x['objects']} objects" for x in (before[name], found[name])]
            _logger.warning(
                "data set %s is not what this run folder had: %s, sha256 %s; now %s, sha256 %s",
                name,
                counts[0],
                before[name]["sha256"][:8],
                counts[1],
                found[name]["sha256"][:8],
            )
    write_whole(file, lambda stream: stream.write((json.dumps(found, indent=1) + "\n").encode()))


class _Sink:
    """A file that is hashed as it is written."""

    def __init__(self, digest: Any) -> None:
        self._digest = digest

    def write(self, data: bytes) -> int:
        self._digest.update(data)
        return len(data)


def _root(files: Sequence[str]) -> str:
    return os.path.commonpath([os.path.dirname(file) for file in files])


def _git(folder: str | Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=_GIT_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _libraries() -> str:
    """detectron2's table, without what torch logs when there is no compiler for CUDA."""
    from detectron2.utils.collect_env import collect_env_info

    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        return str(collect_env_info()).strip()
    finally:
        logging.disable(previous)


def _flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in node.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {prefix + str(key): value}
    return flat


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
