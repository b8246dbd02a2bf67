"""Instances from LabelMe's JSON files, one an image: polygons, rectangles and circles."""

from __future__ import annotations

import difflib
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.structures import BoxMode

from seg_ext.data.datasets.catalog import Records, require
from seg_ext.data.datasets.folder import files_by_stem
from seg_ext.data.datasets.split import Choose, choose_all
from seg_ext.data.image_io import image_size
from seg_ext.errors import UserError

Points = list[tuple[float, float]]


def load_labelme(
    name: str, folder: Path, images: Path, classes: Sequence[str], *, hint: str, choose: Choose = choose_all
) -> Records:
    """Records of the images that have a JSON file, in the order of the files.

    The image of ``a.json`` is the one of the same name without suffix. Shapes of one label and ``group_id`` are one
    instance. Images without a JSON file are left out: nobody has annotated them.

    Args:
        name: of the data set, for errors.
        folder: of the JSON files.
        images: folder of their images; it may be the same.
        classes: names of the labels, in the order of the class ids 0, 1, ...
        hint: what to do about a missing folder, for errors.
        choose: of the images' file names, those that are wanted.

    Raises:
        UserError: a folder or an image is missing, a file is not LabelMe's, a label is not in ``classes``, or a shape
            has no area by its kind (points and lines).
    """
    require(name, folder, hint)
    pictures = files_by_stem(name, require(name, images, hint))
    files = {file.stem: file for file in sorted(folder.glob("*.json"))}
    if not files:
        raise UserError(f"data set {name}: {folder} holds no JSON file; LabelMe writes one an image")
    orphans = [file for stem, file in files.items() if stem not in pictures]
    if orphans:
        more = f" and {len(orphans) - 1} more" if len(orphans) > 1 else ""
        raise UserError(f"data set {name}: no image in {images} for {orphans[0]}{more}")
    chosen = choose(pictures[stem].name for stem in files)
    shapes = {
        stem: _read(file, image_size(pictures[stem])) for stem, file in files.items() if pictures[stem].name in chosen
    }
    _check_labels(name, {files[stem]: found for stem, found in shapes.items()}, classes)
    ids = {label: i for i, label in enumerate(classes)}
    return [
        {
            "file_name": str(pictures[stem]),
            "image_id": stem,
            **dict(zip(("height", "width"), image_size(pictures[stem]), strict=True)),
            "annotations": _annotations(files[stem], found, ids),
        }
        for stem, found in shapes.items()
    ]


def _read(file: Path, size: tuple[int, int]) -> list[Mapping[str, Any]]:
    """The shapes of one file, each with a label and points."""
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: not JSON: {error}") from error
    shapes = content.get("shapes") if isinstance(content, dict) else None
    if not isinstance(shapes, list):
        raise UserError(f"{file}: no LabelMe file: it has no list 'shapes'")
    stated = content.get("imageHeight") or size[0], content.get("imageWidth") or size[1]
    if stated != size:
        raise UserError(f"{file}: says its image is {stated[1]}x{stated[0]}, but it is {size[1]}x{size[0]}")
    for i, shape in enumerate(shapes):
        if not isinstance(shape, dict) or not isinstance(shape.get("label"), str):
            raise UserError(f"{file}: shape {i} has no label")
    return shapes


def _check_labels(name: str, shapes: Mapping[Path, Sequence[Mapping[str, Any]]], classes: Sequence[str]) -> None:
    unknown = [(shape["label"], file) for file, found in shapes.items() for shape in found]
    unknown = [(label, file) for label, file in unknown if label not in classes]
    if not unknown:
        return
    ((label, count),) = Counter(label for label, _ in unknown).most_common(1)
    files = list(dict.fromkeys(file for other, file in unknown if other == label))
    near = difflib.get_close_matches(label, classes, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(classes)}"
    raise UserError(
        f"data set {name}: {files[0]}: label {label!r} is not in classes (shapes: {count}, files: {len(files)}); {hint}"
    )


def _annotations(file: Path, shapes: Sequence[Mapping[str, Any]], ids: Mapping[str, int]) -> list[dict[str, Any]]:
    """detectron2's annotations, one a shape or group of shapes, in the order of their first shapes."""
    instances: dict[Any, list[Points]] = {}
    for i, shape in enumerate(shapes):
        group = shape.get("group_id")
        key = (shape["label"], i if group is None else f"group {group}")
        instances.setdefault(key, []).append(_polygon(file, i, shape))
    return [
        {
            "bbox": [edge(p[axis] for part in parts for p in part) for edge in (min, max) for axis in (0, 1)],
            "bbox_mode": BoxMode.XYXY_ABS,
            "category_id": ids[label],
            "iscrowd": 0,
            "segmentation": [[value for point in part for value in point] for part in parts],
        }
        for (label, _), parts in instances.items()
    ]


def _polygon(file: Path, index: int, shape: Mapping[str, Any]) -> Points:
    kind, place = shape.get("shape_type") or "polygon", f"{file}: shape {index} ({shape['label']})"
    if kind not in POLYGONS:
        raise UserError(f"{place} is a {kind}, which has no mask here; takes {', '.join(POLYGONS)}")
    least, most, convert = POLYGONS[kind]
    try:
        points = [(float(x), float(y)) for x, y in shape["points"]]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{place}: its points are not a list of [x, y]") from error
    if not least <= len(points) <= most or not all(math.isfinite(v) for point in points for v in point):
        wanted = f"{least} points" if least == most else f"at least {least} points"
        raise UserError(f"{place} is a {kind} of {len(points)} points; it takes {wanted}, all finite")
    return convert(points)


def _rectangle(points: Points) -> Points:
    (x0, y0), (x1, y1) = points
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def _circle(points: Points) -> Points:
    """A polygon with an edge a pixel of the circumference around the first point, through the second."""
    (x, y), edge = points
    radius = math.dist((x, y), edge)
    corners = max(12, math.ceil(2 * math.pi * radius))
    angles = [2 * math.pi * i / corners for i in range(corners)]
    return [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles]


POLYGONS: dict[
    str, tuple[int, float, Callable[[Points], Points]]
] = {  # shape_type -> least and most points, polygon of the points
    "polygon": (3, math.inf, list),
    "rectangle": (2, 2, _rectangle),
    "circle": (2, 2, _circle),
}
