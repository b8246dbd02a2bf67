"""Boundary IoU, trimap IoU and BF against their definitions, written as loops over pixels and classes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from seg_ext.metrics import boundary_counts, class_scores, contour_f1, trimap_counts

CLASSES, IGNORE = 3, 255
EXAMPLES = settings(max_examples=40)


def iou_of(counts):
    return class_scores(counts)[0]


@st.composite
def label_maps(draw, least=3, most=9):
    """A prediction, no class in places, and its ground truth, ignored in places; in pieces, so that bands matter."""
    height, width = draw(st.integers(least, most)), draw(st.integers(least, most))
    coarse = (-(-height // 2), -(-width // 2))
    maps = [
        draw(hnp.arrays(np.int32, coarse, elements=st.sampled_from([*range(CLASSES), *extra]), fill=st.nothing()))
        for extra in ([CLASSES], [IGNORE])
    ]
    pred, target = (np.kron(m, np.ones((2, 2), np.int32))[:height, :width] for m in maps)
    return pred, target


def masks_of(pred, target, c):
    """Masks of a class without what is ignored: prediction, ground truth."""
    return (pred == c) & (target != IGNORE), target == c


def eroded(mask, times):
    """Erosions by a 3x3 square; outside the image is not in the mask."""
    for _ in range(times):
        padded = np.pad(mask, 1)
        height, width = mask.shape
        mask = np.all([padded[y : y + height, x : x + width] for y in range(3) for x in range(3)], axis=0)
    return mask


def boundary_iou_by_erosion(pred, target, dilation):
    """The definition of Cheng et al.: IoU of G_d and P_d, what d erosions take from the masks of one class."""
    d = max(1, round(dilation * np.hypot(*target.shape)))
    result = []
    for c in range(CLASSES):
        found, truth = (mask & ~eroded(mask, d) for mask in masks_of(pred, target, c))
        result.append((found & truth).sum() / (found | truth).sum() if truth.any() else np.nan)
    return result


def contour_of(mask, counted, labels):
    """Pixels of a mask with a 4-neighbour in the image that has another label or is ignored."""
    height, width = mask.shape
    points = []
    for y, x in np.argwhere(mask):
        around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
        inside = [(i, j) for i, j in around if 0 <= i < height and 0 <= j < width]
        if any(labels[i, j] != labels[y, x] or not counted[i, j] for i, j in inside):
            points.append((y, x))
    return points


def share_near(points, others, radius):
    return sum(any(np.hypot(y - i, x - j) < radius for i, j in others) for y, x in points) / len(points)


def bf_by_definition(pred, target, tolerance):
    """F1 of boundary precision and recall of each class, as Csurka et al. have it."""
    radius, counted, result = tolerance * np.hypot(*target.shape), target != IGNORE, []
    for c in range(CLASSES):
        mask, expected = masks_of(pred, target, c)
        if not expected.any():
            result.append(np.nan)
            continue
        found, truth = contour_of(mask, counted, pred), contour_of(expected, counted, target)
        if not truth:
            result.append(float(mask.all()))
            continue
        precision = share_near(found, truth, radius) if found else 0.0
        recall = share_near(truth, found, radius)
        result.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
    return result


def trimap_iou_by_loops(pred, target, width):
    """IoU of each class among the pixels that have another ground-truth label in the window around them."""
    near = np.zeros(target.shape, bool)
    for y, x in np.ndindex(target.shape):
        window = target[max(0, y - width) : y + width + 1, max(0, x - width) : x + width + 1]
        near[y, x] = (window != target[y, x]).any()
    result = []
    for c in range(CLASSES):
        found, truth = (mask & near for mask in masks_of(pred, target, c))
        result.append((found & truth).sum() / (found | truth).sum() if truth.any() else np.nan)
    return result


@EXAMPLES
@given(label_maps(), st.sampled_from([0.02, 0.2, 0.4]))
def test_boundary_iou_is_that_of_the_masks_eroded_class_by_class(maps, dilation):
    found = iou_of(boundary_counts(*maps, CLASSES, ignore=IGNORE, dilation=dilation))
    np.testing.assert_allclose(found, boundary_iou_by_erosion(*maps, dilation), rtol=0, atol=1e-12)


@EXAMPLES
@given(label_maps(), st.sampled_from([0.1, 0.25, 0.5]))
def test_contour_f1_equals_a_loop_over_contours(maps, tolerance):
    found = contour_f1(*maps, CLASSES, ignore=IGNORE, tolerance=tolerance)
    np.testing.assert_allclose(found, bf_by_definition(*maps, tolerance), rtol=0, atol=1e-12)


@EXAMPLES
@given(label_maps())
def test_the_trimap_curve_equals_a_loop_over_pixels(maps):
    widths = (1, 2, 4)
    found = iou_of(trimap_counts(*maps, CLASSES, ignore=IGNORE, widths=widths))
    np.testing.assert_allclose(found, [trimap_iou_by_loops(*maps, w) for w in widths], rtol=0, atol=1e-12)


@EXAMPLES
@given(label_maps(), st.integers(0, CLASSES))
def test_what_is_predicted_on_ignored_pixels_does_not_matter(maps, other):
    pred, target = maps
    changed = np.where(target == IGNORE, other, pred)
    for metric in (boundary_counts, contour_f1, trimap_counts):
        np.testing.assert_array_equal(*(metric(p, target, CLASSES, ignore=IGNORE) for p in (pred, changed)))


@EXAMPLES
@given(label_maps())
def test_a_perfect_prediction_is_one_and_one_of_an_absent_class_zero(maps):
    target = maps[1]
    present = np.isin(range(CLASSES), target)
    for pred, score in ((target, 1.0), (np.full_like(target, CLASSES), 0.0)):
        expected = np.where(present, score, np.nan)
        np.testing.assert_array_equal(iou_of(boundary_counts(pred, target, CLASSES, ignore=IGNORE)), expected)
        np.testing.assert_array_equal(contour_f1(pred, target, CLASSES, ignore=IGNORE), expected)
        for trimap in iou_of(trimap_counts(pred, target, CLASSES, ignore=IGNORE)):
            assert set(trimap[~np.isnan(trimap)]) <= {score}


def test_eroding_the_label_map_once_would_score_an_all_wrong_prediction_above_zero():
    target = np.zeros((40, 40), int)
    target[10:30, 10:30], target[14:26, 14:26] = 1, 2
    wrong = (target + 1) % 3
    np.testing.assert_array_equal(iou_of(boundary_counts(wrong, target, 3, ignore=IGNORE)), [0.0, 0.0, 0.0])


def test_the_bands_are_2_percent_of_the_diagonal_and_the_frame_counts():
    target = np.zeros((300, 400), int)  # diagonal 500: 10 pixels
    counts = boundary_counts(target, target, 1, ignore=IGNORE)
    np.testing.assert_array_equal(counts, [[300 * 400 - 280 * 380] * 3])


def test_a_contour_three_quarters_of_a_percent_of_the_diagonal_off_is_missed():
    target, near, far = (np.zeros((300, 400), int) for _ in range(3))  # diagonal 500: less than 3.75 pixels
    target[:, 200:], near[:, 203:], far[:, 204:] = 1, 1, 1
    assert contour_f1(near, target, 2, ignore=IGNORE).tolist() == [1.0, 1.0]
    assert contour_f1(far, target, 2, ignore=IGNORE).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("classes", [253, 254, 400])
def test_many_classes_fit(classes):
    target = np.arange(classes).repeat(4).reshape(-1, 4)
    wrong = (target + 1) % classes
    for pred, score in ((target, 1.0), (wrong, 0.0)):
        counts = boundary_counts(pred, target, classes, ignore=65535)
        np.testing.assert_array_equal(iou_of(counts), np.full(classes, score))
    assert np.isnan(contour_f1(target, target, classes + 1, ignore=65535)).tolist() == [False] * classes + [True]


@pytest.mark.parametrize("metric", [boundary_counts, contour_f1, trimap_counts])
def test_maps_that_do_not_fit_are_named(metric):
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(3, 2\)"):
        metric(np.zeros((2, 3), int), np.zeros((3, 2), int), 2, ignore=IGNORE)
    with pytest.raises(ValueError, match=r"0\.\.7.*0\.\.1.*255"):
        metric(np.zeros((1, 2), int), np.array([[0, 7]]), 2, ignore=IGNORE)
