"""Comparison of two runs: scores from counts of images, intervals, and inputs at fault that are named."""

import json

import cv2
import numpy as np
import pytest

from seg_ext.errors import UserError
from seg_ext.evaluation.compare import (
    Row,
    bootstrap,
    compare,
    comparison_table,
    panoptic_of_counts,
    semantic_of_counts,
    write_comparison,
)
from seg_ext.evaluation.per_image import FILE, ImageCounts, PerImageFile, read_counts
from seg_ext.evaluation.report import read_results
from seg_ext.metrics import PanopticStat, class_counts, confusion_matrix, pq_scores, semantic_scores

NAMES = ["sky", "road", "boat"]
COUNTS = FILE.format("sem_seg")


def kept(counts):
    return ImageCounts("sem_seg", NAMES, None, [str(i) for i in range(len(counts))], counts)


def counts_of(images, seed, noise):
    """(N, 3, 3) counts of images of two classes, of which a share is predicted at random."""
    rng = np.random.default_rng(seed)
    target = np.random.default_rng(0).integers(0, 2, (images, 10, 10))
    pred = np.where(rng.random(target.shape) < noise, rng.integers(0, 3, target.shape), target)
    return np.stack([class_counts(confusion_matrix(p, t, 3, ignore=255)) for p, t in zip(pred, target, strict=True)])


def scores_of(counts):
    values = semantic_of_counts(counts.sum(axis=0, keepdims=True).astype(float), NAMES)
    return {metric: float(value[0]) for metric, value in values.items()}


def write_run(folder, counts, *, task="sem_seg", fingerprint="abc", name="toy", names=NAMES, images=None, scores=None):
    about = {"data": {name: {"images": len(counts), "sha256": fingerprint}}}
    nulls = {k: None if np.isnan(v) else v for k, v in (scores or scores_of(counts)).items()}
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps({task: nulls, "about": about}))
    file = PerImageFile(folder / COUNTS, "sem_seg", names)
    for image, one in zip(images or [f"/data/{i}.png" for i in range(len(counts))], counts, strict=True):
        file({"file_name": image}, one)
    file.finish()
    return folder


def test_scores_of_counts_are_those_of_the_confusion_matrix():
    rng = np.random.default_rng(0)
    confusion = rng.integers(0, 9, (4, 5))
    confusion[3] = 0
    expected = semantic_scores(confusion)
    found = semantic_of_counts(class_counts(confusion)[None].astype(float), list("abcd"))
    for key in ("mIoU", "fwIoU", "mACC", "pACC", "mDice"):
        assert found[key][0] == pytest.approx(100 * getattr(expected, key.lower()), abs=1e-12)
    for key, values in (("IoU", expected.iou), ("ACC", expected.acc), ("Dice", expected.dice)):
        np.testing.assert_allclose([found[f"{key}-{c}"][0] for c in "abcd"], 100 * values, rtol=0, atol=1e-12)


def test_panoptic_scores_of_counts_are_those_of_the_metric():
    rng = np.random.default_rng(0)
    tp, fp, fn = rng.integers(0, 5, (3, 4))
    tp[1] = fp[2] = fn[2] = tp[2] = 0
    stat = PanopticStat(tp, fp, fn, tp * rng.uniform(0.5, 1, 4))
    expected = pq_scores(stat, np.arange(4) < 3)
    counts = np.stack([stat.iou_sum, tp, fp, fn], axis=1)[None]
    found = {key: value[0] for key, value in panoptic_of_counts(counts, list("abcd"), 3).items()}
    for suffix, group in (("", expected.all), ("_th", expected.things), ("_st", expected.stuff)):
        values = [found[f"{key}{suffix}"] for key in ("PQ", "SQ", "RQ")]
        np.testing.assert_allclose(values, 100 * np.array(group), rtol=0, atol=1e-12)
    for key, values in (("PQ", expected.pq), ("SQ", expected.sq), ("RQ", expected.rq)):
        np.testing.assert_allclose([found[f"{key}-{c}"] for c in "abcd"], 100 * values, rtol=0, atol=1e-12)


def test_the_interval_is_that_of_images_drawn_one_by_one():
    first, second = counts_of(12, 1, 0.3), counts_of(12, 2, 0.2)
    found = bootstrap(kept(first), kept(second), resamples=3000, confidence=90, seed=0)
    rng = np.random.default_rng(5)
    drawn = [rng.integers(0, 12, 12) for _ in range(3000)]
    differences = [scores_of(second[i])["IoU-road"] - scores_of(first[i])["IoU-road"] for i in drawn]
    np.testing.assert_allclose(found["IoU-road"], np.percentile(differences, [5, 95]), atol=0.35)
    assert np.isnan(found["IoU-boat"]).all()


def test_the_interval_holds_a_true_gain_and_not_0_and_the_same_run_differs_by_nothing():
    worse, better = counts_of(40, 1, 0.3), counts_of(40, 2, 0.1)
    low, high = bootstrap(kept(worse), kept(better), resamples=300, confidence=95, seed=0)["mIoU"]
    assert 0 < low < scores_of(better)["mIoU"] - scores_of(worse)["mIoU"] < high
    assert bootstrap(kept(worse), kept(worse), resamples=50, confidence=95, seed=0)["mIoU"] == (0.0, 0.0)


def test_draws_are_the_same_for_both_runs():
    first = np.zeros((30, 3, 3))
    first[:, 0] = np.stack([np.arange(30) * 3, np.full(30, 100), np.full(30, 100)], axis=1)  # 0 to 87 % correct
    second = first + [[[1, 0, 0], [0, 0, 0], [0, 0, 0]]]
    low, high = bootstrap(kept(first), kept(second), resamples=100, confidence=95, seed=0)["pACC"]
    assert low == pytest.approx(1) and high == pytest.approx(1), "drawn apart, they would differ by 10 and more"


def test_counts_come_back_sorted_and_sparse(tmp_path):
    counts = counts_of(3, 1, 0.5)
    folder = write_run(tmp_path / "a", counts, images=["/x/b/2.png", "/x/a/1.png", "/x/a/0.png"])
    task, classes, things, images, found = read_counts(folder / COUNTS)
    assert (task, classes, things, images) == ("sem_seg", NAMES, None, ["a/0.png", "a/1.png", "b/2.png"])
    np.testing.assert_array_equal(found, counts[::-1])


def test_two_runs_are_compared_and_drawn(tmp_path):
    first, second = (write_run(tmp_path / n, counts_of(20, i, noise)) for n, i, noise in (("a", 1, 0.4), ("b", 2, 0.1)))
    found = compare(first, second / "results.json", resamples=200)
    rows = {row.metric: row for row in found["toy"]}
    assert rows["IoU-road"].certain and rows["IoU-road"].difference > 5
    assert np.isnan(rows["IoU-boat"].difference) and np.isnan(rows["IoU-boat"].low)
    lines = comparison_table(found["toy"]).splitlines()
    assert max(map(len, lines)) <= 100 and any(line.startswith("sem_seg  IoU-road") and "*" in line for line in lines)
    json_file, picture = write_comparison(tmp_path / "out", found)
    assert json.loads(json_file.read_text())["toy"][0]["metric"] == "mIoU"
    assert cv2.imread(str(picture)).shape[1] > 500


def test_scores_without_counts_of_images_have_no_interval(tmp_path):
    scores = {"AP": 30.0, "AP-cell": 20.0, "APl": float("nan")}
    runs = [
        write_run(tmp_path / n, counts_of(2, 1, 0), task="segm", scores=scores | {"AP": ap})
        for n, ap in (("a", 30.0), ("b", 33.0))
    ]
    rows = compare(*runs)["toy"]
    assert [(r.metric, r.difference) for r in rows[:2]] == [("AP", 3.0), ("AP-cell", 0.0)]
    assert all(np.isnan(r.low) for r in rows) and np.isnan(rows[2].difference)
    assert not Row("segm", "AP", 1.0, 2.0).certain
    assert len(write_comparison(tmp_path, {"toy": rows})) == 2


def test_results_of_several_data_sets_are_found_by_name(tmp_path):
    content = {"a": {"sem_seg": {"mIoU": 1.0}}, "b": {"sem_seg": {"mIoU": 2.0}}, "about": {}}
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "results.json").write_text(json.dumps(content))
    assert read_results(tmp_path / "x").scores == {k: content[k] for k in "ab"}
    assert list(compare(tmp_path / "x", tmp_path / "y")) == ["a", "b"]


def test_runs_that_cannot_be_compared_are_named(tmp_path):
    run = write_run(tmp_path / "a", counts_of(4, 1, 0.1))
    other = write_run(tmp_path / "b", counts_of(4, 1, 0.1), fingerprint="def")
    with pytest.raises(UserError, match="data set toy had other images.*abc.*def"):
        compare(run, other)
    with pytest.raises(UserError, match="share no data set: toy; street"):
        compare(run, write_run(tmp_path / "c", counts_of(4, 1, 0.1), name="street"))
    with pytest.raises(UserError, match="different images or classes"):
        compare(run, write_run(tmp_path / "d", counts_of(3, 1, 0.1)))
    with pytest.raises(UserError, match="share no score of data set toy"):
        compare(run, write_run(tmp_path / "e", counts_of(4, 1, 0.1), task="segm"))
    (other / COUNTS).write_text('{"task": "sem_seg", "classes": ["a"], "things": null}\n{"image":')
    with pytest.raises(UserError, match=rf"{COUNTS}: not counts of images"):
        read_counts(other / COUNTS)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "No such file"),
        ("{", "not JSON"),
        ("[1]", "not the results"),
        ('{"sem_seg": {"mIoU": "high"}}', "not the results"),
        ('{"sem_seg": {"mIoU": 1}, "about": {"data": null}}', "'about' has data None; takes an object by data set"),
        ('{"sem_seg": {"mIoU": 1}, "about": {"data": {"a": 5}}}', "'about' has data .*; takes an object by data set"),
    ],
)
def test_a_results_file_at_fault_is_named(tmp_path, text, words):
    if text is not None:
        (tmp_path / "results.json").write_text(text)
    with pytest.raises(UserError, match=f"results.json: {words}"):
        read_results(tmp_path)
