"""VOC's average precision: against a plain transcription of its rules, detectron2's curve areas, and the extremes."""

import numpy as np
import pytest
from detectron2.evaluation.pascal_voc_evaluation import voc_ap as detectron2s_ap
from hypothesis import given, settings
from hypothesis import strategies as st

from seg_ext.metrics.voc_ap import VocMatches, average_precision, box_iou, voc_ap, voc_matches

CLASSES = 3


@st.composite
def images(draw):
    """Per image: overlaps (D, G), scores and classes of the detections, classes and difficult of the objects."""
    found = []
    for _ in range(draw(st.integers(1, 3))):
        d, g = draw(st.integers(0, 5)), draw(st.integers(0, 4))
        numbers = lambda n, most: np.array(draw(st.lists(st.integers(0, most), min_size=n, max_size=n)), int)  # noqa: E731
        iou = numbers(d * g, 10).reshape(d, g) / 10
        classes = numbers(d, CLASSES - 1), numbers(g, CLASSES - 1)
        found.append((iou, numbers(d, 4) / 4, *classes, numbers(g, 3) == 0))
    return found


def matches_of(scenes):
    return voc_matches((targets, hard, [(scores, classes, iou)]) for iou, scores, classes, targets, hard in scenes)


def defined(scenes, category, threshold, eleven):
    """The devkit's loop over the detections of a class."""
    objects = {(i, j): scene[4][j] for i, scene in enumerate(scenes) for j in np.flatnonzero(scene[3] == category)}
    total = sum(not difficult for difficult in objects.values())
    if not total:
        return float("nan")
    detections = [
        (-s, i, d) for i, scene in enumerate(scenes) for d, s in enumerate(scene[1]) if scene[2][d] == category
    ]
    tp, fp, taken = [], [], set()
    for _, i, d in sorted(detections):
        overlaps = [(scenes[i][0][d, j], -j) for j in np.flatnonzero(scenes[i][3] == category)]
        overlap, j = max(overlaps, default=(-1, 0))
        if overlap < threshold:
            tp, fp = [*tp, 0], [*fp, 1]
        elif not objects[i, -j]:
            right = (i, -j) not in taken
            taken.add((i, -j))
            tp, fp = [*tp, right], [*fp, not right]
    recall = np.cumsum(tp) / total
    precision = np.cumsum(tp) / np.maximum(np.cumsum(tp) + np.cumsum(fp), 1)
    return detectron2s_ap(recall, precision, eleven)


@settings(max_examples=200)
@given(images(), st.sampled_from([0.3, 0.5, 0.7]), st.booleans())
def test_equals_the_devkits_rules(scenes, threshold, eleven):
    found = voc_ap(matches_of(scenes), CLASSES, threshold=threshold, points=11 if eleven else None)
    expected = [defined(scenes, category, threshold, eleven) for category in range(CLASSES)]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@given(st.lists(st.booleans(), max_size=12), st.integers(0, 5))
def test_the_averages_equal_detectron2s(hits, missed):
    found = np.cumsum(hits)
    total = max(1, sum(hits) + missed)
    recall, precision = found / total, found / np.arange(1, len(hits) + 1)
    for points in (11, None):
        ours, theirs = (
            average_precision(recall, precision, points=points),
            detectron2s_ap(recall, precision, bool(points)),
        )
        assert ours == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize("points", [11, None])
def test_perfect_is_1_all_wrong_0_and_an_absent_class_nan(points):
    objects, none = np.array([0, 0, 1]), np.zeros(3, bool)
    perfect = VocMatches(np.full(3, 0.5), objects, np.ones(3), np.arange(3), objects, none)
    np.testing.assert_array_equal(voc_ap(perfect, 3, threshold=0.5, points=points), [1, 1, np.nan])
    wrong = VocMatches(np.full(3, 0.5), objects, np.full(3, 0.49), np.arange(3), objects, none)
    np.testing.assert_array_equal(voc_ap(wrong, 3, threshold=0.5, points=points), [0, 0, np.nan])
    difficult = VocMatches(
        np.ones(1), np.zeros(1, int), np.ones(1), np.zeros(1, int), np.zeros(1, int), np.ones(1, bool)
    )
    assert np.isnan(voc_ap(difficult, 1, threshold=0.5, points=points)[0])


def test_box_iou_is_that_of_areas():
    a = np.array([[0, 0, 4, 4], [2, 2, 2, 2]], float)
    b = np.array([[0, 0, 4, 4], [2, 0, 6, 4], [5, 5, 9, 9], [1, 1, 1, 1]], float)
    np.testing.assert_array_equal(box_iou(a, b), [[1, 8 / 24, 0, 0], [0, 0, 0, 0]])
    assert box_iou(a, b[:0]).shape == (2, 0)
