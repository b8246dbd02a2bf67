"""GeoJSON (RFC 7946) of a scene: the outlines of its regions, instances and segments, in pixels or on the map."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tifffile
from detectron2.data.catalog import Metadata
from numpy.typing import NDArray

from seg_ext.data.files import is_tiff, naming
from seg_ext.evaluation.categories import dataset_ids
from seg_ext.evaluation.polygons import Region, outline, outline_masks
from seg_ext.visualize import Scene, class_name

Array = NDArray[Any]


class Georeference(NamedTuple):
    """Where an image lies on the map.

    Attributes:
        affine: (2, 3) from (x, y, 1), pixels from its top left corner, to map coordinates.
        epsg: code of their reference system; None where the file does not give one.
    """

    affine: Array
    epsg: int | None


def read_georeference(path: str | Path) -> Georeference | None:
    """What a GeoTIFF says; None for any other file.

    Raises:
        UserError: a TIFF that cannot be read.
    """
    if not is_tiff(path):
        return None
    with naming(path), tifffile.TiffFile(path) as tiff:
        tags = tiff.geotiff_metadata
    if not tags:
        return None
    if "ModelTransformation" in tags:
        matrix = np.array(tags["ModelTransformation"], float).reshape(4, 4)
        affine = matrix[:2][:, [0, 1, 3]]
    elif "ModelPixelScale" in tags and "ModelTiepoint" in tags:
        (i, j, _, x, y, _), (width, height, _) = np.ravel(tags["ModelTiepoint"])[:6], tags["ModelPixelScale"][:3]
        affine = np.array([[width, 0, x - i * width], [0, -height, y + j * height]], float)
    else:
        return None
    if int(tags.get("GTRasterTypeGeoKey", 1)) == 2:  # coordinates of the middle of a pixel
        affine[:, 2] -= affine[:, :2].sum(1) / 2
    code = int(tags.get("ProjectedCSTypeGeoKey", tags.get("GeographicTypeGeoKey", 32767)))
    return Georeference(affine, None if code == 32767 else code)


def scene_geojson(scene: Scene, metadata: Metadata, *, georeference: Georeference | None = None) -> Iterator[str]:
    """The text of a FeatureCollection, in pieces.

    A 4-connected region of a semantic class is a Polygon; an instance or a panoptic segment is a Polygon or a
    MultiPolygon. Properties: ``task``, ``category_id`` (the data set's), ``category_name``, ``score`` if there is one.
    Coordinates are pixels from the image's top left corner, y downwards, or the map's, whose system is then named in
    ``crs`` as GeoJSON had it in 2008, which geographic information systems read.
    """
    yield '{"type": "FeatureCollection",\n'
    if georeference is not None and georeference.epsg is not None:
        name = {"type": "name", "properties": {"name": f"urn:ogc:def:crs:EPSG::{georeference.epsg}"}}
        yield f'"crs": {json.dumps(name)},\n'
    yield '"features": ['
    for number, (properties, regions) in enumerate(_features(scene, metadata)):
        feature = {"type": "Feature", "properties": properties, "geometry": _geometry(regions, georeference)}
        yield ("," if number else "") + "\n" + json.dumps(feature)
    yield "\n]}\n"


def _features(scene: Scene, metadata: Metadata) -> Iterator[tuple[dict[str, Any], Iterable[Region]]]:
    if scene.semantic is not None:
        for region in outline(scene.semantic, ignore=metadata.get("ignore_label", 255)):
            yield _properties("semantic", metadata, "stuff", region.label), [region]
    if scene.instance is not None:
        objects = scene.instance
        scores = [None] * len(objects.masks) if objects.scores is None else objects.scores.tolist()
        outlines = outline_masks(objects.masks)
        for regions, category, score in zip(outlines, objects.classes.tolist(), scores, strict=True):
            if regions:
                yield _properties("instance", metadata, "thing", category, score), regions
    if scene.panoptic is not None:
        ids, segments = scene.panoptic
        parts: dict[int, list[Region]] = {}
        for region in outline(ids, ignore=0):
            parts.setdefault(region.label, []).append(region)
        for segment in segments:
            kind = "thing" if segment["isthing"] else "stuff"
            if segment["id"] in parts:
                properties = _properties("panoptic", metadata, kind, segment["category_id"], segment.get("score"))
                yield properties | {"isthing": int(segment["isthing"])}, parts[segment["id"]]


def _properties(task: str, metadata: Metadata, kind: str, category: int, score: float | None = None) -> dict[str, Any]:
    names = metadata.get(f"{kind}_classes") or ()
    properties: dict[str, Any] = {"task": task, "category_id": dataset_ids(metadata, kind)[category]}
    properties["category_name"] = class_name(names, category)
    return properties | ({} if score is None else {"score": round(float(score), 5)})


def _geometry(regions: Iterable[Region], georeference: Georeference | None) -> Mapping[str, Any]:
    polygons = [[_closed(ring, georeference) for ring in region.rings] for region in regions]
    if len(polygons) == 1:
        return {"type": "Polygon", "coordinates": polygons[0]}
    return {"type": "MultiPolygon", "coordinates": polygons}


def _closed(ring: Array, georeference: Georeference | None) -> list[list[float]]:
    """Its first corner repeated at its end; the outer ring anticlockwise in the axes that the coordinates have."""
    if georeference is not None:
        affine = georeference.affine
        ring = ring @ affine[:, :2].T + affine[:, 2]
        ring = ring[::-1] if np.linalg.det(affine[:, :2]) < 0 else ring
    corners: list[list[float]] = ring.tolist()
    return [*corners, corners[0]]
