"""Seconds of seg_ext's instance and panoptic evaluators beside pycocotools, detectron2 and panopticapi's loop.

python benchmarks/eval_objects.py [--images 500] [--objects 35] [--panoptic 60] [--rounds 5]

Everything is generated: 640x480 images with ellipses of 80 classes, a 35th of them crowd regions, and predictions that
are moved and partly relabelled. Numbers are compared first, to 1e-9. The rounds of the sides take turns; a ratio is
that of two neighbouring rounds. Only hotcoco, behind mask AP and saved PNGs, uses more than one core.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import logging
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore", category=FutureWarning)

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from detectron2.data import DatasetCatalog, MetadataCatalog  # noqa: E402
from detectron2.evaluation.coco_evaluation import instances_to_coco_json  # noqa: E402
from detectron2.structures import Boxes, Instances  # noqa: E402
from PIL import Image  # noqa: E402
from pycocotools import mask as rle  # noqa: E402
from pycocotools.coco import COCO  # noqa: E402
from pycocotools.cocoeval import COCOeval  # noqa: E402

from seg_ext.evaluation import InstanceEvaluator, PanopticEvaluator  # noqa: E402
from seg_ext.evaluation.saved import evaluate_saved  # noqa: E402
from seg_ext.metrics import PanopticStat, panoptic_quality, pq_scores  # noqa: E402

NAME, CLASSES, SIZE = "benchmark_objects", 80, (480, 640)


def ellipses(rng: np.random.Generator, number: int) -> np.ndarray:
    """(number, H, W) bool, of 20 to 240 pixels across."""
    masks = np.zeros((number, *SIZE), np.uint8)
    for mask in masks:
        center, axes = rng.integers([30, 30], [610, 450]), rng.integers(10, 120, 2)
        cv2.ellipse(mask, center.tolist(), axes.tolist(), int(rng.integers(180)), 0, 360, 1, -1)
    return masks.astype(bool)


def instances(masks: np.ndarray, classes: np.ndarray, scores: np.ndarray) -> Instances:
    """As a model gives them."""
    found = Instances(SIZE)
    found.pred_masks, found.scores = torch.from_numpy(masks), torch.from_numpy(scores)
    found.pred_boxes, found.pred_classes = Boxes(torch.zeros(len(masks), 4)), torch.from_numpy(classes)
    return found


def predictions(seed: int, objects: int) -> tuple[np.ndarray, np.ndarray, Instances]:
    """Masks and classes of an image, and what a model might say of them."""
    rng = np.random.default_rng(seed)
    masks, classes = ellipses(rng, objects), rng.integers(0, CLASSES, objects)
    moved = np.stack([np.roll(mask, rng.integers(-9, 10, 2), axis=(0, 1)) for mask in masks])
    guessed = np.where(rng.random(objects) < 0.85, classes, rng.integers(0, CLASSES, objects))
    return masks, classes, instances(moved, guessed, rng.random(objects))


def write_instances(folder: Path, images: int, objects: int) -> None:
    """Ground truth as a file, and registered."""
    annotations: list[dict[str, Any]] = []
    for i in range(images):
        masks, classes, _ = predictions(i, objects)
        for k, shape in enumerate(rle.encode(np.asfortranarray(masks.transpose(1, 2, 0).view(np.uint8)))):
            area, box = int(rle.area(shape)), rle.toBbox(shape).tolist()
            shape["counts"] = shape["counts"].decode()
            row = {"id": len(annotations) + 1, "image_id": i, "category_id": int(classes[k]) + 1, "area": area}
            annotations.append({**row, "bbox": box, "segmentation": shape, "iscrowd": int(k == 0)})
    categories = [{"id": c, "name": str(c)} for c in range(1, CLASSES + 1)]
    records = [{"id": i, "height": SIZE[0], "width": SIZE[1], "file_name": f"{i}.jpg"} for i in range(images)]
    content = {"images": records, "categories": categories, "annotations": annotations}
    (folder / "truth.json").write_text(json.dumps(content))
    names = [category["name"] for category in categories]
    MetadataCatalog.get(NAME).set(thing_classes=names, json_file=str(folder / "truth.json"))


def pycocotools_scores(truth: COCO, results: list[dict[str, Any]]) -> dict[str, float]:
    """detectron2's numbers of mask AP."""
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, truth.loadRes(results), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    scores = dict(zip(("AP", "AP50", "AP75", "APs", "APm", "APl"), 100 * evaluation.stats[:6], strict=True))
    for k in range(CLASSES):
        valid = precision[:, :, k][precision[:, :, k] > -1]
        scores[f"AP-{k + 1}"] = 100 * valid.mean() if valid.size else np.nan
    return scores


def mask_ap(folder: Path, images: int, objects: int, rounds: int) -> None:
    """Mask AP of kept predictions, their encoding, and both together."""
    write_instances(folder, images, objects)
    ours = InstanceEvaluator(NAME, tasks=("segm",))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(folder / "truth.json"))
    results: list[dict[str, Any]] = []
    encoding: list[tuple[float, float]] = []
    for i in range(images):
        found = predictions(i, objects)[2]
        sides: list[Callable[[], Any]] = [
            partial(ours.process, [{"image_id": i}], [{"instances": found}]),
            partial(instances_to_coco_json, found, i),
        ]
        times = {k: timed(sides[k]) for k in ((0, 1) if i % 2 else (1, 0))}
        encoding.append((times[0][0], times[1][0]))
        results += [{**r, "category_id": r["category_id"] + 1} for r in times[1][1]]
    for result in results:
        del result["bbox"]  # as detectron2 does, for the areas of masks
    scores: list[tuple[float, float]] = []
    for _ in range(rounds):
        fast, found = timed(ours.evaluate)
        slow, expected = timed(partial(pycocotools_scores, truth, copy.deepcopy(results)))
        assert_equal(found["segm"], expected)
        scores.append((fast, slow))
    print(f"{images} images, {len(results)} masks of 640x480; AP {expected['AP']:.3f}")
    report("mask AP", scores, "pycocotools")
    parts = np.array_split(np.array(encoding), rounds)
    report(f"encoding, per {images // rounds} images", [part.sum(0).tolist() for part in parts], "detectron2")
    both = np.array(scores) + np.array(encoding).sum(0)
    report("encoding and mask AP", both.tolist(), "detectron2")


def rgb_to_ids(path: Path) -> np.ndarray:
    """The ids of a panoptic PNG, channel by channel."""
    color = np.array(Image.open(path), dtype=np.uint32)
    return color[..., 0] + 256 * color[..., 1] + 65536 * color[..., 2]


def plain_pq(truth: np.ndarray, guess: np.ndarray, segments: list[dict[int, dict[str, Any]]], stat: Any) -> None:
    """An image as panopticapi goes about it: tables of ids by np.unique, loops over segments, areas from the JSON."""
    targets, found = segments
    area = {}
    for label, count in zip(*np.unique(guess, return_counts=True), strict=True):
        if label != 0:
            area[label] = count
    common = {}
    for label, count in zip(
        *np.unique(truth.astype(np.uint64) * 2**24 + guess.astype(np.uint64), return_counts=True), strict=True
    ):
        common[label // 2**24, label % 2**24] = count
    matched: tuple[set[int], set[int]] = (set(), set())
    for (t, g), count in common.items():
        if t not in targets or g not in found or targets[t]["iscrowd"]:
            continue
        if targets[t]["category_id"] != found[g]["category_id"]:
            continue
        iou = count / (area[g] + targets[t]["area"] - count - common.get((0, g), 0))
        if iou > 0.5:
            stat[targets[t]["category_id"]] += [1, 0, 0, iou]
            matched[0].add(t)
            matched[1].add(g)
    crowds = {}
    for t, segment in targets.items():
        if segment["iscrowd"]:
            crowds[segment["category_id"]] = t
        elif t not in matched[0]:
            stat[segment["category_id"]][2] += 1
    for g, segment in found.items():
        if g not in matched[1]:
            forgiven = common.get((0, g), 0) + common.get((crowds.get(segment["category_id"]), g), 0)
            if forgiven / area[g] <= 0.5:
                stat[segment["category_id"]][1] += 1


def write_panoptic(folder: Path, images: int, objects: int) -> None:
    """Maps of ellipses on four stuff classes, with void; predictions moved; as PNG and JSON, and registered."""
    for side in ("truth", "found"):
        (folder / side).mkdir()
    rows: dict[str, list[dict[str, Any]]] = {"truth": [], "found": []}
    for i in range(images):
        rng = np.random.default_rng(i)
        masks, classes = ellipses(rng, objects), rng.integers(1, CLASSES + 1, objects)
        background = np.arange(1, 5).reshape(2, 2).repeat(240, axis=0).repeat(320, axis=1)
        for side, shift in (("truth", 0), ("found", 6)):
            ids = np.roll(background, shift, axis=1)
            for k, mask in enumerate(masks):
                ids[np.roll(mask, shift, axis=1)] = 1000 + 300 * k if k else 0
            kinds = {s: 100 + s if s < 5 else int(classes[(s - 1000) // 300]) for s in np.unique(ids).tolist() if s}
            color = np.stack([ids % 256, ids // 256, ids * 0], axis=-1).astype(np.uint8)
            Image.fromarray(color).save(folder / side / f"{i}.png")
            segments = [
                {"id": s, "category_id": c, "iscrowd": int(s == 1300), "area": int((ids == s).sum())}
                for s, c in kinds.items()
            ]
            rows[side].append({"image_id": i, "file_name": f"{i}.png", "segments_info": segments})
    for side, images_of_side in rows.items():
        (folder / f"{side}.json").write_text(json.dumps({"annotations": images_of_side}))
    name = f"{NAME}_panoptic"
    DatasetCatalog.register(name, lambda: [{"image_id": i, "file_name": f"{i}.jpg"} for i in range(images)])
    MetadataCatalog.get(name).set(
        thing_classes=[f"t{c}" for c in range(1, CLASSES + 1)],
        stuff_classes=[f"s{c}" for c in range(1, 5)],
        thing_dataset_id_to_contiguous_id={c: c - 1 for c in range(1, CLASSES + 1)},
        stuff_dataset_id_to_contiguous_id={100 + c: c - 1 for c in range(1, 5)},
        panoptic_json=str(folder / "truth.json"),
        panoptic_root=str(folder / "truth"),
    )


def panoptic(folder: Path, images: int, objects: int, rounds: int) -> None:
    """PQ from PNG files, and from maps in memory."""
    write_panoptic(folder, images, objects)
    sides = [json.loads((folder / f"{side}.json").read_text())["annotations"] for side in ("truth", "found")]
    segments = [[{s["id"]: s for s in row["segments_info"]} for row in side] for side in sides]
    crowds = [{s["id"] for s in row["segments_info"] if s["iscrowd"]} for row in sides[0]]
    maps = [[rgb_to_ids(folder / side / f"{i}.png") for i in range(images)] for side in ("truth", "found")]
    index = {c: k for k, c in enumerate([*range(1, CLASSES + 1), *range(101, 105)])}
    evaluator = PanopticEvaluator(f"{NAME}_panoptic")

    def plain(read: bool) -> dict[str, float]:
        stat: Any = defaultdict(lambda: np.zeros(4))
        for i in range(images):
            files = [folder / side / f"{i}.png" for side in ("truth", "found")]
            truth, guess = (rgb_to_ids(file) for file in files) if read else (maps[0][i], maps[1][i])
            plain_pq(truth, guess, [segments[0][i], segments[1][i]], stat)
        pqs = {c: iou / (tp + fp / 2 + fn / 2) for c, (tp, fp, fn, iou) in stat.items() if tp + fp + fn}
        groups = {"PQ": [*pqs], "PQ_th": [c for c in pqs if c < 100], "PQ_st": [c for c in pqs if c > 100]}
        return {key: 100 * float(np.mean([pqs[c] for c in group])) for key, group in groups.items()}

    def write_and_plain() -> dict[str, float]:
        for i, ids in enumerate(maps[1]):
            color = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
            Image.fromarray(color).save(folder / "found" / f"{i}.png")
        return plain(True)

    def from_model() -> dict[str, float]:
        evaluator.reset()
        for i, ids in enumerate(maps[1]):
            kinds = [{"id": s["id"], "category_id": s["category_id"]} for s in sides[1][i]["segments_info"]]
            output = {"panoptic_seg": (torch.from_numpy(ids.view(np.int32)), kinds)}
            evaluator.process([{"image_id": i}], [output])
        return evaluator.evaluate()["panoptic_seg"]

    def from_files() -> dict[str, float]:
        return evaluate_saved(folder / "found.json", f"{NAME}_panoptic", folder)["panoptic_seg"]

    def from_maps() -> dict[str, float]:
        stat = PanopticStat.zeros(len(index))
        for i, (truth, guess) in enumerate(zip(*maps, strict=True)):
            classes = [{k: index[s["category_id"]] for k, s in side[i].items()} for side in segments]
            stat += panoptic_quality(
                guess,
                truth,
                pred_classes=classes[1],
                target_classes=classes[0],
                num_classes=len(index),
                crowd=crowds[i],
            )
        scores = pq_scores(stat, np.arange(len(index)) < CLASSES)
        return {"PQ": 100 * scores.all.pq, "PQ_th": 100 * scores.things.pq, "PQ_st": 100 * scores.stuff.pq}

    print(f"{images} panoptic images of 640x480, {objects + 3} segments; PQ {from_maps()['PQ']:.3f}")
    rows: tuple[tuple[str, Callable[[], dict[str, float]], Callable[[], dict[str, float]], str], ...] = (
        ("PQ of a model's maps", from_model, write_and_plain, "PNG, panopticapi's loop"),
        ("PQ of saved PNGs", from_files, partial(plain, True), "panopticapi's loop"),
        ("matching alone", from_maps, partial(plain, False), "panopticapi's loop"),
    )
    for title, ours, theirs, peer in rows:
        times = []
        for _ in range(rounds):
            fast, found = timed(ours)
            slow, expected = timed(theirs)
            assert_equal({key: found[key] for key in expected}, expected)
            times.append((fast, slow))
        report(title, times, peer)


def assert_equal(found: dict[str, float], expected: dict[str, float]) -> None:
    """Stop unless both have the same numbers to 1e-9."""
    wrong = [k for k, x in expected.items() if not np.isclose(found[k], x, rtol=0, atol=1e-9, equal_nan=True)]
    if wrong or found.keys() != expected.keys():
        raise SystemExit(f"differs: {[(k, found.get(k), expected[k]) for k in wrong]}")


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds and result."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def report(title: str, times: Sequence[Sequence[float]], peer: str) -> None:
    """Medians, ranges and the ratio of (ours, theirs) by round."""
    ours, theirs = np.array(times).T
    columns = [f"{np.median(x):.3f} ({min(x):.3f} to {max(x):.3f})" for x in (ours, theirs, theirs / ours)]
    print(f"{title:28} seg_ext {columns[0]} s  {peer} {columns[1]} s  ratio {columns[2]}", flush=True)


def main() -> None:
    """Compare, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--objects", type=int, default=35)
    parser.add_argument("--panoptic", type=int, default=60, help="images")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as name:
        mask_ap(Path(name), args.images, args.objects, args.rounds)
    with tempfile.TemporaryDirectory() as name:
        panoptic(Path(name), args.panoptic, 20, args.rounds)


if __name__ == "__main__":
    main()
