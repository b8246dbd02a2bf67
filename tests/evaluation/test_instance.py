"""The instance evaluator: detectron2's numbers, equal engines, and inputs at fault that are named."""

import copy
import importlib.util
import json
import logging
import os
import warnings
from pathlib import Path

import hotcoco
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, BoxMode, Instances
from pycocotools import mask as rle

from seg_ext.errors import UserError
from seg_ext.evaluation import InstanceEvaluator
from seg_ext.evaluation.coco_engine import accumulate, match_detections

NAME = "toy_instance"
CATEGORIES = {7: "cat", 3: "dog", 90: "cow"}  # model classes 0, 1, 2 in this order
IDS = {7: 0, 3: 1, 90: 2}
HEIGHT, WIDTH = 120, 160
COCO_FILE = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")) / "coco/annotations/instances_val2017.json"


def disc(rng):
    """A mask between the small and the large of COCO's size classes."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    radius = rng.integers(5, 70)
    return (y - rng.integers(HEIGHT)) ** 2 + (x - rng.integers(WIDTH)) ** 2 < radius**2


def encoded(mask):
    return rle.encode(np.asfortranarray(mask.astype(np.uint8)))


def box_of(mask):
    return rle.toBbox(encoded(mask)).tolist()


@pytest.fixture
def toy(tmp_path):
    """COCO's dictionary of 12 images with overlapping discs, one in six a crowd region, and its masks by image."""
    rng = np.random.default_rng(0)
    coco = {
        "images": [{"id": 100 + i, "height": HEIGHT, "width": WIDTH, "file_name": f"{i}.jpg"} for i in range(12)],
        "categories": [{"id": i, "name": name} for i, name in CATEGORIES.items()],
        "annotations": [],
    }
    masks = {image["id"]: [] for image in coco["images"]}
    for i in range(150):
        image_id, category = 100 + int(rng.integers(12)), int(rng.choice(list(CATEGORIES)))
        mask = disc(rng)
        shape = encoded(mask)
        annotation = {"id": i + 1, "image_id": image_id, "category_id": category, "iscrowd": int(i % 6 == 0)}
        annotation |= {"bbox": box_of(mask), "area": int(mask.sum())}
        annotation["segmentation"] = {"size": shape["size"], "counts": shape["counts"].decode()}
        coco["annotations"].append(annotation)
        masks[image_id].append((mask, category, annotation["iscrowd"]))
    (tmp_path / "truth.json").write_text(json.dumps(coco))
    yield from registered(coco, masks, json_file=str(tmp_path / "truth.json"))


def registered(coco, masks, **metadata):
    DatasetCatalog.register(NAME, lambda: copy.deepcopy(records_of(coco)))
    classes = list(CATEGORIES.values())
    MetadataCatalog.get(NAME).set(thing_classes=classes, thing_dataset_id_to_contiguous_id=IDS, **metadata)
    yield coco, masks
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def records_of(coco):
    """The same ground truth in detectron2's standard format."""
    return [
        {
            "file_name": image["file_name"],
            "image_id": image["id"],
            "height": HEIGHT,
            "width": WIDTH,
            "annotations": [
                {
                    "bbox": a["bbox"],
                    "bbox_mode": BoxMode.XYWH_ABS,
                    "category_id": IDS[a["category_id"]],
                    "segmentation": a["segmentation"],
                    "iscrowd": a["iscrowd"],
                }
                for a in coco["annotations"]
                if a["image_id"] == image["id"]
            ],
        }
        for image in coco["images"]
    ]


def instances(masks, classes, scores):
    found = Instances((HEIGHT, WIDTH))
    boxes = torch.tensor([box_of(mask) for mask in masks]).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    found.pred_boxes, found.scores, found.pred_classes = Boxes(boxes), torch.tensor(scores), torch.tensor(classes)
    found.pred_masks = torch.from_numpy(np.array(masks).reshape(-1, HEIGHT, WIDTH))
    return found


def perfect(masks):
    """Image id -> what a perfect model gives."""
    kept = {i: [(mask, IDS[c]) for mask, c, crowd in found if not crowd] for i, found in masks.items()}
    return {i: instances([m for m, _ in x], [c for _, c in x], [0.9] * len(x)) for i, x in kept.items() if x}


def imperfect(masks):
    """Shifted masks, some of another class, some invented, with equal scores in places."""
    rng = np.random.default_rng(1)
    result = {}
    for i, found in masks.items():
        shifted = [np.roll(mask, int(rng.integers(-9, 10)), axis=1) for mask, _, _ in found] + [disc(rng), disc(rng)]
        classes = [IDS[c] if rng.random() < 0.8 else int(rng.integers(3)) for _, c, _ in found] + [0, 2]
        result[i] = instances(shifted, classes, rng.integers(1, 20, len(shifted)) / 20)
    return result


def evaluated(evaluator, coco, found):
    evaluator.reset()
    for image in coco["images"]:
        if image["id"] in found:
            evaluator.process([{**image, "image_id": image["id"]}], [{"instances": found[image["id"]]}])
    return evaluator.evaluate()


def assert_same_scores(ours, theirs, tolerance=1e-9):
    assert ours.keys() == theirs.keys()
    for task in ours:
        assert ours[task].keys() == theirs[task].keys()
        for key, value in ours[task].items():
            np.testing.assert_allclose(value, theirs[task][key], rtol=0, atol=tolerance, err_msg=f"{task} {key}")


def in_id_order():
    """The metadata's classes in the order of their category ids, which detectron2 assumes."""
    MetadataCatalog.get(NAME).__dict__["thing_classes"] = ["dog", "cat", "cow"]
    MetadataCatalog.get(NAME).__dict__["thing_dataset_id_to_contiguous_id"] = {3: 0, 7: 1, 90: 2}


@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
def test_equals_detectron2(toy, backend):
    coco, masks = toy
    found = imperfect(masks)
    in_id_order()
    ours = evaluated(InstanceEvaluator(NAME, backend=backend), coco, found)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = evaluated(COCOEvaluator(NAME, ("bbox", "segm"), distributed=False, use_fast_impl=False), coco, found)
    assert 5 < ours["segm"]["AP"] < 90 and 0 < ours["bbox"]["APs"] < 90
    assert_same_scores(ours, theirs)


def results_of(found, task):
    """COCO's result format, straight from the masks."""
    return [
        {"image_id": i, "category_id": list(CATEGORIES)[c], "score": s}
        | ({"bbox": box_of(m)} if task == "bbox" else {"segmentation": encoded(m)})
        for i, x in found.items()
        for m, c, s in zip(x.pred_masks.numpy(), x.pred_classes.tolist(), x.scores.tolist(), strict=True)
    ]


def assert_engines_agree(coco, results, task, category_ids):
    both = [
        accumulate(
            match_detections(
                copy.deepcopy(coco),
                copy.deepcopy(results),
                task=task,
                category_ids=category_ids,
                max_dets=(1, 10, 100),
                backend=backend,
            ),
            category_ids,
        )
        for backend in ("hotcoco", "pycocotools")
    ]
    assert (both[0][0] > 0).any() and (both[0][0] < 1).any()
    for ours, theirs in zip(*both, strict=True):  # precision and recall, whence all 12 numbers
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_the_engines_agree_on_random_data_with_crowds(toy, task):
    coco, masks = toy
    assert_engines_agree(coco, results_of(imperfect(masks), task), task, list(CATEGORIES))


@pytest.mark.skipif(not COCO_FILE.is_file(), reason=f"{COCO_FILE} is not there (DETECTRON2_DATASETS)")
@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_the_engines_agree_on_coco(task):
    coco = json.loads(COCO_FILE.read_bytes())
    sizes = {image["id"]: (image["height"], image["width"]) for image in coco["images"]}
    rng = np.random.default_rng(0)
    results = []
    for a in coco["annotations"]:
        shift, size = rng.integers(-8, 9, 2), sizes[a["image_id"]]
        result = {"image_id": a["image_id"], "category_id": a["category_id"], "score": round(rng.random(), 2)}
        x, y, w, h = a["bbox"]
        shape = rle.frPyObjects(a["segmentation"], *size)
        mask = hotcoco.mask.decode(rle.merge(shape) if isinstance(shape, list) else shape)
        moved = {"bbox": [x + shift[0], y + shift[1], w, h], "segmentation": encoded(np.roll(mask, shift, axis=(1, 0)))}
        field = "bbox" if task == "bbox" else "segmentation"
        results += [{**result, field: moved[field]}] * (rng.random() < 0.9)
    assert sum(a["iscrowd"] for a in coco["annotations"]) > 0
    assert_engines_agree(coco, results, task, [category["id"] for category in coco["categories"]])


@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
def test_a_perfect_prediction_is_100_and_an_all_wrong_one_0(toy, backend):
    coco, masks = toy
    found = perfect(masks)
    result = evaluated(InstanceEvaluator(NAME, backend=backend), coco, found)
    for task in ("bbox", "segm"):
        assert all(value == pytest.approx(100) for value in result[task].values()), result[task]
    corner = np.zeros((HEIGHT, WIDTH), bool)
    corner[0, 0] = True
    wrong = {i: instances([corner] * 3, [0, 1, 2], [0.9] * 3) for i in found}
    result = evaluated(InstanceEvaluator(NAME, backend=backend), coco, wrong)
    assert all(value == 0 for task in result.values() for value in task.values()), result


def test_classes_keep_their_names_whatever_the_order_of_their_ids(toy):
    coco, masks = toy
    only_cats = {}
    for i, x in perfect(masks).items():
        only_cats[i] = x[x.pred_classes == IDS[7]]
    result = evaluated(InstanceEvaluator(NAME), coco, only_cats)["segm"]
    assert result["AP-cat"] == pytest.approx(100) and result["AP-dog"] == result["AP-cow"] == 0


def test_ground_truth_from_records_scores_as_that_from_json(toy):
    coco, masks = toy
    found = imperfect(masks)
    from_json = evaluated(InstanceEvaluator(NAME), coco, found)
    del MetadataCatalog.get(NAME).json_file
    assert_same_scores(evaluated(InstanceEvaluator(NAME), coco, found), from_json)


def test_polygons_and_uncompressed_rle_in_records_are_ground_truth(toy):
    coco, _ = toy
    square = np.zeros((HEIGHT, WIDTH), bool)
    square[10:60, 20:90] = True
    counts = np.flatnonzero(np.diff(np.r_[False, square.T.ravel(), False]))
    runs = np.diff(np.r_[0, counts, square.size]).tolist()
    corners = [[20, 10, 90, 10, 90, 60, 20, 60]]
    shapes = ({"size": [HEIGHT, WIDTH], "counts": runs}, corners)
    common = {"bbox": [20, 10, 90, 60], "bbox_mode": BoxMode.XYXY_ABS}
    records = [
        {"file_name": n, "image_id": n, "height": HEIGHT, "width": WIDTH}
        | {"annotations": [{**common, "category_id": i, "segmentation": shape}]}
        for i, (n, shape) in enumerate(zip(("a", "b"), shapes, strict=True))
    ]
    del MetadataCatalog.get(NAME).json_file
    DatasetCatalog.remove(NAME)
    DatasetCatalog.register(NAME, lambda: records)
    evaluator = InstanceEvaluator(NAME)
    for i, record in enumerate(records):
        evaluator.process([record], [{"instances": instances([square], [i], [0.9])}])
    result = evaluator.evaluate()
    assert result["segm"]["AP"] == pytest.approx(100) and result["bbox"]["AP"] == pytest.approx(100)


def test_an_image_without_predictions_counts_as_missed(toy):
    coco, masks = toy
    found = perfect(masks)
    whole = evaluated(InstanceEvaluator(NAME), coco, found)["segm"]["AP"]
    first = next(iter(found))
    found[first] = found[first][:0]
    assert evaluated(InstanceEvaluator(NAME), coco, found)["segm"]["AP"] < whole


def test_no_prediction_at_all_is_nan_and_logged(toy, caplog):
    coco, masks = toy
    empty = {i: x[:0] for i, x in perfect(masks).items()}
    with caplog.at_level(logging.WARNING):
        result = evaluated(InstanceEvaluator(NAME), coco, empty)
    assert result["bbox"].keys() == {"AP", "AP50", "AP75", "APs", "APm", "APl", "AP-cat", "AP-dog", "AP-cow"}
    assert all(np.isnan(value) for task in result.values() for value in task.values())
    assert "no instance in any image" in caplog.text


def test_a_single_class_has_no_ap_of_its_own(toy):
    coco, masks = toy
    metadata = MetadataCatalog.get(NAME).__dict__
    metadata["thing_classes"], metadata["thing_dataset_id_to_contiguous_id"] = ["cat"], {7: 0}
    found = {i: x[x.pred_classes == 0] for i, x in perfect(masks).items()}
    result = evaluated(InstanceEvaluator(NAME), coco, found)["segm"]
    assert result.keys() == {"AP", "AP50", "AP75", "APs", "APm", "APl"} and result["AP"] == pytest.approx(100)


def test_only_the_best_detections_count(toy):
    coco, masks = toy
    found = perfect(masks)
    for x in found.values():
        x.scores = torch.linspace(0.9, 0.5, len(x))
    full = evaluated(InstanceEvaluator(NAME, tasks=("segm",)), coco, found)["segm"]["AP"]
    assert evaluated(InstanceEvaluator(NAME, tasks=("segm",), max_dets=1), coco, found)["segm"]["AP"] < full


def test_classes_follow_the_ids_where_the_metadata_map_none(toy):
    coco, masks = toy
    metadata = MetadataCatalog.get(NAME).__dict__
    del metadata["thing_dataset_id_to_contiguous_id"], metadata["thing_classes"]
    found = perfect(masks)
    for x in found.values():
        x.pred_classes = torch.tensor([1, 0, 2])[x.pred_classes]
    result = evaluated(InstanceEvaluator(NAME), coco, found)["segm"]
    assert result["AP-dog"] == result["AP-cat"] == result["AP"] == pytest.approx(100)


def test_nothing_is_printed(toy, capfd):
    coco, masks = toy
    for backend in ("hotcoco", "pycocotools"):
        evaluated(InstanceEvaluator(NAME, backend=backend), coco, perfect(masks))
    assert capfd.readouterr() == ("", "")


def test_without_hotcoco_the_numbers_come_from_pycocotools_with_a_notice(toy, monkeypatch, caplog):
    coco, masks = toy
    found = imperfect(masks)
    with_it = evaluated(InstanceEvaluator(NAME), coco, found)
    monkeypatch.setitem(__import__("sys").modules, "hotcoco", None)
    find_spec = importlib.util.find_spec
    hidden = lambda name, *args: None if name == "hotcoco" else find_spec(name, *args)  # noqa: E731
    monkeypatch.setattr("seg_ext.evaluation.coco_engine.find_spec", hidden)
    with caplog.at_level(logging.WARNING):
        assert_same_scores(evaluated(InstanceEvaluator(NAME), coco, found), with_it)
    assert "hotcoco is not installed" in caplog.text
    with pytest.raises(UserError, match="'hotcoco' is not installed"):
        InstanceEvaluator(NAME, backend="hotcoco")


@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
def test_images_may_be_called_by_names(toy, backend):
    coco, found = copy.deepcopy(toy[0]), imperfect(toy[1])
    expected = evaluated(InstanceEvaluator(NAME, backend=backend), coco, found)
    for entry in [*coco["images"], *coco["annotations"]]:
        key = "image_id" if "image_id" in entry else "id"
        entry[key] = f"image {entry[key]}"
    Path(MetadataCatalog.get(NAME).json_file).write_text(json.dumps(coco))
    named = {f"image {i}": x for i, x in found.items()}
    assert_same_scores(evaluated(InstanceEvaluator(NAME, backend=backend), coco, named), expected)


@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
@pytest.mark.parametrize("rename", [lambda i: 7, lambda i: i - 1, str], ids=["all alike", "from 0", "text"])
def test_the_ids_of_annotations_change_no_score(toy, backend, rename):
    coco, found = copy.deepcopy(toy[0]), imperfect(toy[1])
    expected = evaluated(InstanceEvaluator(NAME, backend=backend), coco, found)
    for annotation in coco["annotations"]:
        annotation["id"] = rename(annotation["id"])
    Path(MetadataCatalog.get(NAME).json_file).write_text(json.dumps(coco))
    assert_same_scores(evaluated(InstanceEvaluator(NAME, backend=backend), coco, found), expected)


def test_image_ids_are_found_by_file_name_where_the_input_lost_them(toy):
    coco, masks = toy
    evaluator = InstanceEvaluator(NAME)
    for image in coco["images"]:
        if image["id"] in perfect(masks):
            evaluator.process([{"file_name": image["file_name"]}], [{"instances": perfect(masks)[image["id"]]}])
    assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100)


def broken(field, value):
    def change(x):
        x.set(field, value) if value is not None else x.remove(field)

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (broken("scores", torch.tensor([float("nan")])), r"5\.jpg.*NaN"),
        (broken("pred_boxes", Boxes(torch.tensor([[0, 0, float("inf"), 4]]))), r"5\.jpg.*NaN"),
        (broken("pred_masks", None), r"5\.jpg.*pred_masks.*segm"),
        (broken("pred_boxes", None), r"5\.jpg.*pred_boxes.*bbox"),
        (broken("pred_masks", torch.zeros(1, 28, 28, dtype=torch.bool)), r"5\.jpg.*28, 28.*120, 160"),
    ],
)
def test_instances_at_fault_name_the_file(toy, change, words):
    coco, _ = toy
    found = instances([disc(np.random.default_rng(0))], [0], [0.5])
    change(found)
    with pytest.raises(UserError, match=words):
        InstanceEvaluator(NAME).process([{**coco["images"][5], "image_id": 105}], [{"instances": found}])
    with pytest.raises(UserError, match=r"5\.jpg.*sem_seg.*instances"):
        InstanceEvaluator(NAME).process([coco["images"][5]], [{"sem_seg": None}])


@pytest.mark.parametrize(("image_id", "category", "words"), [(1, 0, "image_id 1 "), (100, 3, r"classes 3\.\.3.*3")])
def test_predictions_that_the_ground_truth_does_not_know_are_named(toy, image_id, category, words):
    evaluator = InstanceEvaluator(NAME)
    found = instances([disc(np.random.default_rng(0))], [category], [0.5])
    evaluator.process([{"file_name": "x.jpg", "image_id": image_id}], [{"instances": found}])
    with pytest.raises(UserError, match=words):
        evaluator.evaluate()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"tasks": ("points",)}, "points.*bbox"), ({"backend": "x"}, "'x'.*auto"), ({"max_dets": 0}, "max_dets 0")],
)
def test_unknown_choices_are_refused(toy, arguments, words):
    with pytest.raises(UserError, match=words):
        InstanceEvaluator(NAME, **arguments)


def without(coco, key, part=None):
    coco = copy.deepcopy(coco)
    del (coco[part][2] if part else coco)[key]
    return json.dumps(coco)


def annotated(**fields):
    """The third annotation with these values."""

    def content(coco):
        rows = copy.deepcopy(coco["annotations"])
        rows[2].update(fields)
        return json.dumps({**coco, "annotations": rows})

    return content


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda coco: "{", r"truth\.json: not JSON"),
        (lambda coco: "[]", r"truth\.json: no 'images'"),
        (lambda coco: without(coco, "categories"), r"truth\.json: no 'categories'"),
        (lambda coco: without(coco, "id", "images"), r"truth\.json: entry 2 of 'images' has no 'id'"),
        (lambda coco: without(coco, "height", "images"), r"truth\.json: entry 2 of 'images' has no 'height'"),
        (lambda coco: without(coco, "name", "categories"), r"truth\.json: entry 2 of 'categories' has no 'name'"),
        (lambda coco: without(coco, "area", "annotations"), r"truth\.json: annotation 3 has no 'area'"),
        (lambda coco: without(coco, "segmentation", "annotations"), r"annotation 3 has no 'segmentation'"),
        (lambda coco: json.dumps({**coco, "categories": coco["categories"][:2]}), r"truth\.json: no category 90"),
        (
            lambda coco: json.dumps({**coco, "annotations": {"a": 1}}),
            r"truth\.json: 'annotations' is no list of objects",
        ),
        (lambda coco: "[" * 100_000, r"truth\.json: not JSON"),
        (annotated(segmentation=[[1, 2, 9, 8]]), r"truth\.json: annotation 3 has no polygon of three corners"),
        (annotated(segmentation="x"), r"truth\.json: annotation 3 has segmentation 'x'; takes polygons or an RLE"),
        (annotated(image_id="7"), r"truth\.json: annotation 3 has image_id '7'; takes the id of an image"),
        (annotated(category_id=[1]), r"truth\.json: annotation 3 has category_id \[1\]; takes"),
        (annotated(bbox=None), r"truth\.json: annotation 3 has bbox None; takes \[x, y, width, height\]"),
        (annotated(bbox=[1, 2]), r"truth\.json: annotation 3 has bbox \[1, 2\]; takes"),
        (annotated(area="x"), r"truth\.json: annotation 3 has area 'x'; takes a number of pixels"),
        (annotated(iscrowd=None), r"truth\.json: annotation 3 has iscrowd None; takes 0 or 1"),
        (annotated(segmentation={"size": [WIDTH, HEIGHT], "counts": [1]}), r"3 has a mask of \[.*; takes the image's"),
    ],
)
def test_ground_truth_at_fault_names_the_file(toy, content, words):
    Path(MetadataCatalog.get(NAME).json_file).write_text(content(toy[0]))
    with pytest.raises(UserError, match=words):
        InstanceEvaluator(NAME)


def test_missing_ground_truth_is_named(toy):
    Path(MetadataCatalog.get(NAME).json_file).unlink()
    with pytest.raises(UserError, match=r"truth\.json: No such file"):
        InstanceEvaluator(NAME)
    with pytest.raises(UserError, match="'nowhere'.*json_file"):
        InstanceEvaluator("nowhere")
    MetadataCatalog.remove("nowhere")


def test_an_empty_mask_in_the_ground_truth_is_named(toy):
    coco = copy.deepcopy(toy[0])
    coco["annotations"][2]["segmentation"] = []
    Path(MetadataCatalog.get(NAME).json_file).write_text(json.dumps(coco))
    with pytest.raises(UserError, match=r"truth\.json: annotation 3 has no 'segmentation'"):
        InstanceEvaluator(NAME)
    InstanceEvaluator(NAME, tasks=("bbox",))


def test_names_of_another_number_than_the_categories_are_refused(toy):
    MetadataCatalog.get(NAME).__dict__["thing_classes"] = ["cat", "dog"]
    with pytest.raises(UserError, match="2 thing_classes for 3"):
        InstanceEvaluator(NAME)


@pytest.mark.parametrize(
    ("where", "key"), [("record", "image_id"), ("annotation", "bbox"), ("annotation", "segmentation")]
)
def test_records_at_fault_name_the_file(toy, where, key):
    records = records_of(toy[0])
    record = next(r for r in records if r["annotations"])
    del (record if where == "record" else record["annotations"][0])[key]
    del MetadataCatalog.get(NAME).json_file
    DatasetCatalog.remove(NAME)
    DatasetCatalog.register(NAME, lambda: records)
    with pytest.raises(UserError, match=rf"{record['file_name']}.*{key}"):
        InstanceEvaluator(NAME)


def test_a_test_set_without_annotations_gives_no_scores_and_a_notice(toy, caplog):
    Path(MetadataCatalog.get(NAME).json_file).write_text(without(toy[0], "annotations"))
    with caplog.at_level(logging.WARNING):
        assert evaluated(InstanceEvaluator(NAME), toy[0], perfect(toy[1])) == {}
    assert "no annotations" in caplog.text
