"""The categories of COCO annotation files, and whether a file is of the kind it is given as."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seg_ext.errors import UserError

Categories = list[dict[str, Any]]

_OTHER = {"coco": "panoptic", "panoptic": "coco"}
_NAMES = {"coco": "COCO instances", "panoptic": "COCO panoptic"}


def read_categories(files: Sequence[str], kind: str) -> Categories:
    """The categories that all files state alike, by id: "id", "name" and, of panoptic files, "isthing".

    Args:
        files: JSON files, one at least.
        kind: "coco" for instances, or "panoptic".

    Raises:
        UserError: a file is of another kind, has no categories or a bad one, or two files differ.
    """
    found = [_categories(Path(file), kind) for file in files]
    for file, categories in zip(files, found, strict=True):
        if categories != found[0]:
            raise UserError(f"{kind}: {files[0]} and {file} have different categories")
    return found[0]


def _categories(file: Path, kind: str) -> Categories:
    where = f"{kind}: {file}"
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{where}: not JSON: {error}") from error
    lists = ("images", "annotations", "categories")
    lacking = [key for key in lists if not isinstance(content, dict) or not isinstance(content.get(key), list)]
    if lacking:
        labelme = isinstance(content, dict) and "shapes" in content
        hint = "; it is a LabelMe file: give its folder as labelme" if labelme else ""
        raise UserError(f"{where} is no {_NAMES[kind]} file: it has no list '{lacking[0]}'{hint}")
    has_segments = [isinstance(a, dict) and "segments_info" in a for a in content["annotations"]]
    if has_segments and all(has_segments) != (kind == "panoptic"):
        other = _OTHER[kind]
        raise UserError(f"{where} is a {_NAMES[other]} file, not a {_NAMES[kind]} one; give it as {other}")
    return _checked(where, content["categories"], kind)


def _checked(where: str, categories: Sequence[Any], kind: str) -> Categories:
    wanted = {"id": int, "name": str} | ({"isthing": int} if kind == "panoptic" else {})
    for category in categories:
        wrong = [k for k, t in wanted.items() if not isinstance(category, dict) or not isinstance(category.get(k), t)]
        if wrong:
            raise UserError(f"{where}: category {category!r} lacks {wrong[0]}")
    if not categories:
        raise UserError(f"{where} has no categories")
    for key in ("id", "name"):
        value, count = Counter(c[key] for c in categories).most_common(1)[0]
        if count > 1:
            raise UserError(f"{where}: {count} categories have the {key} {value!r}; each has its own")
    return [{key: category[key] for key in wanted} for category in sorted(categories, key=lambda c: c["id"])]
