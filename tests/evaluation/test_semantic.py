"""The semantic evaluator: detectron2's numbers, raw labels, and inputs at fault that are named."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import SemSegEvaluator
from detectron2.utils import comm
from PIL import Image

from seg_ext.errors import UserError
from seg_ext.evaluation import EVALUATORS, SemanticEvaluator, results_table
from seg_ext.evaluation.semantic import METRICS
from seg_ext.metrics import boundary_counts, class_scores, contour_f1

CLASSES = ("sky", "road", "car", "tree", "boat")
SIZE = (12, 16)


@pytest.fixture
def toy(tmp_path):
    """Records of four images; "boat" is in none, and every label map has ignored pixels."""
    rng = np.random.default_rng(0)
    records = []
    for i in range(4):
        labels = rng.integers(0, 4, SIZE)
        labels[rng.random(SIZE) < 0.2] = 255
        path = tmp_path / f"{i}.png"
        Image.fromarray(labels.astype(np.uint8)).save(path)
        records.append({"file_name": f"{i}.jpg", "sem_seg_file_name": str(path)})
    yield from registered("toy_semantic", records, stuff_classes=list(CLASSES), ignore_label=255)


def registered(name, records, **metadata):
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(evaluator_type="sem_seg", **metadata)
    yield records
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def labels_of(record):
    return np.array(Image.open(record["sem_seg_file_name"])).astype(np.int64)


def read_as_numpy_2_allows(path, dtype):
    """detectron2's own reader asks numpy for no copy, which numpy 2 refuses."""
    return np.array(Image.open(path), dtype=dtype)


def scores_for(labels):
    """(K, H, W) logits whose argmax is a label map; ignored pixels are given to the last class."""
    ids = torch.as_tensor(np.where(labels == 255, len(CLASSES) - 1, labels))
    return torch.nn.functional.one_hot(ids, len(CLASSES)).permute(2, 0, 1).float()


def evaluated(evaluator, records, outputs):
    evaluator.reset()
    for record, output in zip(records, outputs, strict=True):
        evaluator.process([record], [output])
    return evaluator.evaluate()["sem_seg"]


def test_equals_detectron2(toy):
    generator = torch.Generator().manual_seed(0)
    outputs = [
        {"sem_seg": torch.randn(len(CLASSES), *SIZE, generator=generator) + scores_for(labels_of(r))} for r in toy
    ]
    ours = evaluated(SemanticEvaluator("toy_semantic"), toy, outputs)
    peer = SemSegEvaluator("toy_semantic", distributed=False, sem_seg_loading_fn=read_as_numpy_2_allows)
    theirs = evaluated(peer, toy, outputs)
    assert 20 < ours["mIoU"] < 60
    assert set(theirs) <= set(ours), "scripts that read detectron2's keys find all of them"
    for key, value in theirs.items():
        if not key.startswith(("BoundaryIoU", "min(")):  # those, detectron2 takes of the label map eroded once
            np.testing.assert_allclose(ours[key], value, rtol=0, atol=1e-9, err_msg=key)


def is_class(key, *names):
    return key.endswith(tuple(f"-{name}" for name in names))


def test_a_perfect_prediction_is_100_on_every_score_and_an_absent_class_nan(toy):
    outputs = [{"sem_seg": 1000 * scores_for(labels_of(r))} for r in toy]
    result = evaluated(SemanticEvaluator("toy_semantic", metrics=METRICS), toy, outputs)
    assert result.pop("ECE") == result.pop("AURC") == 0.0
    absent = {key for key in result if is_class(key, "boat")}
    assert len(absent) == 6 and all(np.isnan(result.pop(key)) for key in absent)
    assert set(result.values()) == {100.0} and {"mDice", "mBoundaryIoU", "BF", "TrimapIoU@1"} < set(result)


def test_an_all_wrong_prediction_is_0_on_every_score(toy):
    outputs = [{"sem_seg": 1000 * scores_for(np.full(SIZE, 4))} for r in toy]
    result = evaluated(SemanticEvaluator("toy_semantic", metrics=METRICS), toy, outputs)
    assert result.pop("ECE") == result.pop("AURC") == 100.0
    assert {value for key, value in result.items() if not is_class(key, "boat")} == {0.0}
    shifted = [{"sem_seg": scores_for((labels_of(r) + 1) % 4)} for r in toy]
    result = evaluated(SemanticEvaluator("toy_semantic", metrics=["boundary", "trimap"]), toy, shifted)
    assert {value for key, value in result.items() if not is_class(key, "boat")} == {0.0}


def noisy(records):
    generator = torch.Generator().manual_seed(0)
    return [{"sem_seg": torch.randn(5, *SIZE, generator=generator) + scores_for(labels_of(r))} for r in records]


def test_boundary_scores_are_those_of_the_counts_of_all_images_and_bf_a_mean_over_images(toy):
    outputs = noisy(toy)
    result = evaluated(SemanticEvaluator("toy_semantic", metrics=METRICS), toy, outputs)
    maps = [(o["sem_seg"].argmax(0).numpy(), labels_of(r)) for o, r in zip(outputs, toy, strict=True)]
    inner, _, _ = class_scores(sum(boundary_counts(*pair, 5, ignore=255) for pair in maps))
    np.testing.assert_allclose([result[f"BoundaryIoU-{c}"] for c in CLASSES], 100 * inner, rtol=0, atol=1e-9)
    assert result["mBoundaryIoU"] == pytest.approx(100 * np.nanmean(inner))
    assert result["min(IoU, B-Iou)-car"] == min(result["IoU-car"], result["BoundaryIoU-car"])
    f1 = np.stack([contour_f1(*pair, 5, ignore=255)[:4] for pair in maps])  # all four have all but the boat
    np.testing.assert_allclose([result[f"BF-{c}"] for c in CLASSES[:4]], 100 * f1.mean(0), rtol=0, atol=1e-9)
    assert result["BF"] == pytest.approx(100 * f1.mean(1).mean())


def test_the_calibration_error_is_that_of_the_softmax_and_nan_without_scores(toy):
    outputs = noisy(toy)
    result = evaluated(SemanticEvaluator("toy_semantic", metrics=["calibration"]), toy, outputs)
    labels = np.stack([labels_of(r) for r in toy])
    sure, guess = (x.numpy() for x in torch.stack([o["sem_seg"] for o in outputs]).double().softmax(1).max(1))
    sure, right = sure[labels != 255], (guess == labels)[labels != 255]
    bins = np.ceil(sure * 15).astype(int)
    error = sum(abs((right[bins == b] - sure[bins == b]).sum()) for b in range(1, 16)) / sure.size
    assert result["ECE"] == pytest.approx(100 * error, abs=1e-4)
    ids = [{"sem_seg_labels": o["sem_seg"].argmax(0)} for o in outputs]
    assert np.isnan(evaluated(SemanticEvaluator("toy_semantic", metrics=["calibration"]), toy, ids)["ECE"])


@pytest.mark.parametrize("ranks", [2, 3])
def test_several_processes_score_as_one(toy, ranks, monkeypatch):
    outputs = noisy(toy)
    one = evaluated(SemanticEvaluator("toy_semantic", metrics=METRICS), toy, outputs)
    evaluators, sent = [SemanticEvaluator("toy_semantic", metrics=METRICS) for _ in range(ranks)], []
    monkeypatch.setattr(comm, "gather", lambda data: sent.append(pickle.dumps(data)) or [])
    for rank, evaluator in enumerate(evaluators):
        for record, output in list(zip(toy, outputs, strict=True))[rank::ranks]:
            evaluator.process([record], [output])
        assert evaluator.evaluate() == {}
    monkeypatch.setattr(comm, "gather", lambda data: [pickle.loads(part) for part in sent])
    several = evaluators[0].evaluate()["sem_seg"]
    assert several.keys() == one.keys()
    for key, value in one.items():
        np.testing.assert_allclose(several[key], value, rtol=0, atol=1e-12, err_msg=key)


def test_each_image_hands_on_its_counts(toy):
    seen = []
    evaluator = SemanticEvaluator("toy_semantic", on_image=lambda image, counts: seen.append((image, counts)))
    evaluated(evaluator, toy, noisy(toy))
    assert [image["file_name"] for image, _ in seen] == [r["file_name"] for r in toy]
    correct, truth, predicted = sum(counts for _, counts in seen).T
    np.testing.assert_array_equal(correct, evaluator.confusion.diagonal())
    np.testing.assert_array_equal(truth, evaluator.confusion.sum(1))
    np.testing.assert_array_equal(predicted, evaluator.confusion[:, :5].sum(0))


MEMORY = """
import gc, sys, numpy as np, torch, resource
from PIL import Image
from detectron2.data import MetadataCatalog
from seg_ext.evaluation import SemanticEvaluator
from seg_ext.evaluation.semantic import METRICS
torch.set_num_threads(1)
labels = np.random.default_rng(0).integers(0, 3, (4, 4), np.uint8).repeat(24, 0).repeat(24, 1)
Image.fromarray(labels).save(sys.argv[1])
scores = torch.nn.functional.one_hot(torch.from_numpy(np.roll(labels, 5, 1)).long(), 3).permute(2, 0, 1).float()
MetadataCatalog.get("flat").set(stuff_classes=["a", "b", "c"])
evaluator = SemanticEvaluator("flat", metrics=METRICS)
def resident():
    gc.collect()
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
for i in range(500):
    record = {"file_name": f"{i}.jpg", "sem_seg_file_name": sys.argv[1]}
    evaluator.process([record], [{"sem_seg": scores + i}])
    if i == 60:
        before = resident()
assert evaluator.evaluate()["sem_seg"]["mIoU"] > 0
print(resident() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_stays_flat_over_500_images(tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", MEMORY, str(tmp_path / "a.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 3 << 20, "440 label maps of a byte a pixel would be 4 MB, of int32 16"


def test_a_label_map_is_preferred_to_scores(toy):
    right, wrong = scores_for(labels_of(toy[0])), scores_for((labels_of(toy[0]) + 1) % 4)
    output = {"sem_seg_labels": right.argmax(0).to(torch.uint8), "sem_seg": wrong}
    found = evaluated(SemanticEvaluator("toy_semantic", metrics=["calibration"]), toy[:1], [output])
    sure = wrong.softmax(0).gather(0, right.argmax(0)[None])  # of the labels, which are right
    assert found["pACC"] == 100.0 and found["ECE"] == pytest.approx(100 * (1 - sure.mean().item()), abs=1e-3)


def test_the_confusion_matrix_is_exposed_and_counts_what_is_not_ignored(toy):
    evaluator = SemanticEvaluator("toy_semantic")
    evaluated(evaluator, toy, [{"sem_seg": scores_for(labels_of(r))} for r in toy])
    assert evaluator.confusion.shape == (5, 6)
    assert evaluator.confusion.trace() == sum((labels_of(r) != 255).sum() for r in toy)


def test_evaluating_twice_counts_once_and_reset_forgets(toy):
    evaluator = SemanticEvaluator("toy_semantic")
    first = evaluated(evaluator, toy, [{"sem_seg": scores_for(labels_of(r))} for r in toy])
    total = evaluator.confusion.sum()
    np.testing.assert_equal(evaluator.evaluate()["sem_seg"], first)
    assert evaluator.confusion.sum() == total
    evaluator.reset()
    result = evaluator.evaluate()["sem_seg"]
    assert np.isnan(result["mIoU"]) and np.isnan(result["pACC"]) and evaluator.confusion.sum() == 0


@pytest.mark.parametrize("mode", ["P", "L"])
def test_raw_ids_go_through_the_label_map(tmp_path, mode):
    labels = np.array([[0, 1, 11], [11, 1, 0]], np.uint8)
    image = Image.fromarray(labels)
    if mode == "P":
        image.putpalette(list(range(255, -1, -1)) * 3)
    image.save(tmp_path / "a.png")
    records = [{"file_name": "a.jpg", "sem_seg_file_name": str(tmp_path / "a.png")}]
    toy = registered("toy_mapped", records, stuff_classes=["a", "b"], ignore_label=255, label_map={11: 255})
    next(toy)
    result = evaluated(
        SemanticEvaluator("toy_mapped"), records, [{"sem_seg_labels": torch.tensor([[0, 1, 0], [1, 1, 1]])}]
    )
    next(toy, None)
    assert result["pACC"] == 75.0 and result["mIoU"] == pytest.approx(100 * (1 / 2 + 2 / 3) / 2)


def test_ground_truth_is_found_by_file_name_where_the_input_lost_its_path(toy):
    inputs = [{"file_name": r["file_name"]} for r in toy]
    result = evaluated(SemanticEvaluator("toy_semantic"), inputs, [{"sem_seg": scores_for(labels_of(r))} for r in toy])
    assert result["mIoU"] == 100.0
    with pytest.raises(UserError, match="stranger.jpg.*toy_semantic.*sem_seg_file_name"):
        evaluated(SemanticEvaluator("toy_semantic"), [{"file_name": "stranger.jpg"}], [{}])


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ({"sem_seg": torch.zeros(5, 6, 16)}, r"0\.png.*12x16.*6x16"),
        ({"sem_seg": torch.full((5, *SIZE), float("nan"))}, r"0\.jpg.*NaN"),
        ({"sem_seg": torch.zeros(3, *SIZE)}, r"0\.jpg.*3 classes.*5"),
        ({"instances": None}, r"0\.jpg.*instances.*sem_seg"),
    ],
)
def test_a_prediction_at_fault_names_the_file(toy, output, words):
    with pytest.raises(UserError, match=words):
        evaluated(SemanticEvaluator("toy_semantic"), toy[:1], [output])


def test_a_label_outside_the_classes_names_the_file(toy):
    MetadataCatalog.get("toy_semantic").__dict__["stuff_classes"] = list(CLASSES[:3])
    with pytest.raises(UserError, match=r"0\.png.*3"):
        evaluated(SemanticEvaluator("toy_semantic"), toy[:1], [{"sem_seg": torch.zeros(3, *SIZE)}])


def test_a_data_set_without_classes_or_with_others_is_refused(toy):
    with pytest.raises(UserError, match="toy_nameless.*stuff_classes"):
        SemanticEvaluator("toy_nameless")
    with pytest.raises(UserError, match="num_classes 7.*5"):
        SemanticEvaluator("toy_semantic", num_classes=7)
    with pytest.raises(UserError, match="semantic metric 'iou'.*boundary, bf"):
        SemanticEvaluator("toy_semantic", metrics=["iou"])
    assert "IoU-1" in SemanticEvaluator("toy_nameless", num_classes=2).evaluate()["sem_seg"]
    MetadataCatalog.remove("toy_nameless")


def test_every_evaluator_type_has_its_evaluators():
    assert {kind: [e.__name__ for e in evaluators] for kind, evaluators in EVALUATORS.items()} == {
        "sem_seg": ["SemanticEvaluator"],
        "cityscapes_sem_seg": ["SemanticEvaluator"],
        "coco": ["InstanceEvaluator"],
        "cityscapes_instance": ["InstanceEvaluator"],
        "pascal_voc": ["VocBoxEvaluator"],
        "coco_panoptic_seg": ["SemanticEvaluator", "InstanceEvaluator", "PanopticEvaluator"],
        "ade20k_panoptic_seg": ["SemanticEvaluator", "InstanceEvaluator", "PanopticEvaluator"],
        "cityscapes_panoptic_seg": ["SemanticEvaluator", "PanopticEvaluator"],
        "mapillary_vistas_panoptic_seg": ["SemanticEvaluator", "PanopticEvaluator"],
    }


def test_the_table_shows_what_exists_on_80_columns():
    semantic = {"mIoU": 100.0, "pACC": 91.234, "IoU-a class whose name is much too long": 100.0, "IoU-b": float("nan")}
    ap = {"AP": 100.0, "AP50": 100.0}
    full = {"sem_seg": semantic, "bbox": ap, "segm": ap, "panoptic_seg": {"PQ": 100.0, "SQ": 100.0, "RQ": 100.0}}
    lines = results_table(full).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == "mIoU pix acc box AP AP50 mask AP AP50 PQ SQ RQ".split()
    assert lines[2].split() == ["100.00", "91.23"] + ["100.00"] * 7
    assert lines[-3].split() == ["a", "class", "whose", "name", "is", "much", "t", "100.00", "b", "-"]
    assert lines[-1] == "1 of 2 classes are not in the ground truth, and in no mean: b"


def test_the_table_has_boundary_scores_where_there_are_any(toy):
    result = evaluated(SemanticEvaluator("toy_semantic", metrics=METRICS), toy, noisy(toy))
    lines = results_table({"sem_seg": result}).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == "mIoU pix acc Dice B-IoU BF trimap@5 ECE AURC".split()
    assert lines[4].split() == ["class", "IoU", "B-IoU"] * 2
    row = "sky", *(f"{result[f'{key}-sky']:.2f}" for key in ("IoU", "BoundaryIoU"))
    assert tuple(lines[6].split())[:3] == row and lines[-1].endswith(": boat")


def test_the_table_leaves_out_what_is_missing_and_many_classes():
    many = {"mIoU": 50.0, **{f"IoU-{i}": 50.0 for i in range(21)}}
    assert results_table({"sem_seg": many}).split() == ["mIoU", "------", "50.00"]
    assert results_table({"segm": {"AP": 1.0}}).split() == ["mask", "AP", "---------", "1.00"]
    assert results_table({}) == "no scores"
