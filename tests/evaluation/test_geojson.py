"""Polygons cover exactly the pixels of their regions, and GeoJSON says where they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from detectron2.data.catalog import Metadata
from hypothesis import given, settings
from hypothesis import strategies as st

from seg_ext.evaluation.geojson import read_georeference, scene_geojson
from seg_ext.evaluation.polygons import outline, outline_masks
from seg_ext.visualize import Objects, Scene


def inside(rings: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Pixels whose middle a ray from the left meets an odd number of vertical sides before."""
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    found = np.zeros(shape, bool)
    for ring in rings:
        for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, 0), strict=True):
            assert (x0 == x1) != (y0 == y1), "sides lie along the pixels, and each corner turns"
            if x0 == x1:
                found ^= (x > x0) & (y > min(y0, y1)) & (y < max(y0, y1))
    return found


def area(ring: np.ndarray) -> float:
    x, y = ring.T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.integers(1, 8), st.integers(2, 4), st.integers(0, 2**32 - 1))
def test_regions_are_the_four_connected_components_pixel_by_pixel(height: int, width: int, classes: int, seed: int):
    labels = np.random.default_rng(seed).integers(0, classes, (height, width))
    regions = outline(labels, ignore=0)
    painted = np.zeros_like(labels)
    for region in regions:
        pixels = inside(region.rings, labels.shape)
        assert not painted[pixels].any(), "no pixel is in two regions"
        painted[pixels] = region.label
        areas = [area(ring) for ring in region.rings]
        assert areas[0] > 0 and all(a < 0 for a in areas[1:]) and sum(areas) == pixels.sum()
    assert (painted == labels).all()
    expected = sum(cv2.connectedComponents((labels == c).astype(np.uint8), connectivity=4)[0] - 1 for c in (1, 2, 3))
    assert len(regions) == expected


def test_overlapping_masks_are_outlined_each_by_itself() -> None:
    masks = np.random.default_rng(0).random((5, 9, 7)) < 0.5
    masks[2] = False
    for mask, regions in zip(masks, outline_masks(masks), strict=True):
        found = np.zeros(mask.shape, bool)
        for region in regions:
            found |= inside(region.rings, mask.shape)
        assert (found == mask).all()
    assert outline_masks(np.zeros((2, 4, 4), bool)) == [[], []]
    assert outline_masks(np.zeros((0, 4, 4), bool)) == []


TOY = Metadata(
    name="toy",
    stuff_classes=["sky", "sea"],
    thing_classes=["ship"],
    thing_dataset_id_to_contiguous_id={17: 0},
    ignore_label=255,
)


def geojson(scene: Scene, **options: Any) -> dict[str, Any]:
    return json.loads("".join(scene_geojson(scene, TOY, **options)))


def test_the_three_tasks_are_features_with_the_names_and_ids_of_the_data_set() -> None:
    labels = np.full((4, 6), 255)
    labels[1:3, 1:5] = 1
    mask = np.zeros((1, 4, 6), bool)
    mask[0, 0, 0] = mask[0, 3, 5] = True
    info = [{"id": 5, "isthing": True, "category_id": 0, "score": 0.75}, {"id": 9, "isthing": False, "category_id": 1}]
    scene = Scene(labels, Objects(mask, np.array([0]), scores=np.array([0.5])), (np.full((4, 6), 5), info))
    found = geojson(scene)
    assert found["type"] == "FeatureCollection" and "crs" not in found
    semantic, instance, panoptic = found["features"]
    assert semantic["properties"] == {"task": "semantic", "category_id": 1, "category_name": "sea"}
    assert semantic["geometry"] == {"type": "Polygon", "coordinates": [[[1, 1], [5, 1], [5, 3], [1, 3], [1, 1]]]}
    assert instance["properties"] == {
        "task": "instance",
        "category_id": 17,
        "category_name": "ship",
        "score": 0.5,
    }
    assert instance["geometry"]["type"] == "MultiPolygon" and len(instance["geometry"]["coordinates"]) == 2
    assert panoptic["properties"]["isthing"] == 1 and panoptic["properties"]["score"] == 0.75
    assert geojson(Scene(np.full((4, 6), 255)))["features"] == []


@pytest.mark.parametrize("kind", [1, 2])
def test_a_geotiff_gives_map_coordinates_and_their_system(tmp_path: Path, kind: int) -> None:
    file = tmp_path / "a.tif"
    keys = (1, 1, 0, 2, 1025, 0, 1, kind, 3072, 0, 1, 32633)
    tags = [
        (33550, "d", 3, (0.5, 0.5, 0.0)),
        (33922, "d", 6 * kind, (0.0, 0.0, 0.0, 400000.0, 5000000.0, 0.0) * kind),  # of several points the first
        (34735, "H", len(keys), keys),
    ]
    tifffile.imwrite(file, np.zeros((4, 6, 3), np.uint8), photometric="rgb", extratags=tags, metadata=None)
    place = read_georeference(file)
    assert place is not None and place.epsg == 32633
    labels = np.zeros((4, 6), int)
    found = geojson(Scene(np.where(labels == 0, 1, 0)), georeference=place)
    assert found["crs"]["properties"]["name"] == "urn:ogc:def:crs:EPSG::32633"
    (ring,) = found["features"][0]["geometry"]["coordinates"]
    shift = 0.25 * (kind == 2)  # coordinates of a pixel's middle
    x, y = 400000 - shift, 5000000 + shift
    assert sorted(map(tuple, ring[:-1])) == [(x, y - 2), (x, y), (x + 3, y - 2), (x + 3, y)]
    assert area(np.array(ring[:-1])) > 0, "anticlockwise on the map"


def test_other_files_have_no_place_on_the_map(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((4, 6), np.uint8))
    assert read_georeference(tmp_path / "a.tif") is None and read_georeference("a.png") is None
