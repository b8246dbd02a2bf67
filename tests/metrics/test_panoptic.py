"""Panoptic quality against a transcription of its definition in loops over pixels and segments."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from seg_ext.metrics import PanopticStat, panoptic_quality, pq_scores

CLASSES = 3
IDS = (0, 1, 2, 70000, 9)  # 0 = void


@st.composite
def scenes(draw):
    """Two maps of blocks, so that matches are likely, with classes and crowd regions."""
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 5)))
    target = draw(hnp.arrays(np.int32, shape, elements=st.sampled_from(IDS))).repeat(2, axis=1)
    noise = draw(hnp.arrays(np.int32, target.shape, elements=st.sampled_from(IDS)))
    pred = np.where(draw(hnp.arrays(bool, target.shape)), target, noise)
    classes = st.fixed_dictionaries({i: st.integers(0, CLASSES - 1) for i in IDS[1:]})
    target_classes = draw(classes)
    pred_classes = {**draw(classes), **({} if draw(st.booleans()) else target_classes)}
    return pred, target, pred_classes, target_classes, draw(st.sets(st.sampled_from(IDS[1:]), max_size=2))


def measured(pred, target, pred_classes, target_classes, crowd):
    return panoptic_quality(
        pred, target, pred_classes=pred_classes, target_classes=target_classes, num_classes=CLASSES, crowd=crowd
    )


def defined(pred, target, pred_classes, target_classes, crowd):
    """tp, fp, fn and sum of IoU per class: segments as sets of pixels."""

    def segments(ids):
        found = {}
        for pixel, i in np.ndenumerate(ids):
            found.setdefault(int(i), set()).add(pixel)
        return found

    truth, guess = segments(target), segments(pred)
    void = truth.pop(0, set())
    guess.pop(0, None)
    tp, fp, fn, iou_sum = (np.zeros(CLASSES) for _ in range(4))
    matched_truth, matched_guess = set(), set()
    for t, t_pixels in truth.items():
        for g, g_pixels in guess.items():
            if t in crowd or target_classes[t] != pred_classes[g]:
                continue
            seen = g_pixels - void
            iou = len(t_pixels & seen) / len(t_pixels | seen)
            if iou > 0.5:
                tp[target_classes[t]] += 1
                iou_sum[target_classes[t]] += iou
                matched_truth.add(t)
                matched_guess.add(g)
    for t in truth:
        if t not in matched_truth and t not in crowd:
            fn[target_classes[t]] += 1
    for g, g_pixels in guess.items():
        allowed = set(void)
        for t in crowd & truth.keys():
            if target_classes[t] == pred_classes[g]:
                allowed |= truth[t]
        if g not in matched_guess and not len(g_pixels & allowed) / len(g_pixels) > 0.5:
            fp[pred_classes[g]] += 1
    return tp, fp, fn, iou_sum


@settings(max_examples=300)
@given(scenes())
def test_counts_equal_the_definition(scene):
    stat = measured(*scene)
    for found, expected in zip((stat.tp, stat.fp, stat.fn, stat.iou_sum), defined(*scene), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@given(scenes())
def test_scores_equal_the_definition_and_lie_in_0_to_1(scene):
    tp, fp, fn, iou_sum = defined(*scene)
    things = np.array([True, False, True])
    found = pq_scores(measured(*scene), things)
    for group, quality in (([0, 1, 2], found.all), ([0, 2], found.things), ([1], found.stuff)):
        seen = [c for c in group if tp[c] + fp[c] + fn[c] > 0]
        pqs = [iou_sum[c] / (tp[c] + fp[c] / 2 + fn[c] / 2) for c in seen]
        sqs = [iou_sum[c] / tp[c] if tp[c] else 0.0 for c in seen]
        rqs = [tp[c] / (tp[c] + fp[c] / 2 + fn[c] / 2) for c in seen]
        expected = [sum(x) / len(x) if x else float("nan") for x in (pqs, sqs, rqs)]
        np.testing.assert_allclose(quality, expected, rtol=0, atol=1e-12)
        assert not quality.pq > 1


@given(scenes())
def test_a_perfect_prediction_scores_one(scene):
    _, target, _, classes, _ = scene
    scores = pq_scores(measured(target, target, classes, classes, set()), np.ones(CLASSES, bool))
    expected = 1.0 if target.any() else float("nan")
    np.testing.assert_equal(tuple(scores.all), (expected,) * 3)


@given(scenes())
def test_segment_ids_are_only_names(scene):
    pred, target, pred_classes, target_classes, crowd = scene
    renamed = np.where(pred == 0, 0, pred + 11)
    classes = {i + 11: c for i, c in pred_classes.items()}
    before, after = measured(*scene), measured(renamed, target, classes, target_classes, crowd)
    for name in ("tp", "fp", "fn", "iou_sum"):
        np.testing.assert_array_equal(getattr(before, name), getattr(after, name))


def test_a_wrong_class_scores_zero():
    ids = np.array([[1, 1, 2, 2]])
    stat = measured(ids, ids, {1: 1, 2: 2}, {1: 0, 2: 0}, set())
    assert pq_scores(stat, np.ones(CLASSES, bool)).all == (0.0, 0.0, 0.0)
    assert stat.tp.tolist() == [0, 0, 0] and stat.fp.tolist() == [0, 1, 1] and stat.fn.tolist() == [2, 0, 0]


def test_exactly_half_is_no_match():
    target, pred = np.array([[1, 1, 1, 0]]), np.array([[7, 7, 0, 0]])
    assert measured(pred, target, {7: 0}, {1: 0}, set()).tp[0] == 1  # 2/3
    assert measured(np.array([[7, 0, 0, 0]]), np.array([[1, 1, 0, 0]]), {7: 0}, {1: 0}, set()).tp[0] == 0  # 1/2


def test_void_never_counts():
    target = np.array([[1, 1, 0, 0, 0, 0]])
    spilled = measured(np.array([[5, 5, 5, 5, 5, 5]]), target, {5: 0}, {1: 0}, set())
    assert spilled.iou_sum[0] == 1.0
    on_void = measured(np.array([[0, 6, 6, 6, 0, 0]]), target, {6: 0}, {1: 0}, set())
    assert on_void.fp[0] == 0 and on_void.fn[0] == 1


def test_crowd_is_neither_missed_nor_matched_and_forgives_its_own_class_only():
    target = np.array([[3, 3, 3, 3, 1, 1]])
    alike = measured(np.array([[5, 5, 5, 5, 0, 0]]), target, {5: 0}, {3: 0, 1: 1}, {3})
    assert (alike.tp[0], alike.fp[0], alike.fn[0]) == (0, 0, 0)
    other = measured(np.array([[5, 5, 5, 5, 0, 0]]), target, {5: 1}, {3: 0, 1: 1}, {3})
    assert (other.fp[1], other.fn[1]) == (1, 1)


def test_an_empty_prediction_misses_everything():
    stat = measured(np.zeros((1, 4), int), np.array([[1, 1, 2, 2]]), {}, {1: 0, 2: 1}, set())
    assert stat.fn.tolist() == [1, 1, 0] and not (stat.tp.any() or stat.fp.any() or stat.iou_sum.any())
    scores = pq_scores(stat, np.ones(CLASSES, bool))
    assert scores.all.pq == 0.0 and np.isnan(scores.pq[2])


def test_stats_of_images_add_up_from_zeros():
    ids = np.array([[1, 1, 2]])
    one = measured(ids, ids, {1: 0, 2: 1}, {1: 0, 2: 1}, set())
    total = PanopticStat.zeros(CLASSES) + one + one
    assert total.tp.tolist() == [2, 2, 0] and total.iou_sum.tolist() == [2.0, 2.0, 0.0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pred": np.ones((2, 2), int)}, r"\(2, 2\).*\(1, 2\)"),
        ({"pred": np.array([[-1, 1]])}, "2147483647"),
        ({"pred": np.array([[4, 1]])}, r"prediction.*\[4\]"),
        ({"target": np.array([[8, 1]])}, r"ground truth.*\[8\]"),
        ({"pred_classes": {1: 3}}, r"prediction has classes \[3\].*0\.\.2"),
        ({"target_classes": {1: -1}}, r"ground truth has classes \[-1\]"),
    ],
)
def test_maps_and_classes_that_do_not_fit_are_named(change, words):
    ids = np.array([[1, 1]])
    scene = {"pred": ids, "target": ids, "pred_classes": {1: 0}, "target_classes": {1: 0}, "crowd": set()} | change
    with pytest.raises(ValueError, match=words):
        measured(**scene)
