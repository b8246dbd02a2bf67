"""Saved predictions of instances and panoptic maps: the scores of the file itself, and faults that are named first."""

import contextlib
import copy
import io
import json

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from seg_ext.errors import UserError
from seg_ext.evaluation import InstanceEvaluator, PanopticEvaluator
from seg_ext.evaluation.prediction_writer import PredictionWriter
from seg_ext.evaluation.saved import kind_of
from seg_ext.evaluation.saved_objects import read_coco_results
from seg_ext.evaluation.saved_panoptic import read_panoptic_results

NAME, SIZE, POINTS = "toy_saved", (24, 32), 17
CATEGORIES = {7: "cat", 3: "dog", 90: "sky"}
THINGS = {7: 0, 3: 1}


def rectangle(rng):
    mask = np.zeros(SIZE, np.uint8)
    row, column = rng.integers(0, 18, 2)
    mask[row : row + rng.integers(3, 16), column : column + rng.integers(3, 16)] = 1
    return mask


def row_of(rng, image_id, mask):
    shape = rle.encode(np.asfortranarray(mask))
    box, area = rle.toBbox(shape).tolist(), int(rle.area(shape))
    points = np.concatenate([rng.integers(0, 24, (POINTS, 2)), np.full((POINTS, 1), 2)], axis=1)
    shape["counts"] = shape["counts"].decode()
    common = {"image_id": image_id, "category_id": int(rng.choice([7, 3])), "bbox": box, "segmentation": shape}
    return {**common, "area": area, "keypoints": points.ravel().tolist(), "num_keypoints": POINTS, "iscrowd": 0}


def save_ids(path, ids):
    Image.fromarray(np.stack([ids % 256, ids // 256, ids * 0], axis=-1).astype(np.uint8)).save(path)


@pytest.fixture
def toy(tmp_path):
    """Ground truth of 6 images in the files ``truth.json`` and ``panoptic_truth.json``; the last has no object."""
    rng = np.random.default_rng(0)
    images = [{"id": 10 + i, "file_name": f"{10 + i}.jpg", "height": SIZE[0], "width": SIZE[1]} for i in range(6)]
    rows = [row_of(rng, 10 + i % 5, rectangle(rng)) for i in range(25)]
    for number, row in enumerate(rows, start=1):
        row["id"] = number
    categories = [{"id": i, "name": name, "isthing": int(i in THINGS)} for i, name in CATEGORIES.items()]
    (tmp_path / "truth.json").write_text(json.dumps({"images": images, "categories": categories, "annotations": rows}))
    (tmp_path / "panoptic_truth").mkdir()
    annotations = []
    for image in images:
        ids = rng.choice([0, 5, 300, 9], (3, 4)).repeat(8, axis=0).repeat(8, axis=1)
        save_ids(tmp_path / "panoptic_truth" / f"{image['id']}.png", ids)
        segments = [{"id": s, "category_id": c} for s, c in ((5, 7), (300, 3), (9, 90)) if s in ids]
        annotations.append({"image_id": image["id"], "file_name": f"{image['id']}.png", "segments_info": segments})
    (tmp_path / "panoptic_truth.json").write_text(json.dumps({"annotations": annotations}))
    DatasetCatalog.register(NAME, lambda: [{**image, "image_id": image["id"]} for image in images])
    MetadataCatalog.get(NAME).set(
        thing_classes=["cat", "dog"],
        stuff_classes=["sky"],
        thing_dataset_id_to_contiguous_id=THINGS,
        stuff_dataset_id_to_contiguous_id={90: 0},
        json_file=str(tmp_path / "truth.json"),
        panoptic_json=str(tmp_path / "panoptic_truth.json"),
        panoptic_root=str(tmp_path / "panoptic_truth"),
    )
    yield tmp_path
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def results_of(toy):
    """Shifted and relabelled copies of the ground truth, as another tool saves them."""
    rng = np.random.default_rng(1)
    rows = json.loads((toy / "truth.json").read_text())["annotations"]
    results = []
    for row in rows:
        mask = np.roll(rle.decode(row["segmentation"]), rng.integers(-2, 3, 2), axis=(0, 1))
        result = {**row_of(rng, row["image_id"], mask), "score": float(rng.random())}
        result["category_id"] = row["category_id"] if rng.random() < 0.8 else 7
        result["keypoints"] = (np.array(row["keypoints"]) + rng.integers(-1, 2, 3 * POINTS)).tolist()
        results.append({k: v for k, v in result.items() if k not in ("area", "num_keypoints", "iscrowd")})
    return results


def scored(pairs, evaluator):
    for record, output in pairs:
        evaluator.process([record], [output])
    return evaluator.evaluate()


def peer_ap(toy, results, task):
    kept = [{k: v for k, v in r.items() if task != "segm" or k != "bbox"} for r in copy.deepcopy(results)]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(toy / "truth.json"))
        peer = COCOeval(truth, truth.loadRes(kept), task)
        peer.params.catIds = [3, 7]
        peer.evaluate()
        peer.accumulate()
        peer.summarize()
    return 100 * peer.stats[0]


def saved(toy, results):
    (toy / "found.json").write_text(results if isinstance(results, str) else json.dumps(results))
    return toy / "found.json"


@pytest.mark.parametrize("task", ["bbox", "segm", "keypoints"])
@pytest.mark.parametrize("form", ["list", "object"])
def test_instances_score_as_the_file_does_by_pycocotools(toy, task, form):
    results = results_of(toy)
    path = saved(toy, results if form == "list" else {"annotations": results, "images": [{"id": 10}]})
    found = scored(read_coco_results(path, NAME), InstanceEvaluator(NAME, tasks=(task,)))
    assert 1 < found[task]["AP"] < 99
    assert found[task]["AP"] == pytest.approx(peer_ap(toy, results, task), abs=1e-9)


def test_boxes_count_with_all_their_digits(toy):
    truth = json.loads((toy / "truth.json").read_text())
    results = results_of(toy)
    for row, result in zip(truth["annotations"], results, strict=True):
        x, y, width, height = row["bbox"] = [row["bbox"][0] + 0.37, row["bbox"][1], *row["bbox"][2:]]
        result["bbox"] = [x + width / 3, y, width, height]  # of IoU 1/2, as far as digits go
    (toy / "truth.json").write_text(json.dumps(truth))
    results = [{k: v for k, v in result.items() if k not in ("segmentation", "keypoints")} for result in results]
    found = scored(read_coco_results(saved(toy, results), NAME), InstanceEvaluator(NAME, tasks=("bbox",)))
    assert found["bbox"]["AP"] == pytest.approx(peer_ap(toy, results, "bbox"), abs=1e-9)


def test_every_image_comes_with_its_record_and_the_fields_of_the_file(toy):
    pairs = list(read_coco_results(saved(toy, results_of(toy)), NAME))
    assert [record["file_name"] for record, _ in pairs] == [f"{10 + i}.jpg" for i in range(6)]
    counts = [len(output["instances"]) for _, output in pairs]
    assert sum(counts) == 25 and counts[-1] == 0
    for _, output in pairs:
        found = output["instances"]
        assert found.pred_masks.shape[1:] == SIZE and found.pred_keypoints.shape[1:] == (POINTS, 3)
    empty = list(read_coco_results(saved(toy, []), NAME))
    assert len(empty) == 6 and not any(len(output["instances"]) for _, output in empty)


def test_polygons_and_uncompressed_runs_are_masks_and_give_the_boxes(toy):
    polygon = [[4.0, 2.0, 12.0, 2.0, 12.0, 9.0, 4.0, 9.0]]
    runs = {"size": list(SIZE), "counts": [24 * 4 + 2, 7, *[17, 7] * 7, 15 + 24 * 20]}
    common = {"image_id": 11, "category_id": 3, "score": 1}
    path = saved(toy, [{**common, "segmentation": polygon}, {**common, "segmentation": runs}])
    found = dict((r["id"], o) for r, o in read_coco_results(path, NAME))[11]["instances"]
    expected = torch.zeros(SIZE, dtype=torch.bool)
    expected[2:9, 4:12] = True
    assert torch.equal(found.pred_masks, expected.expand(2, *SIZE))
    assert found.pred_boxes.tensor.tolist() == [[4, 2, 12, 9]] * 2
    assert found.pred_classes.tolist() == [1, 1]


def test_keypoints_alone_give_the_boxes(toy):
    points = np.array([[3, 4, 1], [9, 7, 1], [5, 6, 0]]).ravel().tolist()
    path = saved(toy, [{"image_id": 10, "category_id": 7, "score": 0.5, "keypoints": points}])
    _, output = next(iter(read_coco_results(path, NAME)))
    assert output["instances"].pred_boxes.tensor.tolist() == [[3, 4, 9, 7]]
    assert output["instances"].pred_keypoints[0, 0].tolist() == [3.5, 4.5, 1]


def test_what_the_writer_wrote_reads_back(toy):
    before = {r["id"]: (r, o) for r, o in read_coco_results(saved(toy, results_of(toy)), NAME)}
    panoptic = dict((r["id"], o) for r, o in read_panoptic_results(toy / "panoptic_truth.json", NAME))
    writer = PredictionWriter(toy / "out", MetadataCatalog.get(NAME), write=["json"])
    for image_id, (record, output) in before.items():
        writer.process([record], [{**output, **panoptic[image_id]}])
    writer.evaluate()
    for record, output in read_coco_results(toy / "out" / "predictions.json", NAME):
        found, expected = output["instances"], before[record["id"]][1]["instances"]
        assert torch.equal(found.pred_masks, expected.pred_masks)
        assert torch.equal(found.pred_classes, expected.pred_classes)
    result = scored(read_panoptic_results(toy / "out" / "panoptic.json", NAME), PanopticEvaluator(NAME))
    assert result["panoptic_seg"]["PQ"] == 100.0


def changed(index, **fields):
    def change(results):
        results[index].update(fields)
        for key in [key for key, value in fields.items() if value is None]:
            del results[index][key]

    return change


def squeezed(results):
    results[4]["segmentation"]["size"] = [32, 24]


def cut(results):
    results[4]["segmentation"]["counts"] = results[4]["segmentation"]["counts"][:-2]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (changed(4, image_id=99), r"result 4 \(image 99\): the data set has no such image; takes .* 10"),
        (changed(4, image_id=14.0), r"result 4 \(image 14\.0\): the data set has no such image; takes .* 10"),
        (changed(4, image_id=[1]), r"result 4 .*no such image"),
        (changed(4, category_id=8), r"result 4 \(image 14\): unknown category_id 8; takes one of 3, 7"),
        (changed(4, category_id=3.0), r"result 4 \(image 14\): unknown category_id 3\.0; takes one of 3, 7"),
        (changed(4, category_id="cat"), r"unknown category_id 'cat'"),
        (changed(4, score=float("nan")), r"result 4 \(image 14\): score nan; takes a finite number"),
        (changed(4, score="0.5"), r"score '0\.5'"),
        (changed(4, score=10**400), r"score 1000.*; takes a finite number"),
        (changed(4, bbox=[1e39, 0, 1, 1]), r"bbox \[1e\+39, 0, 1, 1\]; takes"),
        (
            changed(4, segmentation=[[0, 0, 1e9, 0, 1e9, 1e9]]),
            r"result 4 .*corner at 1e\+09; takes pixels of the image",
        ),
        (changed(4, score=None), r"result 4 .*no 'score'"),
        (changed(4, bbox=[1, 2, 3]), r"bbox \[1, 2, 3\]; takes \[x, y, width, height\]"),
        (changed(4, bbox=[1, 2, -3, 4]), r"bbox \[1, 2, -3, 4\]"),
        (changed(4, bbox=[1, 2, float("inf"), 4]), r"bbox \[1, 2, inf, 4\]"),
        (changed(4, keypoints=[1, 2]), r"result 4 .*keypoints"),
        (changed(4, keypoints=[1, 2, 3]), r"1, 17 keypoints; takes one number"),
        (changed(4, segmentation=None), r"result 4 .*has bbox, keypoints, the first .*segmentation"),
        (changed(4, segmentation=[[1, 2]]), r"result 4 .*polygons"),
        (changed(4, segmentation={"counts": "0"}), r"result 4 .*without size"),
        (changed(4, segmentation={"size": [24.0, 32], "counts": [768]}), r"result 4 .*mask of 24\.0x32; takes .*24x32"),
        (changed(4, segmentation={"size": [24, 32], "counts": [5, 5]}), r"result 4 .*do not fill 24x32"),
        (changed(4, segmentation={"size": [24, 32], "counts": [-1, 769]}), r"result 4 .*do not fill 24x32"),
        (
            changed(4, segmentation={"size": [24, 32], "counts": "`<PO`<"}),  # runs 400, -32, 400
            r"result 4 \(image 14\): counts that do not fill 24x32",
        ),
        (squeezed, r"result 4 \(image 14\): mask of 32x24; takes the image's 24x32"),
        (cut, r"result 4 \(image 14\): counts that do not fill 24x32"),
        (lambda results: results.__setitem__(4, 7), r"result 4: int; takes an object"),
    ],
)
def test_results_at_fault_name_the_file_the_entry_and_what_is_right(toy, change, words):
    results = results_of(toy)
    change(results)
    with pytest.raises(UserError, match=rf"found\.json: .*{words}") as error:
        read_coco_results(saved(toy, results), NAME)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[{"image_id": 10, "categ', "not JSON, or cut off"),
        ('{"images": []}', "takes a list of COCO results"),
        ('{"annotations": [], "images": [{"id": 10}, {"id": 11}, {"id": 10}]}', "image id 10 stands twice"),
    ],
)
def test_files_at_fault_are_named(toy, text, words):
    with pytest.raises(UserError, match=rf"found\.json: .*{words}"):
        read_coco_results(saved(toy, text), NAME)
    with pytest.raises(UserError, match=r"none\.json: No such file"):
        read_coco_results(toy / "none.json", NAME)


def test_a_file_that_cannot_be_mapped_is_named(toy, monkeypatch):
    def fail(*_, **__):
        raise OSError(19, "No such device")

    monkeypatch.setattr("mmap.mmap", fail)
    with pytest.raises(UserError, match=r"truth\.json: .*No such device"):
        kind_of(toy / "truth.json")


def test_records_without_image_ids_are_named(toy):
    DatasetCatalog.remove(NAME)
    DatasetCatalog.register(NAME, lambda: [{"file_name": "10.jpg", "sem_seg_file_name": "10.png"}])
    with pytest.raises(UserError, match=r"10\.jpg has no 'image_id'"):
        read_coco_results(saved(toy, []), NAME)


def copied(toy, beside=False):
    """A second panoptic file with its PNGs, in its folder or beside it; and its content."""
    content = json.loads((toy / "panoptic_truth.json").read_text())
    folder = toy / "copy" if beside else toy / "copy" / "found"
    folder.mkdir(parents=True)
    for path in (toy / "panoptic_truth").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return toy / "copy" / "found.json", folder, content


@pytest.mark.parametrize("beside", [False, True])
def test_panoptic_files_score_as_what_they_hold(toy, beside):
    path, folder, content = copied(toy, beside)
    path.write_text(json.dumps(content))
    result = scored(read_panoptic_results(path, NAME), PanopticEvaluator(NAME))
    assert set(result["panoptic_seg"].values()) == {100.0}
    ids = np.full(SIZE, 0)
    for annotation in content["annotations"]:
        save_ids(folder / annotation["file_name"], ids)
    result = scored(read_panoptic_results(path, NAME), PanopticEvaluator(NAME))
    assert set(result["panoptic_seg"].values()) == {0.0}


def segment(**fields):
    return lambda annotations: annotations[2]["segments_info"][0].update(fields)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: a[2].update(image_id=99), r"annotation 2 \(image 99\): the ground truth has no such image"),
        (lambda a: a[2].update(image_id=10), r"annotation 2 \(image 10\): the image has an annotation before it"),
        (lambda a: a.pop(2), r"no annotation of image 12, 1 missing; takes one for each of 6"),
        (lambda a: a[2].pop("file_name"), r"annotation 2 has no 'file_name'"),
        (segment(category_id=8), r"annotation 2 \(image 12\): segment \d+ has the unknown category_id 8; .*3, 7, 90"),
        (segment(id=0), r"annotation 2 .*segment id 0; takes numbers from 1"),
        (segment(score=float("nan")), r"annotation 2 .*score nan"),
        (lambda a: a[2].update(segments_info=5), r"annotation 2 .*segments_info is no list"),
        (lambda a: a.append(5), r"'annotations' is no list of objects"),
        (lambda a: a[2].update(file_name="none.png"), r"none\.png"),
        (lambda a: a[2].update(file_name=5), r"annotation 2 \(image 12\): file_name 5; takes"),
    ],
)
def test_panoptic_annotations_at_fault_name_the_file_and_the_entry(toy, change, words):
    path, _, content = copied(toy)
    change(content["annotations"])
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=words) as error:
        read_panoptic_results(path, NAME)
    assert "\n" not in str(error.value) and "copy" in str(error.value)


def test_panoptic_pngs_at_fault_are_named(toy):
    path, folder, content = copied(toy)
    path.write_text(json.dumps(content)[:-9])
    with pytest.raises(UserError, match=r"found\.json: not JSON"):
        read_panoptic_results(path, NAME)
    path.write_text(json.dumps(content))
    save_ids(folder / "12.png", np.full(SIZE, 4))
    with pytest.raises(UserError, match=r"12\.png: segment id 4 is not in segments_info"):
        list(read_panoptic_results(path, NAME))
    save_ids(folder / "12.png", np.full((4, 5), 0))
    with pytest.raises(UserError, match=r"12\.png: 4x5; takes the image's 24x32"):
        read_panoptic_results(path, NAME)
    del MetadataCatalog.get(NAME).panoptic_json
    with pytest.raises(UserError, match=f"'{NAME}' has no panoptic_json"):
        read_panoptic_results(path, NAME)
