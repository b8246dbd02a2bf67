"""Entering the data sets of a data.yaml: one annotation of whatever kind serves every head that can use it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from seg_ext.data.datasets import catalog, data_root
from seg_ext.data.datasets.catalog import Records
from seg_ext.data.datasets.coco_instances import load_coco
from seg_ext.data.datasets.coco_panoptic import load_panoptic
from seg_ext.data.datasets.derived import with_instances, with_panoptic
from seg_ext.data.datasets.folder import load_folder, semantic_metadata
from seg_ext.data.datasets.labelme import load_labelme
from seg_ext.data.datasets.own import Entry, digest_of, kind_of, path_of, split_names
from seg_ext.data.datasets.split import choose
from seg_ext.data.palette import palette

BACKGROUND = "background"


def register_own(entry: Entry, *, semantic: bool = True, instances: bool = True) -> list[str]:
    """Register the splits of a data.yaml, without looking at the data; a second call replaces the first.

    A panoptic annotation gives semantic maps, read from its PNGs, and instances. COCO instances and LabelMe's files
    give instances and, where ``semantic``, semantic and panoptic maps: class 0 is the background, class k + 1 is
    instance class k, and later annotations cover earlier ones. Label maps give semantic maps alone. What is derived
    is kept below the entry's "cache", or ``derived/`` in the folder of all data sets, never beside the source; it may
    be deleted.

    Args:
        entry: of :func:`seg_ext.data.datasets.own.read_data_file`.
        semantic: whether label maps are wanted.
        instances: whether instances are wanted.

    Returns:
        The names: NAME_train, NAME_val, NAME_test, as far as there are splits.

    Raises:
        UserError: a name is taken by other code, or the rules for the label maps are none.
    """
    kind, names = kind_of(entry), split_names(entry)
    for split, name in names.items():
        common = {
            "image_root": str(path_of(entry, "images", split)),
            "defined_in": entry["file"],
            "annotated_by": (kind, str(path_of(entry, kind, split))),
            "choose": partial(choose, name, entry["split"], split),
        }
        if kind == "masks":
            rules = {key: entry.get(key) for key in ("label_map", "label_colors")}
            metadata = semantic_metadata(entry["classes"], entry.get("colors"), entry.get("ignore", 255))
            catalog.register(name, partial(_load_masks, name, entry, split), **rules, **metadata, **common)
            continue
        cache = Path(entry.get("cache") or data_root() / "derived") / f"{name}-{digest_of(entry)}"
        if kind == "panoptic":
            load = partial(_load_panoptic, name, entry, split, cache if instances else None)
            metadata = _panoptic_metadata(entry, split)
        else:
            load = partial(_load_instances, name, entry, split, cache if semantic else None)
            metadata = _instance_metadata(entry, cache if semantic else None)
        catalog.register(name, load, **metadata, **common)
    return list(names.values())


def _hint(entry: Entry) -> str:
    return f"check {entry['file']}"


def _load_masks(name: str, entry: Entry, split: str) -> Records:
    pick = partial(choose, name, entry["split"], split)
    images, masks = (path_of(entry, key, split) for key in ("images", "masks"))
    return load_folder(name, images, masks, hint=_hint(entry), choose=pick)


def _load_panoptic(name: str, entry: Entry, split: str, cache: Path | None) -> Records:
    records = load_panoptic(
        name,
        *(path_of(entry, key, split) for key in ("panoptic", "panoptic_png", "images")),
        thing_ids=_thing_ids(entry),
        stuff_ids=_semantic_ids(entry),
        hint=_hint(entry),
        choose=partial(choose, name, entry["split"], split),
    )
    return records if cache is None else with_instances(records, cache)


def _load_instances(name: str, entry: Entry, split: str, cache: Path | None) -> Records:
    pick, things, images = (
        partial(choose, name, entry["split"], split),
        _thing_ids(entry),
        path_of(entry, "images", split),
    )
    if "coco" in entry:
        json_file = path_of(entry, "coco", split)
        records = load_coco(name, json_file, images, hint=_hint(entry), thing_ids=things, choose=pick)
    else:
        folder = path_of(entry, "labelme", split)
        records = load_labelme(name, folder, images, entry["classes"], hint=_hint(entry), choose=pick)
    if cache is None:
        return records
    categories = {k: category for category, k in things.items()}
    return with_panoptic(records, cache, categories=categories, background=_background_id(things))


def _panoptic_metadata(entry: Entry, split: str) -> dict[str, Any]:
    categories = entry["categories"]
    colors = [tuple(color) for color in entry.get("colors") or palette(len(categories))]
    thing = [i for i, c in enumerate(categories) if c["isthing"]]
    return semantic_metadata([c["name"] for c in categories], colors) | {
        "evaluator_type": "coco_panoptic_seg",
        "thing_classes": [categories[i]["name"] for i in thing],
        "thing_colors": [colors[i] for i in thing],
        "thing_sem_seg_ids": tuple(thing),
        "thing_dataset_id_to_contiguous_id": _thing_ids(entry),
        "stuff_dataset_id_to_contiguous_id": _semantic_ids(entry),
        "panoptic_json": str(path_of(entry, "panoptic", split)),
        "panoptic_root": str(path_of(entry, "panoptic_png", split)),
    }


def _instance_metadata(entry: Entry, cache: Path | None) -> dict[str, Any]:
    names = _names(entry)
    colors = [tuple(color) for color in entry.get("colors") or palette(len(names) + 1)[1:]]
    things = _thing_ids(entry)
    instances = {"thing_classes": names, "thing_colors": colors, "thing_dataset_id_to_contiguous_id": things}
    if cache is None:
        return {"evaluator_type": "coco", **instances}
    ground = BACKGROUND if BACKGROUND not in names else f"no {BACKGROUND}"
    return semantic_metadata([ground, *names], [(0, 0, 0), *colors]) | {
        "evaluator_type": "coco_panoptic_seg",
        **instances,
        "thing_sem_seg_ids": tuple(range(1, len(names) + 1)),
        "stuff_dataset_id_to_contiguous_id": {_background_id(things): 0} | {c: k + 1 for c, k in things.items()},
        "panoptic_json": str(cache / "panoptic.json"),
        "panoptic_root": str(cache / "panoptic"),
    }


def _names(entry: Mapping[str, Any]) -> list[str]:
    return list(entry["classes"]) if "classes" in entry else [c["name"] for c in entry["categories"]]


def _thing_ids(entry: Mapping[str, Any]) -> dict[int, int]:
    """Category id -> instance class: LabelMe's labels count from 1, COCO's ids ascend."""
    if "classes" in entry:
        return {i + 1: i for i in range(len(entry["classes"]))}
    things = [c["id"] for c in entry["categories"] if c.get("isthing", True)]
    return {category: i for i, category in enumerate(things)}


def _semantic_ids(entry: Mapping[str, Any]) -> dict[int, int]:
    return {category["id"]: i for i, category in enumerate(entry["categories"])}


def _background_id(things: Mapping[int, int]) -> int:
    return 0 if 0 not in things else max(things) + 1
