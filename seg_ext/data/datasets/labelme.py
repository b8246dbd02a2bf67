"""Instances from LabelMe's JSON files, one an image: polygons, rectangles, circles and masks."""

from __future__ import annotations

import base64
import difflib
import io
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.structures import BoxMode
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as mask_util

from seg_ext.data.datasets.catalog import Records, require
from seg_ext.data.datasets.folder import files_by_stem
from seg_ext.data.datasets.split import Choose, choose_all
from seg_ext.data.image_io import image_size
from seg_ext.errors import UserError

Points = list[tuple[float, float]]
Mask = NDArray[np.bool_]
Shapes = Sequence[Mapping[str, Any]]


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
    files = {stem: file for stem, file in files.items() if pictures[stem].name in chosen}
    sizes = {stem: image_size(pictures[stem]) for stem in files}
    shapes = {stem: read_shapes(file, sizes[stem]) for stem, file in files.items()}
    check_labels(name, {files[stem]: found for stem, found in shapes.items()}, classes)
    return [labelme_record(files[s], pictures[s], found, classes, size=sizes[s]) for s, found in shapes.items()]


def labelme_record(
    file: Path, image: Path, shapes: Shapes, classes: Sequence[str], *, size: tuple[int, int]
) -> dict[str, Any]:
    """The record of one image.

    Args:
        file: of LabelMe, for errors.
        image: its image.
        shapes: of :func:`read_shapes`, their labels checked.
        classes: names of the labels.
        size: height and width of the image.

    Raises:
        UserError: a shape that has no area by its kind, or points or a mask that do not fit its kind.
    """
    return {
        "file_name": str(image),
        "image_id": file.stem,
        "height": size[0],
        "width": size[1],
        "annotations": _annotations(file, shapes, {label: i for i, label in enumerate(classes)}, size),
    }


def read_shapes(file: Path, size: tuple[int, int]) -> Shapes:
    """The shapes of one file, each with a label.

    Args:
        file: of LabelMe.
        size: height and width of its image.

    Raises:
        UserError: not JSON, not LabelMe's, or of another size than its image.
    """
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


def check_labels(name: str, shapes: Mapping[Path, Shapes], classes: Sequence[str]) -> None:
    """Refuse labels that are no class.

    Raises:
        UserError: the most frequent of them, with the nearest class.
    """
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


def _annotations(file: Path, shapes: Shapes, ids: Mapping[str, int], size: tuple[int, int]) -> list[dict[str, Any]]:
    """detectron2's annotations, one a shape or group of shapes, in the order of their first shapes."""
    instances: dict[Any, list[Points | Mask]] = {}
    for i, shape in enumerate(shapes):
        group = shape.get("group_id")
        key = (shape["label"], i if group is None else f"group {group}")
        place = f"{file}: shape {i} ({shape['label']})"
        part = _mask(place, shape, size) if shape.get("shape_type") == "mask" else _polygon(place, shape)
        instances.setdefault(key, []).append(part)
    return [
        _geometry(parts, size) | {"category_id": ids[label], "iscrowd": 0} for (label, _), parts in instances.items()
    ]


def _geometry(parts: Sequence[Points | Mask], size: tuple[int, int]) -> dict[str, Any]:
    """Box and polygons of an instance, or an RLE of all of it where a part of it is a mask."""
    polygons = [[value for point in part for value in point] for part in parts if isinstance(part, list)]
    masks = [mask_util.encode(np.asfortranarray(part, np.uint8)) for part in parts if not isinstance(part, list)]
    if masks:
        rle = mask_util.merge([*masks, *(mask_util.frPyObjects(polygons, *size) if polygons else ())])
        x, y, w, h = mask_util.toBbox(rle).tolist()
        box, shape = [x, y, x + w, y + h], rle | {"counts": rle["counts"].decode("ascii")}
    else:
        corners = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in polygons])
        box, shape = [*corners.min(axis=0).tolist(), *corners.max(axis=0).tolist()], polygons
    return {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "segmentation": shape}


def _points(place: str, shape: Mapping[str, Any]) -> Points:
    try:
        points = [(float(x), float(y)) for x, y in shape["points"]]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{place}: its points are not a list of [x, y]") from error
    if not all(math.isfinite(v) for point in points for v in point):
        raise UserError(f"{place}: its points are not all finite")
    return points


def _polygon(place: str, shape: Mapping[str, Any]) -> Points:
    kind, points = str(shape.get("shape_type") or "polygon"), _points(place, shape)
    if kind not in POLYGONS:
        raise UserError(f"{place} is a {kind}, which has no mask here; takes {', '.join(POLYGONS)}, mask")
    least, most, convert = POLYGONS[kind]
    if not least <= len(points) <= most:
        wanted = f"{least} points" if least == most else f"at least {least} points"
        raise UserError(f"{place} is a {kind} of {len(points)} points; it takes {wanted}")
    return convert(points)


def _mask(place: str, shape: Mapping[str, Any], size: tuple[int, int]) -> Mask:
    """(H, W) of a mask shape, whose PNG covers the pixels from its first point to its second, both included."""
    points = _points(place, shape)
    if len(points) != 2:
        raise UserError(f"{place} is a mask of {len(points)} points; it takes 2 points, the corners of its PNG")
    (x0, y0), (x1, y1) = ((int(x), int(y)) for x, y in points)
    try:
        with Image.open(io.BytesIO(base64.b64decode(shape["mask"], validate=True))) as image:
            if image.size != (x1 - x0 + 1, y1 - y0 + 1):
                raise UserError(
                    f"{place}: its mask is {image.width}x{image.height}, but its points say {x1 - x0 + 1}x{y1 - y0 + 1}"
                )
            pixels = np.asarray(image.convert("L")) > 0
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, OSError, SyntaxError) as error:
        raise UserError(f"{place}: its mask is no PNG in base64") from error
    whole = np.zeros(size, bool)
    top, left = max(y0, 0), max(x0, 0)
    inside = pixels[top - y0 : max(size[0] - y0, 0), left - x0 : max(size[1] - x0, 0)]
    whole[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    if not whole.any():
        raise UserError(f"{place}: its mask has no pixel in the image of {size[1]}x{size[0]}")
    return whole


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
    "oriented_rectangle": (4, 4, list),
}
