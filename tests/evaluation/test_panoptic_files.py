"""Panoptic PNGs counted by hotcoco: the metric's own numbers, and every fault it would name."""

import json

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from seg_ext.errors import UserError
from seg_ext.evaluation import PanopticEvaluator, saved
from seg_ext.evaluation.saved import evaluate_saved

NAME, IMAGES = "toy_panoptic_files", 9
KINDS = {1: "cat", 2: "dog", 40: "sky", 17: "road", 90: "never seen"}


def save_ids(path, ids):
    Image.fromarray(np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)).save(path)


class Files:
    """A data set's truth and predictions; ``rows`` are the annotations of both, which ``write`` puts into the JSONs."""

    def __init__(self, root):
        rng = np.random.default_rng(3)
        self.root, self.rows, self.ids = root, {"truth": [], "found": []}, {}
        for side in self.rows:
            (root / side).mkdir()
        for i in range(IMAGES):
            segments = rng.integers(1, 2**24, 7)
            kinds = rng.choice([*KINDS][:4], 7)
            size = (24, 32) if i % 3 else (20, 24)
            truth = rng.choice([0, *segments], (size[0] // 4, size[1] // 4)).repeat(4, axis=0).repeat(4, axis=1)
            found = np.where(rng.random(size) < 0.25, rng.choice([0, *segments], size), truth)
            crowd = segments[:2] if i % 2 else segments[:0]
            wrong = rng.random(7) < 0.2
            self.add("truth", i, truth, {s: (k, s in crowd) for s, k in zip(segments, kinds, strict=True)})
            self.add("found", i, found, {s: (2 if w else k, 0) for s, k, w in zip(segments, kinds, wrong, strict=True)})
        self.write()

    def add(self, side, i, ids, kinds):
        self.ids[side, i] = ids
        save_ids(self.root / side / f"{i}.png", ids)
        segments = [
            {"id": int(s), "category_id": int(k), "iscrowd": int(c), "area": 3}
            for s, (k, c) in kinds.items()
            if s in ids
        ]
        self.rows[side].append({"image_id": i, "file_name": f"{i}.png", "segments_info": segments})

    def write(self):
        for side, rows in self.rows.items():
            (self.root / f"{side}.json").write_text(json.dumps({"annotations": rows}))

    def score(self, **options):
        """And how many images the metric itself counted."""
        images = []
        original = PanopticEvaluator.process

        def process(evaluator, inputs, outputs):
            images.extend(inputs)
            original(evaluator, inputs, outputs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PanopticEvaluator, "process", process)
            result = evaluate_saved(self.root / "found.json", NAME, self.root / "out", **options)["panoptic_seg"]
        return result, len(images)


@pytest.fixture
def files(tmp_path):
    made = Files(tmp_path)
    DatasetCatalog.register(NAME, lambda: [{"file_name": f"{i}.jpg", "image_id": i} for i in range(IMAGES)])
    MetadataCatalog.get(NAME).set(
        thing_classes=["cat", "dog", "never seen"],
        stuff_classes=["sky", "road"],
        thing_dataset_id_to_contiguous_id={1: 0, 2: 1, 90: 2},
        stuff_dataset_id_to_contiguous_id={40: 0, 17: 1},
        panoptic_json=str(tmp_path / "truth.json"),
        panoptic_root=str(tmp_path / "truth"),
    )
    yield made
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def same(files, by_metric):
    """The scores with hotcoco are those of the metric, which counts so many of the images."""
    found, slowly = files.score()
    expected, every = files.score(per_image=True)
    assert found.keys() == expected.keys() and every == IMAGES and slowly == by_metric
    assert all(found[key] == pytest.approx(expected[key], abs=1e-9, nan_ok=True) for key in expected)
    return found


def test_equals_the_metric_with_void_crowd_regions_and_stale_areas(files, monkeypatch):
    monkeypatch.setattr("seg_ext.evaluation.saved_panoptic._AT_ONCE", 4)
    double = sum(
        len({s["category_id"] for s in row["segments_info"] if s["iscrowd"]})
        < sum(s["iscrowd"] for s in row["segments_info"])
        for row in files.rows["truth"]
    )
    assert double >= 1
    scores = same(files, by_metric=double)
    assert 20 < scores["PQ"] < 90 and np.isnan(scores["PQ-never seen"])


def test_a_perfect_prediction_is_100(files):
    for i in range(IMAGES):
        (files.root / "found" / f"{i}.png").write_bytes((files.root / "truth" / f"{i}.png").read_bytes())
    files.rows["found"] = files.rows["truth"]
    files.write()
    assert {score for score in files.score()[0].values() if score == score} == {100.0}


@pytest.mark.parametrize("side", ["truth", "found"])
def test_a_listed_segment_without_a_pixel_does_not_exist(files, side):
    before = files.score()[0]
    files.rows[side][2]["segments_info"].append({"id": 2**23 + 5, "category_id": 2})
    files.write()
    assert same(files, by_metric=IMAGES)["PQ"] == pytest.approx(before["PQ"], abs=1e-9)


def test_void_that_the_truth_lists_is_no_segment(files):
    before, by_metric = files.score()
    files.rows["truth"][2]["segments_info"].append({"id": 0, "category_id": 2})
    files.write()
    assert same(files, by_metric=by_metric)["PQ"] == pytest.approx(before["PQ"], abs=1e-9)


def deep(path):
    cv2.imwrite(str(path), cv2.imread(str(path)).astype(np.uint16) * 257)


@pytest.mark.parametrize("side", ["truth", "found"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda path: Image.open(path).convert("RGBA").save(path), "RGBA pixels"),
        (lambda path: Image.open(path).quantize(256).save(path), "P pixels"),
        (deep, "RGB pixels, 16 bit"),
    ],
)
def test_another_kind_of_png_is_refused_as_the_metric_refuses_it(files, side, change, words):
    change(files.root / side / "4.png")
    for per_image in (False, True):
        with pytest.raises(UserError, match=rf"{side}/4\.png: {words}; a panoptic PNG is RGB"):
            files.score(per_image=per_image)


@pytest.mark.parametrize("per_image", [False, True])
def test_a_truth_without_images_is_named(files, per_image):
    files.rows["truth"].clear()
    files.write()
    with pytest.raises(UserError, match=r"truth\.json: lists no image"):
        files.score(per_image=per_image)


@pytest.mark.parametrize(
    ("side", "words"),
    [("truth", "the ground truth has segments without a class"), ("found", "is not in segments_info")],
)
def test_a_segment_that_is_not_listed_is_named(files, side, words):
    files.rows[side][2]["segments_info"].pop()
    files.write()
    with pytest.raises(UserError, match=rf"{side}/2\.png: .*{words}"):
        files.score()


def test_a_file_cut_off_behind_its_header_is_named(files):
    path = files.root / "found" / "4.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError, match=r"found/4\.png"):
        files.score()
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(UserError, match=r"found/4\.png"):
        files.score()


def test_without_hotcoco_the_metric_counts(files, monkeypatch):
    expected, _ = files.score()
    monkeypatch.setattr(saved, "find_spec", lambda name: None)
    found, slowly = files.score()
    assert slowly == IMAGES and found["PQ"] == pytest.approx(expected["PQ"], abs=1e-9)
