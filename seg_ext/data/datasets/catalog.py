"""Entering data sets into detectron2's catalogs, and the checks that all of them share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from seg_ext.errors import UserError

Records = list[dict[str, Any]]

_OURS: set[str] = set()


def register(
    name: str, load: Callable[[], Records], *, label_map: Mapping[int, int] | None = None, **metadata: Any
) -> None:
    """Enter a data set; a second call with the same name replaces the first.

    Args:
        name: as it is called in DATASETS.TRAIN and DATASETS.TEST.
        load: gives the records; called when the data are wanted, not now.
        label_map: raw label id -> train id for those that differ. It goes into the metadata and, for the mapper, as
            "sem_seg_label_map" into every record.
        **metadata: detectron2's metadata of the set, there at once.

    Raises:
        UserError: the name belongs to a data set that other code registered.
    """
    if name in DatasetCatalog and name not in _OURS:
        raise UserError(f"data set {name} is already registered by other code; choose another name")
    for catalog in (DatasetCatalog, MetadataCatalog):
        catalog.pop(name, None)
    _OURS.add(name)
    DatasetCatalog.register(name, partial(_load, name, load, dict(label_map or {})))
    MetadataCatalog.get(name).set(**metadata, **({"label_map": dict(label_map)} if label_map else {}))


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


def _load(name: str, load: Callable[[], Records], label_map: dict[int, int]) -> Records:
    records = load()
    if not records:
        raise UserError(f"data set {name} holds no images")
    return [record | {"sem_seg_label_map": label_map} for record in records] if label_map else records
