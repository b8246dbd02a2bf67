"""The panoptic evaluator: hotcoco's numbers, category ids in both directions, and inputs at fault that are named."""

import json

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from hotcoco.panoptic import PanopticEval
from PIL import Image

from seg_ext.errors import UserError
from seg_ext.evaluation import PanopticEvaluator

NAME = "toy_panoptic"
SIZE = (24, 32)
CATEGORIES = {1: "cat", 2: "dog", 40: "sky", 17: "road"}
THINGS = {1: 0, 2: 1}
STUFF = {40: 0, 17: 1, 1: 2, 2: 3}  # semantic classes, things among them
METADATA = {
    "thing_classes": ["cat", "dog"],
    "stuff_classes": ["sky", "road", "cat", "dog"],
    "thing_dataset_id_to_contiguous_id": THINGS,
    "stuff_dataset_id_to_contiguous_id": STUFF,
}


def save_ids(path, ids):
    Image.fromarray(np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)).save(path)


def random_segments(rng):
    """Ids beyond 16 bits on a map of blocks with void among them, and the category of each id."""
    categories = list(CATEGORIES)
    ids = rng.integers(1, 200_000, 6)
    blocks = rng.choice(np.append(ids, 0), (6, 8)).repeat(4, axis=0).repeat(4, axis=1)
    return blocks, {int(i): categories[k % 4] for k, i in enumerate(ids) if i in blocks}


@pytest.fixture
def toy(tmp_path):
    """Five images: map of ids, category of each, crowd regions (one a class at most); written as PNG and JSON."""
    rng = np.random.default_rng(0)
    truth, annotations = {}, []
    (tmp_path / "truth").mkdir()
    for i in range(5):
        ids, categories = random_segments(rng)
        crowd = set([s for s, c in categories.items() if c == 1][:1] if i % 2 else [])
        truth[i] = ids, categories, crowd
        save_ids(tmp_path / "truth" / f"{i}.png", ids)
        segments = [
            {"id": s, "category_id": c, "iscrowd": int(s in crowd), "area": int((ids == s).sum()), "bbox": [0, 0, 1, 1]}
            for s, c in categories.items()
        ]
        annotations.append({"image_id": i, "file_name": f"{i}.png", "segments_info": segments})
    coco = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": SIZE[0], "width": SIZE[1]} for i in truth],
        "annotations": annotations,
        "categories": [{"id": c, "name": n, "isthing": int(c in THINGS)} for c, n in CATEGORIES.items()],
    }
    (tmp_path / "truth.json").write_text(json.dumps(coco))
    DatasetCatalog.register(NAME, lambda: [{"file_name": f"{i}.jpg", "image_id": i} for i in truth])
    paths = {"panoptic_json": str(tmp_path / "truth.json"), "panoptic_root": str(tmp_path / "truth")}
    MetadataCatalog.get(NAME).set(**paths, **METADATA)
    yield truth
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def guess(truth):
    """Ids and dataset categories: the ground truth's with wrong blocks, wrong classes and void."""
    rng = np.random.default_rng(1)
    result = {}
    for i, (ids, categories, _) in truth.items():
        pred, other = ids.copy(), random_segments(rng)
        wrong = (rng.random((6, 8)) < 0.25).repeat(4, axis=0).repeat(4, axis=1)
        pred[wrong] = other[0][wrong]
        pred[rng.random(SIZE) < 0.1] = 0
        found = {**other[1], **categories}
        found = {s: 2 if found[s] == 1 and rng.random() < 0.3 else found[s] for s in np.unique(pred).tolist() if s}
        result[i] = pred, found
    return result


def output(ids, categories):
    """detectron2's format, contiguous ids."""
    segments = [
        {"id": s, "isthing": c in THINGS, "category_id": THINGS[c] if c in THINGS else STUFF[c]}
        for s, c in categories.items()
    ]
    return {"panoptic_seg": (torch.from_numpy(ids.astype(np.int32)), segments)}


def evaluated(evaluator, outputs):
    evaluator.reset()
    for i, found in outputs.items():
        evaluator.process([{"image_id": i, "file_name": f"{i}.jpg"}], [found])
    return evaluator.evaluate()["panoptic_seg"]


def test_equals_hotcoco(toy, tmp_path):
    found = guess(toy)
    ours = evaluated(PanopticEvaluator(NAME), {i: output(*x) for i, x in found.items()})
    (tmp_path / "pred").mkdir()
    annotations = []
    for i, (ids, categories) in found.items():
        save_ids(tmp_path / "pred" / f"{i}.png", ids)
        segments = [{"id": s, "category_id": c} for s, c in categories.items()]
        annotations.append({"image_id": i, "file_name": f"{i}.png", "segments_info": segments})
    (tmp_path / "pred.json").write_text(json.dumps({"annotations": annotations}))
    peer = PanopticEval(tmp_path / "truth.json", tmp_path / "pred.json")
    peer.evaluate()
    theirs = peer.results()
    assert 10 < ours["PQ"] < 90
    for suffix, group in (("", "All"), ("_th", "Things"), ("_st", "Stuff")):
        for name in ("PQ", "SQ", "RQ"):
            assert ours[name + suffix] == pytest.approx(100 * theirs[group][name.lower()], abs=1e-9), name + suffix
    for category, name in CATEGORIES.items():
        for key in ("PQ", "SQ", "RQ"):
            peers = theirs["per_class"][category][key.lower()]
            assert ours[f"{key}-{name}"] == pytest.approx(100 * peers, abs=1e-9), (key, name)


def test_a_perfect_prediction_is_100(toy):
    result = evaluated(PanopticEvaluator(NAME), {i: output(ids, c) for i, (ids, c, _) in toy.items()})
    assert set(result.values()) == {100.0}
    assert result.keys() == {
        *("PQ", "SQ", "RQ", "PQ_th", "SQ_th", "RQ_th", "PQ_st", "SQ_st", "RQ_st"),
        *(f"{key}-{name}" for key in ("PQ", "SQ", "RQ") for name in CATEGORIES.values()),
    }


def test_an_all_wrong_prediction_is_0(toy):
    swapped = {1: 2, 2: 40, 40: 17, 17: 1}
    outputs = {
        i: output(ids, {s: swapped[c] for s, c in categories.items()}) for i, (ids, categories, _) in toy.items()
    }
    assert set(evaluated(PanopticEvaluator(NAME), outputs).values()) == {0.0}


def test_an_empty_prediction_is_0_and_no_image_nan(toy):
    empty = {i: output(np.zeros(SIZE), {}) for i in toy}
    assert set(evaluated(PanopticEvaluator(NAME), empty).values()) == {0.0}
    assert all(np.isnan(value) for value in evaluated(PanopticEvaluator(NAME), {}).values())


def test_areas_stated_in_the_json_play_no_part(toy):
    outputs = {i: output(*x) for i, x in guess(toy).items()}
    before = evaluated(PanopticEvaluator(NAME), outputs)
    change_json(lambda coco: [s.update(area=1) for a in coco["annotations"] for s in a["segments_info"]])
    assert evaluated(PanopticEvaluator(NAME), outputs) == before


def test_segments_of_none_are_read_from_the_ids(toy):
    MetadataCatalog.get(NAME).label_divisor = 1000
    found = guess(toy)
    outputs = {}
    for i, (ids, categories) in found.items():
        encoded = np.full(SIZE, -1)
        for instance, (s, c) in enumerate(categories.items()):
            encoded[ids == s] = STUFF[c] * 1000 + instance
        outputs[i] = {"panoptic_seg": (torch.from_numpy(encoded), None)}
    expected = evaluated(PanopticEvaluator(NAME), {i: output(*x) for i, x in found.items()})
    assert evaluated(PanopticEvaluator(NAME), outputs) == expected


def test_segments_without_isthing_carry_the_data_sets_ids(toy):
    outputs = {}
    for i, (ids, categories, _) in toy.items():
        segments = [{"id": s, "category_id": c} for s, c in categories.items()]
        outputs[i] = {"panoptic_seg": (torch.from_numpy(ids), segments)}
    assert evaluated(PanopticEvaluator(NAME), outputs)["PQ"] == 100.0


def test_image_ids_match_as_text_and_are_found_by_file_name(toy):
    evaluator = PanopticEvaluator(NAME)
    evaluator.process([{"image_id": "0"}, {"file_name": "1.jpg"}], [output(*toy[i][:2]) for i in (0, 1)])
    assert evaluator.evaluate()["panoptic_seg"]["PQ"] == 100.0


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"sem_seg": None}, r"0\.png.*sem_seg.*panoptic_seg"),
        (output(np.zeros((4, 4)), {}), r"0\.png.*\(4, 4\).*\(24, 32\)"),
        (output(np.full(SIZE, 8), {}), r"0\.png.*prediction.*\[8\]"),
        ({"panoptic_seg": (torch.zeros(SIZE), None)}, r"0\.png.*label_divisor"),
        (
            {"panoptic_seg": (torch.ones(SIZE).int(), [{"id": 1, "isthing": True, "category_id": 9}])},
            r"0\.png.*classes \[-1\]",
        ),
    ],
)
def test_a_prediction_at_fault_names_the_file(toy, found, words):
    with pytest.raises(UserError, match=words):
        evaluated(PanopticEvaluator(NAME), {0: found})


def test_an_image_without_ground_truth_is_named(toy):
    with pytest.raises(UserError, match=r"77\.jpg.*image_id 77"):
        evaluated(PanopticEvaluator(NAME), {77: output(np.zeros(SIZE), {})})


def change_json(change):
    path = MetadataCatalog.get(NAME).panoptic_json
    with open(path) as file:
        coco = json.load(file)
    change(coco)
    with open(path, "w") as file:
        json.dump(coco, file)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda coco: coco.pop("annotations"), r"truth\.json: no 'annotations'"),
        (lambda coco: coco["annotations"][3].pop("segments_info"), r"truth\.json.*annotation 3 has no 'segments_info'"),
        (lambda coco: coco["annotations"].append(5), r"truth\.json: 'annotations' is no list of objects"),
        (lambda coco: coco["annotations"][3].update(segments_info=None), r"truth\.json.*image 3.*no list of objects"),
        (lambda coco: coco["annotations"][3].update(file_name=None), r"truth\.json.*image 3.*file_name None; takes"),
        (
            lambda coco: coco["annotations"][3]["segments_info"].append(coco["annotations"][3]["segments_info"][0]),
            r"truth\.json.*image 3.*each once",
        ),
        (
            lambda coco: coco["annotations"][3]["segments_info"][0].update(id="7"),
            r"truth\.json.*image 3.*id '7'; takes",
        ),
        (lambda coco: coco["annotations"][3]["segments_info"][0].update(category_id=[7]), r"category_id \[7\]; takes"),
        (lambda coco: coco["annotations"][3]["segments_info"][0].pop("id"), r"truth\.json.*image 3.*no 'id'"),
        (lambda coco: coco["annotations"][3]["segments_info"][0].update(category_id=99), r"truth\.json: category 99"),
    ],
)
def test_ground_truth_at_fault_names_the_file(toy, change, words):
    change_json(change)
    with pytest.raises(UserError, match=words):
        PanopticEvaluator(NAME)


def test_a_segment_that_the_json_does_not_list_names_the_picture(toy):
    change_json(lambda coco: coco["annotations"][0]["segments_info"].pop())
    with pytest.raises(UserError, match=r"0\.png: the ground truth has segments without a class"):
        evaluated(PanopticEvaluator(NAME), {0: output(np.zeros(SIZE), {})})


def test_missing_metadata_are_named(toy):
    del MetadataCatalog.get(NAME).panoptic_root
    with pytest.raises(UserError, match=f"{NAME}.*panoptic_root"):
        PanopticEvaluator(NAME)
