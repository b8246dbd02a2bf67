"""Matches of images: AP from their files is the evaluator's, its intervals are pycocotools', faults are named."""

import copy
import json

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from pycocotools import mask as rle

from seg_ext.errors import UserError
from seg_ext.evaluation import InstanceEvaluator
from seg_ext.evaluation.artifacts import Artifacts
from seg_ext.evaluation.coco_engine import accumulate, match_detections
from seg_ext.evaluation.compare import compare
from seg_ext.evaluation.per_image import FILE
from seg_ext.evaluation.per_image_matches import MatchFiles, ap_of_draws, match_intervals, read_matches

NAME, SIDE, IMAGES = "toy_matches", 40, (12, 3, 40, 7, 25, 31)
CATEGORIES = {9: "cat", 2: "dog", 5: "cow"}  # model classes 0, 1, 2; no cow is anywhere
TASKS = ("bbox", "segm", "keypoints", "boundary")


def mask_of(box):
    mask = np.zeros((SIDE, SIDE), np.uint8, order="F")
    x, y, w, h = box
    mask[y : y + h, x : x + w] = 1
    return mask


def points_of(box):
    """(17, 3) on the diagonal, all visible."""
    share = np.linspace(0, 1, 17)
    return np.stack([box[0] + share * box[2], box[1] + share * box[3], np.full(17, 2)], axis=1)


@pytest.fixture
def coco(tmp_path):
    """COCO's dictionary: images not in the order of their ids, the last one empty, crowd regions, an annotation 0."""
    rng = np.random.default_rng(0)
    annotations = []
    for number in range(30):
        box = [*rng.integers(0, 20, 2).tolist(), *rng.integers(6, 20, 2).tolist()]
        shape = rle.encode(mask_of(box))
        annotations.append(
            {
                "id": number,
                "image_id": int(rng.choice(IMAGES[:-1])),
                "category_id": int(rng.choice([9, 2])),
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": int(number % 6 == 5),
                "segmentation": {"size": shape["size"], "counts": shape["counts"].decode()},
                "keypoints": points_of(box).ravel().tolist(),
                "num_keypoints": 17,
            }
        )
    content = {
        "images": [{"id": i, "height": SIDE, "width": SIDE, "file_name": f"day/{i}.jpg"} for i in IMAGES],
        "categories": [{"id": i, "name": name} for i, name in CATEGORIES.items()],
        "annotations": annotations,
    }
    (tmp_path / "truth.json").write_text(json.dumps(content))
    DatasetCatalog.register(NAME, lambda: [])
    ids = {category: index for index, category in enumerate(CATEGORIES)}
    MetadataCatalog.get(NAME).set(
        thing_classes=list(CATEGORIES.values()),
        thing_dataset_id_to_contiguous_id=ids,
        json_file=str(tmp_path / "truth.json"),
    )
    yield content
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def guesses(coco, shift, seed):
    """Image id -> instances: the objects moved by up to ``shift`` pixels, some twice, of few scores."""
    rng = np.random.default_rng(seed)
    found = {}
    for image in coco["images"]:
        here = [a for a in coco["annotations"] if a["image_id"] == image["id"] for _ in range(rng.integers(1, 3))]
        boxes = [[*(np.array(a["bbox"][:2]) + rng.integers(0, shift + 1, 2)), *a["bbox"][2:]] for a in here]
        boxes += [[5, 5, 9, 9]] * int(rng.integers(0, 2))
        classes = [list(CATEGORIES).index(a["category_id"]) for a in here] + [1] * (len(boxes) - len(here))
        instances = Instances((SIDE, SIDE), scores=torch.from_numpy(rng.integers(1, 6, len(boxes)) / 8))
        corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        instances.pred_boxes, instances.pred_classes = Boxes(corners), torch.tensor(classes, dtype=torch.int64)
        masks, points = [mask_of(box) for box in boxes], [points_of(box) for box in boxes]
        instances.pred_masks = torch.from_numpy(np.array(masks, bool).reshape(-1, SIDE, SIDE))
        instances.pred_keypoints = torch.tensor(np.array(points).reshape(-1, 17, 3)) + torch.tensor([0.5, 0.5, 0])
        found[image["id"]] = instances
    return found


def evaluator_of(folder, *, backend="auto", tasks=TASKS[:-1], metrics=("coco", "boundary")):
    evaluator = InstanceEvaluator(NAME, tasks=tasks, metrics=metrics, backend=backend)
    evaluator.on_matches = MatchFiles(folder)
    return evaluator


def evaluated(folder, coco, found, **options):
    """The evaluator's scores, and the files and results of a run."""
    evaluator = evaluator_of(folder, **options)
    artifacts = Artifacts(NAME, [evaluator], folder, per_image=True)
    for image in coco["images"]:
        evaluator.process([{**image, "image_id": image["id"]}], [{"instances": found[image["id"]]}])
    scores = evaluator.evaluate()
    artifacts.write(scores)
    nulls = {task: {k: None if np.isnan(v) else v for k, v in values.items()} for task, values in scores.items()}
    (folder / "results.json").write_text(json.dumps({**nulls, "about": {"data": {NAME: {"sha256": "a"}}}}))
    return scores


@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
def test_every_image_once_gives_the_evaluators_scores(coco, tmp_path, backend):
    scores = evaluated(tmp_path, coco, guesses(coco, 3, 1), backend=backend)
    for task in TASKS:
        run = read_matches(tmp_path / FILE.format(task))
        assert (run.task, run.classes) == (task, ["cat", "dog", "cow"])
        assert run.images == ["3.jpg", "7.jpg", "12.jpg", "25.jpg", "31.jpg", "40.jpg"]
        found = ap_of_draws(run, np.ones((1, len(IMAGES)), int))
        assert set(scores[task]) - set(found) == {"APm", "APl", *["APs"] * (task != "keypoints")}
        for metric, values in found.items():
            np.testing.assert_allclose(values, scores[task][metric], rtol=0, atol=1e-9, err_msg=f"{task} {metric}")
        assert 1 < found["AP"][0] < 99 and np.isnan(found["AP-cow"][0])


def test_both_engines_leave_the_same_files(coco, tmp_path):
    coco["annotations"][0]["id"] = 99  # pycocotools takes annotation 0 for none, hotcoco does not
    (tmp_path / "truth.json").write_text(json.dumps(coco))
    texts = []
    for backend in ("hotcoco", "pycocotools"):
        (tmp_path / backend).mkdir()
        evaluated(tmp_path / backend, coco, guesses(coco, 3, 1), backend=backend)
        texts.append([(tmp_path / backend / FILE.format(task)).read_text() for task in TASKS])
    assert texts[0] == texts[1]


def ap_of_repeated(coco, found, draw):
    """pycocotools' AP of boxes where each image, in the order of the ids, stands there as often as it was drawn."""
    copies = [(i, 100 * i + n) for i, times in zip(sorted(IMAGES), draw, strict=True) for n in range(times)]
    pairs = [
        (annotation, new) for i, new in copies for annotation in coco["annotations"] if annotation["image_id"] == i
    ]
    truth = [{**annotation, "id": number, "image_id": new} for number, (annotation, new) in enumerate(pairs, 1)]
    content = {"images": [{"id": new} for _, new in copies], "categories": coco["categories"], "annotations": truth}
    categories, results = list(CATEGORIES), []
    for i, new in copies:
        x = found[i]
        for (x0, y0, x1, y1), score, index in zip(
            x.pred_boxes.tensor.tolist(), x.scores.tolist(), x.pred_classes, strict=True
        ):
            box = [x0, y0, x1 - x0, y1 - y0]
            results.append({"image_id": new, "category_id": categories[index], "bbox": box, "score": score})
    matching = {"task": "bbox", "category_ids": categories, "max_dets": [100], "backend": "pycocotools"}
    precision = accumulate(match_detections(content, results, **matching), categories)[0][..., 0, 0]
    cuts = {"AP": precision, "AP50": precision[0], "AP75": precision[5]}
    cuts |= {f"AP-{name}": precision[..., index] for index, name in enumerate(CATEGORIES.values())}
    return {key: 100 * cut[cut > -1].mean() if (cut > -1).any() else np.nan for key, cut in cuts.items()}


def test_intervals_are_those_of_images_that_are_really_repeated(coco, tmp_path):
    runs = [guesses(coco, shift, seed) for shift, seed in ((6, 1), (3, 2))]
    for name, found in zip("ab", runs, strict=True):
        (tmp_path / name).mkdir()
        evaluated(tmp_path / name, coco, found, tasks=["bbox"], metrics=["coco"])
    files = [tmp_path / name / FILE.format("bbox") for name in "ab"]
    intervals = match_intervals(files, resamples=12, confidence=80, seed=3)
    draws = np.random.default_rng(3).multinomial(6, np.full(6, 1 / 6), size=12)
    scores = [[ap_of_repeated(coco, found, draw) for found in runs] for draw in draws]
    for metric in ("AP", "AP50", "AP75", "AP-cat", "AP-dog"):
        differences = [second[metric] - first[metric] for first, second in scores]
        expected = np.nanpercentile(differences, [10, 90])
        np.testing.assert_allclose(intervals[metric], expected, rtol=0, atol=1e-9, err_msg=metric)
    assert np.isnan(intervals["AP-cow"]).all()


def test_two_runs_are_compared(coco, tmp_path):
    for name, shift in (("a", 8), ("b", 1)):
        (tmp_path / name).mkdir()
        evaluated(tmp_path / name, coco, guesses(coco, shift, 1))
    rows = {(row.task, row.metric): row for row in compare(tmp_path / "a", tmp_path / "b", resamples=100)[NAME]}
    for task in TASKS:
        assert rows[task, "AP"].certain and rows[task, "AP"].low < rows[task, "AP"].difference < rows[task, "AP"].high
        assert all(np.isfinite(rows[task, key].low) for key in ("AP50", "AP75", "AP-cat"))
        assert all(np.isnan(rows[task, key].low) for key in ("APm", "AP-cow"))


def test_an_evaluation_that_matches_nothing_leaves_no_file_of_an_earlier_one(coco, tmp_path, caplog):
    found = guesses(coco, 3, 1)
    evaluated(tmp_path, coco, found, metrics=["coco"])
    assert {path.name for path in tmp_path.glob("*.jsonl")} == {FILE.format(task) for task in TASKS[:-1]}
    evaluated(tmp_path, coco, {i: x[:0] for i, x in found.items()})
    assert "no instance in any image" in caplog.text and not list(tmp_path.glob("*.jsonl"))


def test_an_evaluation_that_is_broken_off_leaves_no_file(coco, tmp_path):
    evaluator, image = evaluator_of(tmp_path), coco["images"][0]
    evaluator.process([{**image, "image_id": image["id"]}], [{"instances": guesses(coco, 3, 1)[image["id"]]}])
    evaluator.evaluate()
    evaluator.on_matches.discard()
    assert not list(tmp_path.glob("*.jsonl"))


def test_files_at_fault_are_named(coco, tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        evaluated(tmp_path / name, coco, guesses(coco, 3, 1), tasks=["bbox"], metrics=["coco"])
    files = [tmp_path / name / FILE.format("bbox") for name in "ab"]
    draws = {"resamples": 5, "confidence": 95, "seed": 0}
    head, *rows = map(json.loads, files[1].read_text().splitlines())

    def refused(words, head, rows):
        files[1].write_text("\n".join(json.dumps(row) for row in (head, *rows)))
        with pytest.raises(UserError, match=words):
            match_intervals(files, **draws)

    refused("a/per_image_bbox.jsonl and .*b/per_image_bbox.jsonl are of different images or classes", head, rows[:-1])
    refused("different images or classes", {**head, "classes": ["a", "b", "c"]}, rows)
    other = copy.deepcopy(rows)
    other[0]["truths"][0] += 1
    refused("different images or classes", head, other)
    refused("b/per_image_bbox.jsonl: not matches of images .*thresholds", {**head, "thresholds": [0.5]}, rows)
    other[0]["matched"][0] = []
    refused("not matches of images .*unequal length.*eval --per-image", head, other)
    refused("not matches of images", head, [{"image": "1.jpg"}])
    files[1].write_text('{"task": "bbox", "classes"')
    with pytest.raises(UserError, match="not matches of images"):
        match_intervals(files, **draws)
