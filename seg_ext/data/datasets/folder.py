"""Semantic data from a folder of images and a folder of label maps with the same names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from seg_ext.data.datasets.catalog import Records, register, require
from seg_ext.data.datasets.split import Choose, choose_all
from seg_ext.data.image_io import image_size
from seg_ext.data.label_colors import Colors
from seg_ext.data.label_map import LabelMap
from seg_ext.data.palette import palette
from seg_ext.errors import UserError

_SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".ppm", ".pgm", ".gif", ".npy"}
_ARGUMENT = {
    "NAME": "name",
    "IMAGES": "images",
    "LABELS": "labels",
    "CLASSES": "classes",
    "COLORS": "colors",
    "IGNORE": "ignore_label",
    "LABEL_MAP": "label_map",
    "LABEL_COLORS": "label_colors",
}
_REQUIRED = ("NAME", "IMAGES", "LABELS", "CLASSES")


def register_folder(
    name: str,
    images: str | Path,
    labels: str | Path,
    *,
    classes: Sequence[str],
    colors: Sequence[Sequence[int]] | None = None,
    ignore_label: int = 255,
    label_map: LabelMap | None = None,
    label_colors: Colors | None = None,
) -> None:
    """Register a semantic data set whose files already exist; a second call with the same name replaces the first.

    ``images/a.jpg`` belongs to ``labels/a.png``: names match up to the suffix. Every image needs a label map; label
    maps without an image are left alone, so that several sets can share one folder of them. The folders are looked at
    when the data are loaded, not now.

    Args:
        name: as it is called in DATASETS.TRAIN and DATASETS.TEST.
        images: folder of pictures.
        labels: folder of label maps, see :func:`seg_ext.data.label_io.read_label`.
        classes: names of the train ids 0, 1, ...
        colors: RGB of the classes; None for :func:`seg_ext.data.palette.palette`.
        ignore_label: train id that does not count.
        label_map: raw id, or range of ids such as "1-65535", -> train id, for the raw ids that differ.
        label_colors: of label maps that are pictures in colour: the RGB of the train ids 0, 1, ... in a list, or
            (R, G, B) or "#rrggbb" -> train id, the ignored one included.

    Raises:
        UserError: classes, colours and label map do not fit together, or the name is taken.
    """
    check_classes(name, classes, colors, ignore_label, label_map, label_colors)
    load = partial(
        load_folder,
        name,
        Path(images),
        Path(labels),
        hint="check the folders it was registered with",
    )
    metadata = semantic_metadata(classes, colors, ignore_label, folders=(images, labels))
    register(name, load, label_map=label_map, label_colors=label_colors, **metadata)


def register_from_config_list(entries: Sequence[Mapping[str, Any]]) -> None:
    """Register the data sets of ``DATASETS.FOLDERS``; a second call changes nothing.

    Args:
        entries: each has NAME, IMAGES, LABELS and CLASSES, and may have COLORS, IGNORE, LABEL_MAP and
            LABEL_COLORS, see :func:`register_folder`.

    Raises:
        UserError: an unknown or missing key, or a value that does not fit.
    """
    for i, entry in enumerate(entries):
        key = f"DATASETS.FOLDERS[{i}]"
        if not isinstance(entry, Mapping):
            raise UserError(f"{key} is {entry!r}; it is a mapping with {', '.join(_REQUIRED)}")
        for kind, wrong in (
            ("unknown", [k for k in entry if k not in _ARGUMENT]),
            ("missing", [k for k in _REQUIRED if k not in entry]),
        ):
            if wrong:
                raise UserError(f"{key}: {kind} {', '.join(map(str, wrong))}; known: {', '.join(_ARGUMENT)}")
        texts = [k for k in ("NAME", "IMAGES", "LABELS") if not isinstance(entry[k], str) or not entry[k]]
        if texts:
            raise UserError(f"{key}: {texts[0]} is {entry[texts[0]]!r}; it is a text")
        register_folder(**{_ARGUMENT[k]: value for k, value in entry.items()})


def load_folder(name: str, images: Path, labels: Path, *, hint: str, choose: Choose = choose_all) -> Records:
    """Records of one pair of folders, in the order of the names.

    Args:
        name: of the data set, for errors.
        images: folder of pictures.
        labels: folder of label maps.
        hint: what to do about a missing folder, for errors.
        choose: of the images' file names, those that are wanted.

    Raises:
        UserError: a folder is missing, an image has no label map, or two files have the same name.
    """
    image_files, label_files = (files_by_stem(name, require(name, folder, hint)) for folder in (images, labels))
    chosen = choose(file.name for file in image_files.values())
    image_files = {stem: file for stem, file in image_files.items() if file.name in chosen}
    lacking = [file for stem, file in image_files.items() if stem not in label_files]
    if lacking:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise UserError(f"data set {name}: no label map in {labels} for {lacking[0]}{more}")
    records = []
    for stem, file in image_files.items():
        height, width = image_size(file)
        paths = {"file_name": str(file), "sem_seg_file_name": str(label_files[stem])}
        records.append({**paths, "image_id": stem, "height": height, "width": width})
    return records


def files_by_stem(name: str, folder: Path) -> dict[str, Path]:
    """The image files of a folder by their names without suffix, sorted.

    Raises:
        UserError: two files differ only in their suffix, or ``folder`` is a file.
    """
    if not folder.is_dir():
        raise UserError(f"data set {name}: {folder} is a file; a folder is needed")
    files: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() not in _SUFFIXES or file.name.startswith("."):
            continue
        if file.stem in files:
            raise UserError(f"data set {name}: {files[file.stem]} and {file.name} have the same name; remove one")
        files[file.stem] = file
    return files


def semantic_metadata(
    classes: Sequence[str],
    colors: Sequence[Sequence[int]] | None = None,
    ignore_label: int = 255,
    *,
    folders: tuple[str | Path, str | Path] | None = None,
) -> dict[str, Any]:
    """detectron2's metadata of a semantic data set, also of its folders of images and of label maps."""
    roots = dict(zip(("image_root", "sem_seg_root"), map(str, folders), strict=True)) if folders else {}
    return roots | {
        "evaluator_type": "sem_seg",
        "stuff_classes": list(classes),
        "stuff_colors": [tuple(color) for color in colors or palette(len(classes))],
        "ignore_label": ignore_label,
    }


def check_classes(
    name: str,
    classes: Sequence[str],
    colors: Sequence[Sequence[int]] | None = None,
    ignore: int = 255,
    label_map: LabelMap | None = None,
    label_colors: Colors | None = None,
) -> None:
    """Refuse classes, colours and label maps that do not fit together; arguments as of :func:`register_folder`.

    Raises:
        UserError: always beginning with the name of the data set.
    """
    if not _is_list(classes) or not classes or not all(isinstance(c, str) for c in classes):
        raise UserError(f"data set {name}: classes are {classes!r}; they are a list of names")
    if len(set(classes)) < len(classes):
        raise UserError(f"data set {name}: two classes have the same name in {', '.join(classes)}")
    if colors is not None and not _is_list(colors):
        raise UserError(f"data set {name}: colours are {colors!r}; they are a list of RGB")
    if colors is not None and (len(colors) != len(classes) or not all(_is_list(c) and len(c) == 3 for c in colors)):
        raise UserError(f"data set {name}: {len(colors)} colours for {len(classes)} classes; each class needs one RGB")
    if not isinstance(ignore, int):
        raise UserError(f"data set {name}: the ignored id is {ignore!r}; it is a whole number")
    if label_map is not None and not isinstance(label_map, Mapping):
        raise UserError(f"data set {name}: label_map is {label_map!r}; it maps raw ids to train ids")
    if label_colors is not None and not (_is_list(label_colors) or isinstance(label_colors, Mapping)):
        raise UserError(f"data set {name}: label_colors is {label_colors!r}; it is a list of RGB, or maps RGB to ids")
    trains = label_colors.values() if isinstance(label_colors, Mapping) else range(len(label_colors or ()))
    for key, ids in (("label_map", (label_map or {}).values()), ("label_colors", trains)):
        for train in ids:
            if not isinstance(train, int) or not (0 <= train < len(classes) or train == ignore):
                raise UserError(f"data set {name}: {key} maps to {train!r}; takes 0..{len(classes) - 1} and {ignore}")


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)
