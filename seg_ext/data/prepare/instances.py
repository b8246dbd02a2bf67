"""COCO instance annotations from maps of instance ids."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seg_ext.data.derive import derive_image

Annotations = list[dict[str, Any]]


def annotate(labels: NDArray[np.integer], category: Mapping[int, int] | int) -> Annotations:
    """Annotations of one image with compressed RLEs, without ids.

    Args:
        labels: (H, W), 0 no instance, others instance ids.
        category: of all instances, or instance id -> category id.
    """
    derived = derive_image(labels)
    segments = zip(derived.segments, derived.rles, strict=False)
    return [
        {
            "category_id": category if isinstance(category, int) else category[segment["id"]],
            "segmentation": rle,
            "area": segment["area"],
            "bbox": segment["bbox"],
            "iscrowd": 0,
        }
        for segment, rle in segments
    ]


def coco_instances(
    images: Iterable[tuple[Mapping[str, Any], Annotations]], categories: Sequence[str]
) -> dict[str, Any]:
    """COCO's dictionary, images and annotations numbered from 1.

    Args:
        images: file_name, height and width of each image, and its annotations.
        categories: names of the categories 1, 2, ...
    """
    content: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": i, "name": name} for i, name in enumerate(categories, 1)],
    }
    for image_id, (image, found) in enumerate(images, 1):
        content["images"].append({"id": image_id, **image})
        first = len(content["annotations"]) + 1
        content["annotations"] += [{"id": i, "image_id": image_id, **a} for i, a in enumerate(found, first)]
    return content
