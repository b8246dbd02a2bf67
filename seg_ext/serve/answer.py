"""What the endpoint answers: areas of classes, masks as COCO's compressed RLE, maps as PNG in base64."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from detectron2.data.catalog import Metadata
from numpy.typing import NDArray
from pycocotools import mask as mask_util
from pydantic import BaseModel, Field

from seg_ext.serve.service import Segmented
from seg_ext.visualize import class_name


class Area(BaseModel):
    """A semantic class and how much of the image it covers."""

    id: int
    name: str
    pixels: int
    share: float = Field(description="of the image, 0 to 1")


class Semantic(BaseModel):
    """A label map."""

    labels: str = Field(description="base64 of a PNG of one channel, 8 or 16 bits: the id of each pixel's class")
    areas: list[Area]


class Instance(BaseModel):
    """An object."""

    id: int = Field(description="of its class")
    name: str
    score: float
    box: list[float] = Field(description="x, y, width, height, pixels")
    area: int = Field(description="pixels")
    segmentation: dict[str, Any] = Field(description="COCO's compressed RLE: size [height, width] and counts")


class Segment(BaseModel):
    """A panoptic segment."""

    id: int = Field(description="in the map")
    category: int
    name: str
    thing: bool
    area: int = Field(description="pixels")


class Panoptic(BaseModel):
    """Segments that do not overlap."""

    ids: str = Field(description="base64 of a PNG: id = R + 256 G + 65536 B, 0 where there is none")
    segments: list[Segment]


class Uncertainty(BaseModel):
    """Entropy of the semantic probabilities over that of classes which are all as likely."""

    map: str = Field(description="base64 of an 8-bit PNG: 255 stands for 1")
    mean: float


class Answer(BaseModel):
    """All that was asked for of one image."""

    height: int
    width: int
    semantic: Semantic | None = None
    instance: list[Instance] | None = None
    panoptic: Panoptic | None = None
    uncertainty: Uncertainty | None = None


def answer(found: Segmented, metadata: Metadata, tasks: Sequence[str]) -> Answer:
    """The answer of some tasks."""
    height, width = found.picture.shape[:2]
    scene, result = found.scene, Answer(height=height, width=width)
    if scene.semantic is not None and "semantic" in tasks:
        areas = class_areas(scene.semantic, metadata.get("stuff_classes") or ())
        kind = np.uint8 if scene.semantic.max(initial=0) < 256 else np.uint16
        result.semantic = Semantic(labels=png(scene.semantic.astype(kind)), areas=areas)
    if scene.instance is not None and "instance" in tasks:
        result.instance = instances(found, metadata)
    if scene.panoptic is not None and "panoptic" in tasks:
        ids, segments = np.maximum(scene.panoptic[0], 0), scene.panoptic[1]
        rgb = np.stack([ids & 255, ids >> 8 & 255, ids >> 16 & 255], -1).astype(np.uint8)
        names = {True: metadata.get("thing_classes") or (), False: metadata.get("stuff_classes") or ()}
        sizes = np.bincount(ids.ravel(), minlength=1 + max((s["id"] for s in segments), default=0))
        described = [
            Segment(
                id=s["id"],
                category=s["category_id"],
                name=class_name(names[bool(s["isthing"])], s["category_id"]),
                thing=bool(s["isthing"]),
                area=int(sizes[s["id"]]),
            )
            for s in segments
        ]
        result.panoptic = Panoptic(ids=png(rgb), segments=described)
    if found.uncertainty is not None:
        grey = np.rint(255 * found.uncertainty).astype(np.uint8)
        result.uncertainty = Uncertainty(map=png(grey), mean=float(found.uncertainty.mean()))
    return result


def class_areas(labels: NDArray[Any], names: Sequence[str]) -> list[Area]:
    """The classes that are there, largest first."""
    counts = np.bincount(labels.ravel())
    order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)].tolist()
    return [Area(id=i, name=class_name(names, i), pixels=int(counts[i]), share=counts[i] / labels.size) for i in order]


def instances(found: Segmented, metadata: Metadata) -> list[Instance]:
    """The objects, in the model's order."""
    objects = found.scene.instance
    if objects is None or not len(objects.masks):
        return []
    names = metadata.get("thing_classes") or ()
    rles = mask_util.encode(np.asfortranarray(objects.masks.transpose(1, 2, 0).astype(np.uint8)))
    areas, boxes = mask_util.area(rles).tolist(), mask_util.toBbox(rles).tolist()
    scores = [1.0] * len(rles) if objects.scores is None else objects.scores.tolist()
    return [
        Instance(
            id=int(c),
            name=class_name(names, int(c)),
            score=score,
            box=box,
            area=int(area),
            segmentation={"size": rle["size"], "counts": rle["counts"].decode()},
        )
        for c, score, box, area, rle in zip(objects.classes.tolist(), scores, boxes, areas, rles, strict=True)
    ]


def coco(found: Answer, metadata: Metadata) -> dict[str, Any]:
    """COCO's JSON of one image: its instances."""
    names = metadata.get("thing_classes") or ()
    return {
        "images": [{"id": 1, "height": found.height, "width": found.width}],
        "annotations": [
            {"id": n, "image_id": 1, "category_id": x.id, "score": x.score, "bbox": x.box, "area": x.area, "iscrowd": 0}
            | {"segmentation": x.segmentation}
            for n, x in enumerate(found.instance or (), start=1)
        ],
        "categories": [{"id": i, "name": name} for i, name in enumerate(names)],
    }


def png(pixels: NDArray[Any]) -> str:
    """Base64 of a PNG of (H, W), or (H, W, 3) RGB."""
    stored = pixels[..., ::-1] if pixels.ndim == 3 else pixels
    return base64.b64encode(cv2.imencode(".png", np.ascontiguousarray(stored))[1].tobytes()).decode()
