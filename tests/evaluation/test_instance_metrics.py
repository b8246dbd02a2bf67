"""The instance evaluator beyond boxes and masks: keypoints, boundary AP, VOC's AP, TIDE; each against an oracle."""

import contextlib
import copy
import io
import json
import warnings

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, BoxMode, Instances
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from seg_ext.config import get_cfg
from seg_ext.engine.evaluate import build_evaluators
from seg_ext.errors import UserError
from seg_ext.evaluation import InstanceEvaluator
from seg_ext.evaluation.coco_engine import accumulate, match_detections
from seg_ext.metrics.voc_ap import average_precision

NAME, SIZE, POINTS = "toy_instance_metrics", (72, 96), 5
NAMES = ["cat", "dog", "cow", "absent"]
SIGMAS = [0.05, 0.1, 0.07, 0.08, 0.2]


def disc(rng):
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    return (y - rng.integers(8, 64)) ** 2 + (x - rng.integers(8, 88)) ** 2 < rng.integers(3, 30) ** 2


def annotation_of(rng, number, image_id):
    mask = disc(rng)
    shape = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
    box = rle.toBbox(shape).tolist()
    visible = rng.integers(0, 3, POINTS) * (number % 5 > 0)
    points = np.stack([*(box[:2] + rng.random((POINTS, 2)) * box[2:]).T.round(), visible], axis=1)
    return {
        "id": number,
        "image_id": image_id,
        "category_id": int(rng.integers(1, 4)),
        "iscrowd": int(number % 7 == 0),
        "bbox": box,
        "area": int(mask.sum()),
        "segmentation": {"size": list(SIZE), "counts": shape["counts"].decode()},
        "keypoints": points.ravel().tolist(),
        "num_keypoints": int((visible > 0).sum()),
    }


@pytest.fixture
def coco(tmp_path):
    """COCO's dictionary of 8 images, registered; the fourth category has no annotation."""
    rng = np.random.default_rng(0)
    found = {
        "images": [{"id": i, "height": SIZE[0], "width": SIZE[1], "file_name": f"{i}.jpg"} for i in range(8)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(NAMES, start=1)],
        "annotations": [annotation_of(rng, number, int(rng.integers(8))) for number in range(1, 61)],
    }
    (tmp_path / "truth.json").write_text(json.dumps(found))
    DatasetCatalog.register(NAME, lambda: [{"file_name": i["file_name"], "image_id": i["id"]} for i in found["images"]])
    ids = {i: i - 1 for i in range(1, 5)}
    paths = {"json_file": str(tmp_path / "truth.json")}
    MetadataCatalog.get(NAME).set(thing_classes=NAMES, thing_dataset_id_to_contiguous_id=ids, **paths)
    yield found
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def instances(masks, classes, scores, points):
    found = Instances(SIZE)
    boxes = np.array([rle.toBbox(rle.encode(np.asfortranarray(m.astype(np.uint8)))) for m in masks]).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    found.pred_boxes, found.scores = Boxes(torch.from_numpy(boxes)), torch.tensor(scores, dtype=torch.float64)
    found.pred_classes = torch.tensor(classes, dtype=torch.int64)
    found.pred_masks = torch.from_numpy(np.array(masks, bool).reshape(-1, *SIZE))
    found.pred_keypoints = torch.tensor(np.array(points)).reshape(-1, POINTS, 3) + torch.tensor([0.5, 0.5, 0])
    return found


def predicted(coco, noise):
    """Image id -> instances: those of the ground truth but for crowds; with noise, moved, relabelled and invented."""
    rng, result = np.random.default_rng(1), {}
    for image in coco["images"]:
        rows = [a for a in coco["annotations"] if a["image_id"] == image["id"] and not (a["iscrowd"] and not noise)]
        masks = [rle.decode(a["segmentation"]).astype(bool) for a in rows]
        classes = [a["category_id"] - 1 for a in rows]
        points = [np.array(a["keypoints"]).reshape(-1, 3) for a in rows]
        if noise:
            shifts = rng.integers(-4, 5, (len(rows), 2))
            masks = [np.roll(m, s, axis=(0, 1)) for m, s in zip(masks, shifts, strict=True)] + [disc(rng), disc(rng)]
            classes = [c if rng.random() < 0.8 else int(rng.integers(4)) for c in classes] + [0, 3]
            points = [p + rng.normal(0, 1.5, p.shape) for p in [*points, points[0], points[0]]]
        result[image["id"]] = instances(masks, classes, rng.integers(1, 20, len(masks)) / 20, points)
    return result


def evaluated(evaluator, found):
    evaluator.reset()
    for i, x in found.items():
        evaluator.process([{"image_id": i, "file_name": f"{i}.jpg"}], [{"instances": copy.deepcopy(x)}])
    return evaluator.evaluate()


def everything(**kwargs):
    tasks, metrics = ("bbox", "segm", "keypoints"), ("coco", "boundary", "voc", "tide")
    return InstanceEvaluator(NAME, tasks=tasks, metrics=metrics, kpt_oks_sigmas=SIGMAS, **kwargs)


def test_the_config_chooses_tasks_and_metrics(coco):
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.MASK_ON, cfg.MODEL.KEYPOINT_ON = "GeneralizedRCNN", True, True
    cfg.TEST.INSTANCE_METRICS, cfg.TEST.KEYPOINT_OKS_SIGMAS = ["coco", "boundary"], SIGMAS
    MetadataCatalog.get(NAME).evaluator_type = "coco"
    (evaluator,) = build_evaluators(cfg, NAME)
    assert evaluated(evaluator, predicted(coco, noise=False)).keys() == {"bbox", "segm", "keypoints", "boundary"}


@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
def test_all_tasks_equal_detectron2s_with_keypoints(coco, backend):
    found = predicted(coco, noise=True)
    tasks = ("bbox", "segm", "keypoints")
    ours = evaluated(InstanceEvaluator(NAME, tasks=tasks, kpt_oks_sigmas=SIGMAS, backend=backend), found)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = COCOEvaluator(NAME, tasks, distributed=False, use_fast_impl=False, kpt_oks_sigmas=SIGMAS)
        theirs = evaluated(peer, found)
    assert 5 < ours["keypoints"]["AP"] < 95
    assert ours.keys() == theirs.keys()
    for task, scores in ours.items():
        assert scores.keys() == theirs[task].keys()
        for key, value in scores.items():
            np.testing.assert_allclose(value, theirs[task][key], rtol=0, atol=1e-9, err_msg=f"{task} {key}")
    alone = evaluated(InstanceEvaluator(NAME, tasks=("bbox",), backend=backend), found)
    np.testing.assert_equal(alone, {"bbox": ours["bbox"]})


@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
def test_evaluating_twice_and_leaving_out_iscrowd_0_change_nothing(coco, backend):
    found, evaluator = predicted(coco, noise=True), everything(backend=backend)
    first = evaluated(evaluator, found)
    np.testing.assert_equal(evaluator.evaluate(), first)
    for annotation in coco["annotations"]:
        if not annotation["iscrowd"]:
            del annotation["iscrowd"]
    with open(MetadataCatalog.get(NAME).json_file, "w") as file:
        json.dump(coco, file)
    coco["annotations"] = [{"iscrowd": 0, **annotation} for annotation in coco["annotations"]]
    np.testing.assert_equal(evaluated(everything(backend=backend), found), first)


def test_keypoints_in_records_are_ground_truth(coco):
    found = predicted(coco, noise=True)
    task = {"tasks": ("keypoints",), "kpt_oks_sigmas": SIGMAS}
    from_json = evaluated(InstanceEvaluator(NAME, **task), found)
    records = [{**image, "image_id": image["id"], "annotations": []} for image in coco["images"]]
    for a in coco["annotations"]:
        points = (np.array(a["keypoints"]).reshape(-1, 3) + [0.5, 0.5, 0]).ravel().tolist()
        kept = {"bbox_mode": BoxMode.XYWH_ABS, "category_id": a["category_id"] - 1, "keypoints": points}
        records[a["image_id"]]["annotations"].append({**{k: a[k] for k in ("bbox", "iscrowd", "segmentation")}, **kept})
    DatasetCatalog.remove(NAME)
    DatasetCatalog.register(NAME, lambda: records)
    del MetadataCatalog.get(NAME).json_file
    np.testing.assert_equal(evaluated(InstanceEvaluator(NAME, **task), found), from_json)


def band(mask):
    """Cheng et al.'s: the mask without what 3x3 erosions leave of it, void around the image."""
    width = max(1, round(0.02 * float(np.hypot(*mask.shape))))
    padded = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    for _ in range(width):
        padded = cv2.erode(padded, np.ones((3, 3), np.uint8))
    return mask - padded[1:-1, 1:-1]


class DenseBoundaryEval(COCOeval):
    """The same protocol on dense masks, every pair compared in full."""

    def computeIoU(self, imgId, catId):
        truth, found = self._gts[imgId, catId], self._dts[imgId, catId]
        if not truth or not found:
            return []
        found = sorted(found, key=lambda d: -d["score"])
        ious = np.zeros((len(found), len(truth)))
        for (i, d), (j, g) in ((x, y) for x in enumerate(found) for y in enumerate(truth)):
            a, b = rle.decode(d["segmentation"]), rle.decode(g["segmentation"])
            pairs = [(a, b)] if g["iscrowd"] else [(a, b), (band(a), band(b))]
            ious[i, j] = min((x & y).sum() / (x.sum() if g["iscrowd"] else (x | y).sum()) for x, y in pairs)
        return ious


def test_boundary_ap_equals_the_definition_on_dense_masks(coco, monkeypatch):
    results = [
        {"image_id": i, "category_id": int(c) + 1, "score": float(s), "segmentation": shape}
        for i, x in predicted(coco, noise=True).items()
        for c, s, shape in zip(
            x.pred_classes,
            x.scores,
            rle.encode(np.asfortranarray(x.pred_masks.numpy().transpose(1, 2, 0).view(np.uint8))),
            strict=True,
        )
    ]
    monkeypatch.setattr("seg_ext.evaluation.coco_engine._BAND_BYTES", 2 * SIZE[0] * SIZE[1])  # masks in several parts
    options = {"category_ids": [1, 2, 3, 4], "max_dets": (100,), "backend": "hotcoco"}
    ours, masks = (
        accumulate(match_detections(coco, copy.deepcopy(results), task=task, **options), options["category_ids"])[0]
        for task in ("boundary", "segm")
    )
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(coco)
        truth.createIndex()
        peer = DenseBoundaryEval(truth, truth.loadRes(results), "segm")
        peer.params.maxDets = [100]
        peer.evaluate()
        peer.accumulate()
    np.testing.assert_array_equal(ours, peer.eval["precision"])
    assert 0 < ours[ours > -1].mean() < masks[masks > -1].mean() - 0.02


@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
def test_a_perfect_prediction_is_100_and_an_absent_class_nan_in_every_metric(coco, backend):
    result = evaluated(everything(backend=backend), predicted(coco, noise=False))
    errors = {task: result.pop(task) for task in ("bbox_tide", "segm_tide")}
    assert set(result) == {"bbox", "segm", "keypoints", "boundary", "bbox_voc", "segm_voc"}
    for task, scores in result.items():
        for key, value in scores.items():
            if key.endswith("-absent") or key == "APl":  # no object is large
                assert np.isnan(value), (task, key)
            else:
                assert value == pytest.approx(100, abs=1e-9), (task, key)
    for scores in errors.values():
        assert scores.pop("AP50") == pytest.approx(100) and set(scores.values()) == {0.0}


def test_an_all_wrong_prediction_is_0_in_every_metric(coco):
    corner = np.zeros(SIZE, bool)
    corner[0, 0] = True
    far = np.full((POINTS, 3), 2000.0)
    wrong = {i["id"]: instances([corner] * 3, [0, 1, 2], [0.9, 0.8, 0.7], [far] * 3) for i in coco["images"]}
    for task, scores in evaluated(everything(), wrong).items():
        kept = {k: v for k, v in scores.items() if k.startswith("AP") and not np.isnan(v)}
        assert set(kept.values()) == {0.0} and (len(kept) > 4 or task.endswith("_tide")), task


def voc_by_loops(coco, found, field, threshold, points):
    """VOC's rules on dense masks or boxes, detection by detection; crowd regions are difficult."""

    def iou(a, b):
        if field == "segm":
            return (a & b).sum() / (a | b).sum()
        low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
        common = np.prod(np.clip(high - low, 0, None))
        return common / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - common)

    aps = []
    for category in range(1, 4):
        rows = [a for a in coco["annotations"] if a["category_id"] == category]
        shapes = [
            rle.decode(a["segmentation"]) if field == "segm" else np.array(a["bbox"]) + [0, 0, *a["bbox"][:2]]
            for a in rows
        ]
        queue = []
        for i, x in found.items():
            given = x.pred_masks.numpy().astype(np.uint8) if field == "segm" else x.pred_boxes.tensor.double().numpy()
            queue += [
                (s, i, y) for s, c, y in zip(x.scores.tolist(), x.pred_classes, given, strict=True) if c == category - 1
            ]
        hits, taken = [], set()
        for _, i, shape in sorted(queue, key=lambda item: -item[0]):
            near = [(iou(shape, shapes[j]), -j) for j, a in enumerate(rows) if a["image_id"] == i]
            overlap, j = max(near, default=(0, 1))
            if overlap >= threshold and j <= 0 and rows[-j]["iscrowd"]:
                continue
            hits.append(overlap >= threshold and j not in taken)
            taken |= {j} if overlap >= threshold else set()
        total = sum(not a["iscrowd"] for a in rows)
        aps.append(
            average_precision(np.cumsum(hits) / total, np.cumsum(hits) / np.arange(1, len(hits) + 1), points=points)
        )
    return 100 * float(np.mean(aps))


def test_voc_ap_equals_the_definition(coco):
    found = predicted(coco, noise=True)
    result = evaluated(everything(), found)
    masks = {t: voc_by_loops(coco, found, "segm", t, None) for t in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)}
    expected = {
        ("segm_voc", "AP50"): masks[0.5],
        ("segm_voc", "AP70"): masks[0.7],
        ("segm_voc", "APvol"): np.mean(list(masks.values())),
        ("segm_voc", "AP70_07"): voc_by_loops(coco, found, "segm", 0.7, 11),
        ("bbox_voc", "AP50_07"): voc_by_loops(coco, found, "bbox", 0.5, 11),
        ("bbox_voc", "AP50_12"): voc_by_loops(coco, found, "bbox", 0.5, None),
    }
    assert 10 < masks[0.7] < masks[0.5] < 90
    for (task, key), value in expected.items():
        assert result[task][key] == pytest.approx(value, abs=1e-9), (task, key)


def square(row, column, side=20):
    mask = np.zeros(SIZE, bool)
    mask[row : row + side, column : column + side] = True
    return mask


CAT, DOG, OTHER_DOG = square(4, 4), square(40, 60), square(40, 4)


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("Cls", (DOG, 0)),
        ("Loc", (square(47, 67), 1)),
        ("Both", (square(47, 67), 0)),
        ("Dupe", (OTHER_DOG, 1)),
        ("Bkg", (square(4, 70), 1)),
        ("Miss", None),
    ],
)
def test_tide_names_the_one_error(coco, kind, error):
    coco["annotations"] = []
    for number, (mask, category) in enumerate(((CAT, 1), (DOG, 2), (OTHER_DOG, 2)), start=1):
        shape = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
        shape["counts"] = shape["counts"].decode()
        row = {"id": number, "image_id": 3, "category_id": category, "iscrowd": 0, "segmentation": shape}
        coco["annotations"].append({**row, "bbox": rle.toBbox(shape).tolist(), "area": int(mask.sum())})
    with open(MetadataCatalog.get(NAME).json_file, "w") as file:
        json.dump(coco, file)
    rows = [(CAT, 0, 0.8), (OTHER_DOG, 1, 0.8), *([(*error, 0.9 if kind != "Dupe" else 0.7)] if error else [])]
    rows += [(DOG, 1, 0.6)] if kind in ("Dupe", "Bkg") else []
    masks, classes, scores = zip(*rows, strict=True)
    found = {3: instances(masks, classes, scores, np.zeros((len(masks), POINTS, 3)))}
    result = evaluated(InstanceEvaluator(NAME, metrics=("tide",)), found)
    assert result.keys() == {"bbox_tide", "segm_tide"}
    for errors in result.values():
        counts = {key[2:]: n for key, n in errors.items() if key.startswith("n-") and n}
        assert counts.pop(kind) == 1 and set(counts) <= {"Miss"}
        assert 0 < errors["AP50"] < 100 and errors[kind] > 0
        assert all(errors[other] == 0 for other in ("Cls", "Loc", "Both", "Dupe", "Bkg") if other != kind)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"metrics": ("lvis",)}, "lvis.*coco.*boundary.*voc.*tide"),
        ({"metrics": ()}, "takes some of"),
        ({"metrics": ("boundary",), "tasks": ("bbox",)}, "boundary.*masks"),
        ({"tasks": ("keypoints",)}, "annotation 1 has 5 keypoints for 17.*KEYPOINT_OKS_SIGMAS"),
    ],
)
def test_choices_that_cannot_be_served_are_refused(coco, arguments, words):
    with pytest.raises(UserError, match=words):
        InstanceEvaluator(NAME, **arguments)


def test_tide_without_hotcoco_is_refused(coco, monkeypatch):
    monkeypatch.setattr("seg_ext.evaluation.instance.find_spec", lambda name: None)
    with pytest.raises(UserError, match="tide.*pip install hotcoco"):
        InstanceEvaluator(NAME, metrics=("tide",))


def test_keypoints_at_fault_name_the_file(coco):
    evaluator = InstanceEvaluator(NAME, tasks=("keypoints",), kpt_oks_sigmas=SIGMAS)
    found = predicted(coco, noise=False)[3]
    found.pred_keypoints = found.pred_keypoints[:, :4]
    with pytest.raises(UserError, match=r"3\.jpg: 4 keypoints.*has 5"):
        evaluator.process([{"image_id": 3, "file_name": "3.jpg"}], [{"instances": found}])


def test_predictions_are_kept_as_run_lengths_and_nothing_of_the_output_with_them(coco):
    evaluator, found = everything(), predicted(coco, noise=True)
    for i, x in found.items():
        evaluator.process([{"image_id": i, "file_name": f"{i}.jpg"}], [{"instances": x}])
    before = copy.deepcopy(evaluator._predictions)
    for x in found.values():
        for tensor in (x.scores, x.pred_classes, x.pred_boxes.tensor, x.pred_keypoints):
            tensor.fill_(3)
    for kept, expected in zip(evaluator._predictions, before, strict=True):
        for field in ("scores", "classes", "boxes", "keypoints"):
            np.testing.assert_array_equal(getattr(kept, field), getattr(expected, field))
        assert sum(map(len, kept.counts)) < 0.05 * len(kept.counts) * SIZE[0] * SIZE[1]
