"""Entering data sets into detectron2's catalogs, and the checks that all of them share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from seg_ext.data.label_colors import Colors, color_table
from seg_ext.data.label_map import LabelMap, label_intervals
from seg_ext.errors import UserError

Records = list[dict[str, Any]]
Rules = dict[str, dict[Any, int]]  # label_map, label_colors

_OURS: set[str] = set()


def register(
    name: str,
    load: Callable[[], Records],
    *,
    label_map: LabelMap | None = None,
    label_colors: Colors | None = None,
    **metadata: Any,
) -> None:
    """Enter a data set; a second call with the same name replaces the first.

    Args:
        name: as it is called in DATASETS.TRAIN and DATASETS.TEST.
        load: gives the records; called when the data are wanted, not now.
        label_map: raw label id -> train id for those that differ; a key is an id, or an inclusive range of ids such
            as "1-65535". It goes into the metadata and, for the mapper, as "sem_seg_label_map" into every record.
        label_colors: of label pictures in colour: (R, G, B) -> train id, the ignored one included, or the colours of
            the train ids 0, 1, ... in a list. It goes the same ways, as a dict and as "sem_seg_label_colors".
        **metadata: detectron2's metadata of the set, there at once.

    Raises:
        UserError: the name belongs to a data set that other code registered, or label map or colours are none.
    """
    try:
        label_intervals(label_map or {})
        rules: Rules = {"label_map": dict(label_map)} if label_map else {}
        rules |= {"label_colors": color_table(label_colors)} if label_colors is not None else {}
    except ValueError as error:
        raise UserError(f"data set {name}: {error}") from error
    if name in DatasetCatalog and name not in _OURS:
        raise UserError(f"data set {name} is already registered by other code; choose another name")
    for catalog in (DatasetCatalog, MetadataCatalog):
        catalog.pop(name, None)
    _OURS.add(name)
    DatasetCatalog.register(name, partial(_load, name, load, rules))
    MetadataCatalog.get(name).set(**metadata, **rules)


def require(name: str, path: Path, hint: str) -> Path:
    """The path, if it exists.

    Raises:
        UserError: it does not; the line ends in the hint.
    """
    if not path.exists():
        raise UserError(f"data set {name}: {path} not found; {hint}")
    return path


def root_hint(root: Path, folder: str) -> str:
    """What to do about a built-in data set that is not where it was looked for."""
    return f"set DETECTRON2_DATASETS (now {str(root)!r}) to the folder that holds {folder}/"


def _load(name: str, load: Callable[[], Records], rules: Rules) -> Records:
    records = load()
    if not records:
        raise UserError(f"data set {name} holds no images")
    common = {f"sem_seg_{key}": value for key, value in rules.items()}
    return [common | record for record in records] if common else records
