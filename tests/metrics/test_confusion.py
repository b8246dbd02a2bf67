"""The confusion matrix against loops over pixels, and the scores against their definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from seg_ext.metrics import compact_labels, confusion_matrix, semantic_scores

CLASSES, IGNORE = 4, 255
SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 5))


@st.composite
def label_maps(draw):
    """A prediction, outside 0..K-1 in places, and its ground truth, ignored in places."""
    shape = draw(SHAPES)
    pred = draw(hnp.arrays(np.int32, shape, elements=st.integers(-1, CLASSES + 1)))
    target = draw(hnp.arrays(np.int32, shape, elements=st.sampled_from([*range(CLASSES), IGNORE])))
    return pred, target


def counted_by_loops(pred, target):
    counts = np.zeros((CLASSES, CLASSES + 1), np.int64)
    for guess, truth in zip(pred.flat, target.flat, strict=True):
        if truth != IGNORE:
            counts[truth, guess if 0 <= guess < CLASSES else CLASSES] += 1
    return counts


def scores_by_loops(pred, target):
    """mIoU, fwIoU, mACC, pACC and mean Dice as fractions, straight from the pixels."""
    pixels = [(g, t) for g, t in zip(pred.ravel().tolist(), target.ravel().tolist(), strict=True) if t != IGNORE]
    ious, accs, dices, weighted, right = [], [], [], 0.0, 0
    for c in range(CLASSES):
        inter = sum(g == c and t == c for g, t in pixels)
        union = sum(g == c or t == c for g, t in pixels)
        truth = sum(t == c for _, t in pixels)
        if truth:
            ious.append(inter / union)
            accs.append(inter / truth)
            dices.append(2 * inter / (truth + sum(g == c for g, _ in pixels)))
            weighted += truth / len(pixels) * inter / union
            right += inter
    if not pixels:
        return [float("nan")] * 5
    return [sum(ious) / len(ious), weighted, sum(accs) / len(accs), right / len(pixels), sum(dices) / len(dices)]


def means(scores):
    return [scores.miou, scores.fwiou, scores.macc, scores.pacc, scores.mdice]


@given(label_maps())
def test_counts_equal_a_loop_over_pixels(maps):
    np.testing.assert_array_equal(confusion_matrix(*maps, CLASSES, ignore=IGNORE), counted_by_loops(*maps))


@given(label_maps())
def test_scores_equal_a_loop_over_pixels(maps):
    scores = semantic_scores(confusion_matrix(*maps, CLASSES, ignore=IGNORE))
    found = means(scores)
    np.testing.assert_allclose(found, scores_by_loops(*maps), rtol=0, atol=1e-12)


@given(label_maps(), label_maps())
def test_counts_of_two_images_add_up(first, second):
    both = [np.concatenate([a.ravel(), b.ravel()]) for a, b in zip(first, second, strict=True)]
    total = sum(confusion_matrix(*maps, CLASSES, ignore=IGNORE) for maps in (first, second))
    np.testing.assert_array_equal(confusion_matrix(*both, CLASSES, ignore=IGNORE), total)


@given(label_maps(), st.integers(0, CLASSES))
def test_what_is_predicted_on_ignored_pixels_does_not_matter(maps, other):
    pred, target = maps
    changed = np.where(target == IGNORE, other, pred)
    before, after = (confusion_matrix(p, target, CLASSES, ignore=IGNORE) for p in (pred, changed))
    np.testing.assert_array_equal(before, after)


@given(label_maps())
def test_a_perfect_prediction_scores_one(maps):
    target = maps[1]
    scores = semantic_scores(confusion_matrix(target, target, CLASSES, ignore=IGNORE))
    expected = 1.0 if (target != IGNORE).any() else float("nan")
    np.testing.assert_equal(means(scores), [expected] * 5)


def test_an_all_wrong_prediction_scores_zero():
    target = np.arange(CLASSES).repeat(3)
    scores = semantic_scores(confusion_matrix((target + 1) % CLASSES, target, CLASSES, ignore=IGNORE))
    assert means(scores) == [0.0] * 5
    np.testing.assert_array_equal(scores.iou, np.zeros(CLASSES))


@given(label_maps(), st.sampled_from([CLASSES, 300]))
def test_compact_maps_stay_what_they_are_and_count_the_same(maps, classes):
    pred, target = compact_labels(*maps, classes, ignore=IGNORE)
    assert pred.dtype == target.dtype == (np.uint8 if classes == CLASSES else np.uint16)
    again = compact_labels(pred, target, classes, ignore=classes + 1)
    np.testing.assert_array_equal(again, (pred, target))
    counts = confusion_matrix(pred, target, classes, ignore=classes + 1)
    np.testing.assert_array_equal(counts[:CLASSES, :CLASSES], counted_by_loops(*maps)[:, :CLASSES])


def test_an_absent_class_is_nan_and_left_out_of_the_means():
    target, pred = np.array([0, 0, 1, 1]), np.array([0, 0, 1, 2])
    scores = semantic_scores(confusion_matrix(pred, target, 3, ignore=IGNORE))
    np.testing.assert_array_equal(scores.iou, [1.0, 0.5, np.nan])
    np.testing.assert_array_equal(scores.acc, [1.0, 0.5, np.nan])
    np.testing.assert_array_equal(scores.dice, [1.0, 2 / 3, np.nan])
    assert (scores.miou, scores.macc, scores.pacc) == (0.75, 0.75, 0.75)


def test_a_prediction_outside_the_classes_is_a_miss_and_no_false_positive():
    counts = confusion_matrix(np.array([0, 9, -1]), np.array([0, 0, 1]), 2, ignore=IGNORE)
    np.testing.assert_array_equal(counts, [[1, 0, 1], [0, 0, 1]])
    scores = semantic_scores(counts)
    np.testing.assert_array_equal(scores.iou, [0.5, 0.0])


def test_a_square_matrix_scores_as_one_with_an_empty_last_column():
    square = np.array([[5, 1], [2, 4]])
    wide = np.pad(square, ((0, 0), (0, 1)))
    assert semantic_scores(square).miou == semantic_scores(wide).miou == (5 / 8 + 4 / 7) / 2


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int64])
def test_the_type_of_the_maps_does_not_matter(dtype):
    target = np.array([0, 3, 255, 1], dtype)
    counts = confusion_matrix(np.array([0, 3, 3, 2], dtype), target, CLASSES, ignore=IGNORE)
    assert counts.sum() == 3 and counts[0, 0] == counts[3, 3] == counts[1, 2] == 1


@pytest.mark.parametrize(
    ("pred", "target", "error", "words"),
    [
        (np.zeros((2, 3), int), np.zeros((3, 2), int), ValueError, r"\(2, 3\).*\(3, 2\)"),
        (np.zeros(2, int), np.array([0, 7]), ValueError, r"0\.\.7.*0\.\.3.*255"),
        (np.zeros(2, int), np.array([-1, 0]), ValueError, r"-1\.\.0"),
        (np.zeros(2), np.zeros(2, int), TypeError, "float64"),
    ],
)
def test_maps_that_do_not_fit_are_named(pred, target, error, words):
    with pytest.raises(error, match=words):
        confusion_matrix(pred, target, CLASSES, ignore=IGNORE)


def test_a_matrix_of_another_shape_is_named():
    with pytest.raises(ValueError, match=r"\(3, 5\)"):
        semantic_scores(np.zeros((3, 5), int))
