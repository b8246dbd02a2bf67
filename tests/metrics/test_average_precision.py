"""COCO's average precision of weighted images: against pycocotools on images that are really repeated."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from seg_ext.metrics import average_precision
from seg_ext.metrics.average_precision import ClassMatches, weighted_ap

IMAGES = 7


def scene(seed, levels):
    """Boxes (x, y, w, h) of an image's objects with a crowd flag, and of its detections with one of few scores."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(IMAGES):
        objects = [[*rng.integers(0, 30, 2), *rng.integers(5, 20, 2)] for _ in range(rng.integers(0, 6))]
        boxes = [np.array(box) + rng.integers(-2, 3, 4) for box in objects for _ in range(rng.integers(0, 4))]
        boxes += [np.array([*rng.integers(0, 30, 2), 9, 9]) for _ in range(rng.integers(0, 3))]
        images.append(
            (
                [(list(map(float, box)), int(rng.random() < 0.3)) for box in objects],
                [(list(map(float, box)), float(rng.integers(1, levels + 1) / levels)) for box in boxes],
            )
        )
    return images


def matched(images, max_dets=4):
    """pycocotools on images with new ids, in the order given."""
    truth = [
        {"id": i, "image_id": n, "category_id": 1, "bbox": box, "area": box[2] * box[3], "iscrowd": crowd}
        for i, (n, box, crowd) in enumerate(((n, *o) for n, (objects, _) in enumerate(images) for o in objects), 1)
    ]
    results = [
        {"image_id": n, "category_id": 1, "bbox": box, "score": score}
        for n, (_, found) in enumerate(images)
        for box, score in found
    ]
    coco = COCO()
    coco.dataset = {"images": [{"id": n} for n in range(len(images))], "annotations": truth, "categories": [{"id": 1}]}
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluation.params.maxDets, evaluation.params.areaRng = [max_dets], [[0, 1e10]]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def matches_of(images):
    entries = [(i, entry) for i, entry in enumerate(matched(images).evalImgs) if entry is not None]
    scores = np.concatenate([entry["dtScores"] for _, entry in entries])
    order = np.argsort(-scores, kind="stable")
    truths = np.zeros(IMAGES, int)
    truths[[i for i, _ in entries]] = [np.sum(entry["gtIgnore"] == 0) for _, entry in entries]
    return ClassMatches(
        scores[order],
        np.repeat([i for i, _ in entries], [len(entry["dtScores"]) for _, entry in entries])[order],
        np.concatenate([entry["dtMatches"] for _, entry in entries], axis=1)[:, order] > 0,
        np.concatenate([entry["dtIgnore"] for _, entry in entries], axis=1)[:, order],
        truths,
    )


def repeated_ap(images, weights):
    """(10,) of pycocotools, each image standing there as often as its weight says."""
    evaluation = matched([image for image, weight in zip(images, weights, strict=True) for _ in range(weight)])
    precision = evaluation.eval["precision"][:, :, 0, 0, 0]
    return np.where(precision.min(axis=1) < 0, np.nan, precision.mean(axis=1))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("levels", [1000, 3, 1], ids="scores that differ, few scores, one score".split(", "))
def test_a_weight_is_that_many_images(seed, levels, monkeypatch):
    monkeypatch.setattr(average_precision, "_BLOCK", 100)
    images, rng = scene(seed, levels), np.random.default_rng(seed)
    weights = np.concatenate([np.ones((1, IMAGES), int), rng.multinomial(IMAGES, np.full(IMAGES, 1 / IMAGES), size=8)])
    found = matches_of(images)
    assert found.ignored.any() and 0.01 < np.nanmean(weighted_ap(found, weights)) < 0.95
    expected = [repeated_ap(images, row) for row in weights]
    np.testing.assert_allclose(weighted_ap(found, weights), expected, rtol=0, atol=1e-12)


def test_recalls_are_met_where_pycocotools_numbers_are():
    """7 of 100 objects do not reach its 0.07000000000000001."""
    rng = np.random.default_rng(0)
    right = rng.random(100) < 0.6
    flags = np.tile(right, (10, 1))
    found = ClassMatches(np.linspace(1, 0, 100), np.zeros(100, int), flags, ~flags & False, np.array([100]))
    boxes = [[20.0 * i, 0.0, 9.0, 9.0] for i in range(100)]
    guesses = [
        ([box[0] + 10 * (not hit), *box[1:]], score)
        for box, hit, score in zip(boxes, right, found.scores.tolist(), strict=True)
    ]
    precision = matched([([(box, 0) for box in boxes], guesses)], max_dets=100).eval["precision"]
    ap = weighted_ap(found, np.ones((1, 1), int))[0]
    np.testing.assert_allclose(ap, precision[:, :, 0, 0, 0].mean(axis=1), rtol=0, atol=1e-12)


def test_samples_without_an_object_have_none_and_without_a_detection_0():
    flags = np.array([[True, False], [False, False]])
    found = ClassMatches(np.array([0.9, 0.8]), np.array([1, 2]), flags, flags & False, np.array([2, 1, 0, 0]))
    weights = np.array([[0, 0, 3, 1], [2, 0, 0, 2], [0, 1, 0, 3]])
    np.testing.assert_allclose(weighted_ap(found, weights), [[np.nan] * 2, [0, 0], [1, 0]], rtol=0, atol=1e-12)
    nothing = ClassMatches(np.zeros(0), np.zeros(0, int), flags[:, :0], flags[:, :0], found.truths)
    np.testing.assert_array_equal(weighted_ap(nothing, weights), [[np.nan] * 2, [0, 0], [0, 0]])
