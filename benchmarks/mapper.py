"""Samples a second of seg_ext's mapper and of detectron2's on the same records: same results first, then the clock.

python benchmarks/mapper.py [--images 24] [--rounds 7] [--coco FOLDER]

Without --coco the images are generated: 640x480 JPEGs of coloured noise with 7 polygons each, and a label map. With it
they are the first of FOLDER/train2017 by FOLDER/annotations/instances_train2017.json, and the label maps are painted.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore", category=FutureWarning)

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from detectron2.data import DatasetFromList, DatasetMapper  # noqa: E402
from detectron2.data import transforms as T  # noqa: E402
from detectron2.data.datasets import load_coco_json  # noqa: E402
from detectron2.structures import BitMasks, BoxMode  # noqa: E402
from PIL import Image  # noqa: E402

from seg_ext.data.augmentation import ResizeShortestEdge  # noqa: E402
from seg_ext.data.mapper import SegMapper  # noqa: E402

SIZES, LONGEST = (640, 672, 704, 736, 768, 800), 1333
COCO_IMAGES = 118_287  # in train2017
Record = dict[str, Any]
Mapper = Callable[[Record], dict[str, Any]]


def generated(folder: Path, number: int) -> list[Record]:
    """Records of images and labels that are written to ``folder``."""
    records = []
    for i in range(number):
        rng = np.random.default_rng(i)
        coarse = cv2.resize(rng.integers(0, 256, (60, 80, 3), np.uint8), (640, 480), interpolation=cv2.INTER_CUBIC)
        image = np.clip(coarse + rng.normal(0, 8, coarse.shape), 0, 255).astype(np.uint8)
        annotations = []
        for category in range(7):
            angles, radius = np.sort(rng.uniform(0, 2 * np.pi, 25)), rng.uniform(15, 110) * rng.uniform(0.7, 1, 25)
            corners = rng.uniform([60, 60], [580, 420]) + (radius * [np.cos(angles), np.sin(angles)]).T
            corners = corners.clip(0, [640, 480]).round(2)
            cv2.fillPoly(image, [corners.astype(np.int32)], rng.integers(0, 256, 3).tolist())
            box = [*corners.min(axis=0).tolist(), *corners.max(axis=0).tolist()]
            annotation = {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": category, "iscrowd": 0}
            annotations.append(annotation | {"segmentation": [corners.reshape(-1).tolist()]})
        Image.fromarray(image).save(folder / f"{i}.jpg", quality=92)
        record = {"file_name": str(folder / f"{i}.jpg"), "height": 480, "width": 640, "image_id": i}
        records.append(record | {"annotations": annotations})
    return records


def with_labels(records: list[Record], folder: Path) -> list[Record]:
    """The records with a label map each: the annotations' categories from 1 on, painted in order."""
    for i, record in enumerate(records):
        label = np.zeros((record["height"], record["width"]), np.uint8)
        for annotation in record["annotations"]:
            parts = [np.array(p, np.float64).reshape(-1, 2).astype(np.int32) for p in annotation["segmentation"]]
            cv2.fillPoly(label, parts, annotation["category_id"] + 1)
        record["sem_seg_file_name"] = str(folder / f"{i}_label.png")
        Image.fromarray(label).save(record["sem_seg_file_name"])
    return records


def mapped(mapper: Mapper, record: Record, seed: int) -> dict[str, Any]:
    """The record by a mapper, with the random numbers of a seed."""
    np.random.seed(seed)
    return mapper(record)


def compare(ours: Mapper, reference: Mapper, records: list[Record]) -> None:
    """Stop unless both give the same classes and bitmasks, boxes within 1 and greys within 2, 99.9 % of labels alike.

    The reference makes bitmasks and boxes of what is left of them, as seg_ext's mapper does in either mask format.
    """
    for seed, record in enumerate(records):
        mine, other = mapped(ours, record, seed), mapped(reference, record, seed)
        a, b = mine["instances"], other["instances"]
        classes = a.gt_classes.tolist() == b.gt_classes.tolist()
        boxes = classes and (a.gt_boxes.tensor - b.gt_boxes.tensor).abs().max().item() <= 1
        grey = (mine["image"].int() - other["image"].int()).abs().max().item()
        labels = (mine["sem_seg"] == other["sem_seg"]).float().mean().item()
        masks = 0.0
        if isinstance(a.gt_masks, BitMasks) and classes:
            masks = (a.gt_masks.tensor ^ b.gt_masks.tensor).float().mean().item()
        if not classes or not boxes or grey > 2 or labels < 0.999 or masks > 1e-5:
            raise SystemExit(f"{record['file_name']}: differs: {classes=} {boxes=} {grey=} {labels=} {masks=}")


def rate(mapper: Mapper, records: list[Record], seed: int) -> float:
    """Samples a second."""
    start = time.perf_counter()
    for i, record in enumerate(records):
        mapped(mapper, record, seed + i)
    return len(records) / (time.perf_counter() - start)


def detectron2s(masks: str, *, recompute_boxes: bool = False) -> DatasetMapper:
    """detectron2's mapper with its default augmentations."""
    return DatasetMapper(
        True,
        augmentations=[T.ResizeShortestEdge(SIZES, LONGEST, "choice"), T.RandomFlip()],
        image_format="BGR",
        use_instance_mask=True,
        instance_mask_format=masks,
        recompute_boxes=recompute_boxes,
    )


def spread(values: list[float]) -> str:
    """Median and range."""
    return f"{np.median(values):6.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    """Compare, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--coco", type=Path)
    args = parser.parse_args()
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.coco:
            found = load_coco_json(str(args.coco / "annotations/instances_train2017.json"), args.coco / "train2017")
            plain = [r for r in found if r["annotations"] and not any(a.get("iscrowd") for a in r["annotations"])]
            records = with_labels(plain[: args.images], folder)
        else:
            records = with_labels(generated(folder, args.images), folder)
        for masks in ("bitmask", "polygon"):
            ours = SegMapper(
                True, augmentations=[ResizeShortestEdge(SIZES, LONGEST), T.RandomFlip()], num_classes=100, masks=masks
            )
            compare(ours, detectron2s("bitmask", recompute_boxes=True), records)
            theirs = detectron2s(masks)
            rates = [(rate(ours, records, i), rate(theirs, records, i)) for i in range(args.rounds)]
            print(
                f"{masks:8} seg_ext {spread([a for a, _ in rates])}  detectron2 {spread([b for _, b in rates])}  ",
                end="",
            )
            print(f"ratio {spread([a / b for a, b in rates])}  samples/s, one process")
        size = len(DatasetFromList(records)._lst._lst) / len(records)
        instances = sum(len(r["annotations"]) for r in records) / len(records)
        print(f"records of {instances:.1f} instances: {size:.0f} bytes each, shared by all workers;", end=" ")
        print(f"{size * COCO_IMAGES / 2**20:.0f} MiB for {COCO_IMAGES} images")


if __name__ == "__main__":
    main()
