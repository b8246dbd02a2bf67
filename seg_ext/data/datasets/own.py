"""Your own data from a data.yaml: where images and annotations lie, of which kind they are, and how they are split."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from seg_ext.data.datasets.folder import check_classes
from seg_ext.data.datasets.own_categories import read_categories
from seg_ext.data.datasets.split import SPLITS
from seg_ext.errors import UserError

Entry = dict[str, Any]

KINDS = ("masks", "coco", "panoptic", "labelme")
KEYS = {  # key -> the kinds of annotation it goes with
    **dict.fromkeys(("name", "images", "split", "colors"), KINDS),
    **{kind: (kind,) for kind in KINDS},
    "classes": ("masks", "labelme"),
    **dict.fromkeys(("ignore", "label_map", "label_colors"), ("masks",)),
    "panoptic_png": ("panoptic",),
    "cache": ("coco", "panoptic", "labelme"),
}
PATHS = ("images", *KINDS, "panoptic_png")
FOLDERS = ("images", "masks", "labelme", "panoptic_png")
_RESOLVED = ("file", "categories")


def read_data_file(path: str | Path) -> Entry:
    """Read and check a data.yaml; the images themselves are looked at when they are wanted.

    Keys, those with a path relative to the file: ``name``; ``images``: a folder; exactly one of ``masks`` (a folder of
    label maps, with ``classes`` and, as in :func:`seg_ext.data.datasets.folder.register_folder`, ``ignore``,
    ``label_map``, ``label_colors``), ``coco`` (an instances JSON), ``panoptic`` (a JSON, its PNGs in
    ``panoptic_png`` or in the folder of the JSON's name without suffix) and ``labelme`` (a folder of JSON files, with
    ``classes``; ``images`` may then be left out, and is the same folder); ``colors``: an RGB a class; ``cache``: a
    folder for what is derived.

    Splits: a path may be a mapping of train, val and test to a path each; otherwise ``split`` maps them to text files
    with an image a line, or is ``{val: 0.2, test: 0.1, seed: 0}``, see :mod:`seg_ext.data.datasets.split`.

    Returns:
        The same with absolute paths, the file's own under "file", and under "categories" what an annotation file
        states: it says all that :func:`seg_ext.data.datasets.own_register.register_own` wants.

    Raises:
        UserError: beginning with the file, what is wrong in it.
    """
    file = Path(path).expanduser().absolute()
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{file}: not plain yaml: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file}: holds no keys; it is a mapping with name, images, and one of {', '.join(KINDS)}")
    try:
        return _resolved(file, content)
    except UserError as error:
        raise error if str(error).startswith(str(file)) else UserError(f"{file}: {error}") from error


def kind_of(entry: Mapping[str, Any]) -> str:
    """Which of KINDS the annotation is of."""
    return next(kind for kind in KINDS if kind in entry)


def split_names(entry: Mapping[str, Any]) -> dict[str, str]:
    """Name of the data set of each split: train -> NAME_train."""
    by_path = [set(entry[key]) for key in PATHS if isinstance(entry.get(key), dict)]
    rule = entry.get("split") or {}
    given = by_path[0] if by_path else set(rule) | ({"train"} if _is_fractions(rule) else set())
    return {split: f"{entry['name']}_{split}" for split in SPLITS if split in given}


def path_of(entry: Mapping[str, Any], key: str, split: str) -> Path:
    """Where the images or annotations of a split are."""
    value = entry[key]
    return Path(value[split] if isinstance(value, dict) else value)


def digest_of(entry: Mapping[str, Any]) -> str:
    """Eight letters that differ between data that lie elsewhere or are split otherwise."""
    told = {key: entry.get(key) for key in (*PATHS, "split")}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:8]


def _resolved(file: Path, content: Entry) -> Entry:
    unknown = [key for key in content if key not in KEYS]
    if unknown:
        near = difflib.get_close_matches(str(unknown[0]), KEYS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {_listed(list(KEYS))}"
        raise UserError(f"unknown key {unknown[0]}; {hint}")
    kinds = [kind for kind in KINDS if kind in content]
    if len(kinds) != 1:
        raise UserError(f"{' and '.join(kinds) or 'no annotation'}; it takes exactly one of {', '.join(KINDS)}")
    foreign = [key for key in content if kinds[0] not in KEYS[key]]
    if foreign:
        raise UserError(f"{foreign[0]} goes with {' or '.join(KEYS[foreign[0]])}, not with {kinds[0]}")
    entry = _with_defaults(content, kinds[0])
    needed = ("name", "images", *(["classes"] if kinds[0] in KEYS["classes"] else []))
    missing = [key for key in needed if key not in entry]
    if missing:
        raise UserError(f"{missing[0]} is missing")
    if not isinstance(entry["name"], str) or not re.fullmatch(r"[\w-]+", entry["name"]):
        raise UserError(f"name is {entry['name']!r}; it is letters, digits, _ and -")
    entry |= {key: _paths(file.parent, key, entry[key]) for key in PATHS if key in entry}
    entry |= {"cache": str(file.parent / entry["cache"])} if "cache" in entry else {}
    entry |= {"split": _split(file.parent, entry)}
    _check_kind(entry, kinds[0])
    return entry | {"file": str(file)}


def _with_defaults(content: Entry, kind: str) -> Entry:
    defaults: Entry = {}
    if kind == "labelme":
        defaults["images"] = content["labelme"]
    if kind == "panoptic":
        jsons = content["panoptic"]
        defaults["panoptic_png"] = (
            {split: str(Path(str(one)).with_suffix("")) for split, one in jsons.items()}
            if isinstance(jsons, dict)
            else str(Path(str(jsons)).with_suffix(""))
        )
    return defaults | content


def _paths(base: Path, key: str, value: Any) -> Any:
    """Absolute paths that exist, of all splits or of each."""
    if isinstance(value, dict):
        wrong = [split for split in value if split not in SPLITS]
        if wrong or not value:
            raise UserError(f"{key} is {value!r}; it is a path, or maps {', '.join(SPLITS)} to paths")
        return {split: _paths(base, f"{key}.{split}", one) for split, one in value.items()}
    if not isinstance(value, str) or not value:
        raise UserError(f"{key} is {value!r}; it is a path, or maps {', '.join(SPLITS)} to paths")
    path, kind = base / Path(value).expanduser(), key.split(".")[0]
    wanted = "folder" if kind in FOLDERS else "file"
    if not path.exists():
        raise UserError(f"{key}: {wanted} {path} not found")
    if path.is_dir() != (wanted == "folder"):
        raise UserError(f"{key}: {path} is a {'folder' if path.is_dir() else 'file'}; it takes a {wanted}")
    return str(path)


def _split(base: Path, entry: Entry) -> Entry:
    """Lists by absolute path, or fractions as float, or nothing where the paths say it."""
    by_path = {key: sorted(entry[key]) for key in PATHS if isinstance(entry.get(key), dict)}
    rule = entry.get("split")
    if by_path:
        if rule is not None:
            raise UserError(f"split: {', '.join(by_path)} have a path for each split already; remove one")
        if len(set(map(tuple, by_path.values()))) > 1:
            raise UserError(f"splits differ: {'; '.join(f'{k} has {_listed(v)}' for k, v in by_path.items())}")
        return {}
    forms = "it is {train: LIST.txt, val: LIST.txt} or {val: 0.2, test: 0.1, seed: 0}"
    if rule is None:
        raise UserError(f"split is missing; {forms}, or each path has one for train and val")
    if not isinstance(rule, dict) or not rule or not set(rule) <= {*SPLITS, "seed"}:
        raise UserError(f"split is {rule!r}; {forms}")
    if _is_fractions(rule):
        return _fractions(rule, forms)
    for split, file in rule.items():
        if not isinstance(file, str):
            raise UserError(f"split: {split} is {file!r}; {forms}")
        if not (base / file).is_file():
            raise UserError(f"split: list {base / file} of {split} not found")
    return {split: str(base / file) for split, file in rule.items()}


def _listed(words: list[str]) -> str:
    return ", ".join(words)


def _is_fractions(rule: Mapping[str, Any]) -> bool:
    return any(isinstance(value, int | float) for value in rule.values())


def _fractions(rule: Mapping[str, Any], forms: str) -> Entry:
    shares = {key: value for key, value in rule.items() if key != "seed"}
    seed = rule.get("seed", 0)
    right = all(isinstance(v, int | float) and not isinstance(v, bool) and 0 < v < 1 for v in shares.values())
    if not right or not isinstance(seed, int) or "train" in shares or not shares or sum(shares.values()) >= 1:
        raise UserError(f"split is {dict(rule)!r}; {forms}: shares between 0 and 1 that leave some to train")
    return {**{key: float(value) for key, value in shares.items()}, "seed": seed}


def _check_kind(entry: Entry, kind: str) -> None:
    """Fill in the categories of annotation files, and refuse classes and rules that do not fit."""
    if kind in ("coco", "panoptic"):
        given = entry[kind]
        entry["categories"] = read_categories(list(given.values()) if isinstance(given, dict) else [given], kind)
    classes = entry["classes"] if kind in KEYS["classes"] else [c["name"] for c in entry["categories"]]
    rules = {key: entry.get(key) for key in ("label_map", "label_colors")}
    check_classes(entry["name"], classes, entry.get("colors"), entry.get("ignore", 255), **rules)
