"""COCO 2017 panoptic: the semantic label maps that detectron2's coco_2017_*_panoptic sets read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

from seg_ext.data.label_io import read_panoptic_ids, write_label
from seg_ext.data.prepare.archive import opened
from seg_ext.data.prepare.outputs import made, make
from seg_ext.data.prepare.report import Report
from seg_ext.errors import UserError

VOID = 255
SPLITS = ("train2017", "val2017")
_STUFF = [c["id"] for c in COCO_CATEGORIES if not c["isthing"]]
CATEGORY = {c["id"]: 0 for c in COCO_CATEGORIES} | {category: i for i, category in enumerate(_STUFF, 1)}
WANTED = (
    "unpack panoptic_annotations_trainval2017.zip of cocodataset.org so that it holds annotations/panoptic_val2017.json"
    " and panoptic_val2017/ (or annotations/panoptic_val2017/), or give its folder or archive with --source"
)


def prepare(root: Path, source: Path | None = None) -> Report:
    """Make ``root/coco/panoptic_stuff_{train,val}2017/NAME.png`` of the splits whose panoptic annotations are there.

    Labels are 0 for all things, 1..53 for the kinds of stuff in the order of their ids, and 255 where nothing is
    annotated (Kirillov et al. 2019, section 5). A panoptic_{split}.zip beside its JSON file, as COCO packs it, is
    unpacked for the time it takes. detectron2 reads ``annotations/`` and the images under ``root/coco`` itself.

    Args:
        root: folder of all data sets.
        source: folder or archive that holds ``annotations/``; None for ``root/coco``.

    Raises:
        UserError: no panoptic annotations, damaged ones, or a place that cannot be written.
    """
    place = root / "coco"
    written, lines = 0, []
    with opened(place if source is None else source, made(place)) as folder:
        for split in SPLITS:
            file = Path("annotations") / f"panoptic_{split}.json"
            listed = next((f for f in (folder / file, folder / file.name) if f.is_file()), None)
            if listed is None:
                continue
            segments = _read(listed)
            to = place / f"panoptic_stuff_{split}"
            if not all((to / name).exists() for name in segments):
                with _pngs(listed, split, place) as pngs:
                    outputs = {to / name: partial(_write, pngs / name, ids) for name, ids in segments.items()}
                    written += make(outputs, to.name)
            name = split.removesuffix("2017")
            lines.append(f"coco_2017_{name}_panoptic_stuffonly, _separated: {len(segments)} images")
    if not lines:
        raise UserError(f"{source or place} holds no panoptic_train2017.json or panoptic_val2017.json: {WANTED}")
    return Report(place, written > 0, lines)


def _read(listed: Path) -> dict[str, dict[int, int]]:
    """Name of each PNG -> its segments' ids -> semantic ids."""
    try:
        return {
            Path(a["file_name"]).name: {s["id"]: CATEGORY[s["category_id"]] for s in a["segments_info"]}
            for a in json.loads(listed.read_bytes())["annotations"]
        }
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{listed} is no COCO panoptic file: {error!r}") from error


@contextmanager
def _pngs(listed: Path, split: str, place: Path) -> Iterator[Path]:
    """The folder of the split's panoptic PNGs."""
    homes = [home / f"panoptic_{split}" for home in (listed.parent, listed.parents[1])]
    found = next((home for home in homes if home.is_dir()), listed.with_suffix(".zip"))
    if not found.exists():
        raise UserError(f"{homes[-1]} not found: {WANTED}")
    with opened(found, place) as folder:
        inner = folder / f"panoptic_{split}"
        yield inner if inner.is_dir() else folder


def _write(png: Path, semantic: Mapping[int, int], path: Path) -> None:
    ids, place = np.unique(read_panoptic_ids(png), return_inverse=True)
    unknown = sorted(set(ids.tolist()) - {0} - semantic.keys())
    if unknown:
        raise UserError(f"{png}: segment {unknown[0]} is not in its JSON file")
    table = np.array([semantic.get(i, VOID) for i in ids.tolist()], np.uint8)
    write_label(path, table[place].reshape(place.shape))
