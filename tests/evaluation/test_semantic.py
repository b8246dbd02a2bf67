"""The semantic evaluator: detectron2's numbers, raw labels, and inputs at fault that are named."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import SemSegEvaluator
from PIL import Image

from seg_ext.errors import UserError
from seg_ext.evaluation import EVALUATORS, SemanticEvaluator, results_table

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
    assert ours.keys() == {key for key in theirs if not key.startswith(("BoundaryIoU", "min("))}
    for key, value in ours.items():
        np.testing.assert_allclose(value, theirs[key], rtol=0, atol=1e-9, err_msg=key)


def test_a_perfect_prediction_is_100_and_an_absent_class_nan(toy):
    result = evaluated(SemanticEvaluator("toy_semantic"), toy, [{"sem_seg": scores_for(labels_of(r))} for r in toy])
    assert [result[key] for key in ("mIoU", "fwIoU", "mACC", "pACC", "IoU-car")] == [100.0] * 5
    assert np.isnan(result["IoU-boat"]) and np.isnan(result["ACC-boat"])


def test_an_all_wrong_prediction_is_0(toy):
    outputs = [{"sem_seg": scores_for((labels_of(r) + 1) % 4)} for r in toy]
    result = evaluated(SemanticEvaluator("toy_semantic"), toy, outputs)
    assert [result[key] for key in ("mIoU", "fwIoU", "mACC", "pACC")] == [0.0] * 4


def test_a_label_map_is_preferred_to_scores(toy):
    right, wrong = scores_for(labels_of(toy[0])), scores_for((labels_of(toy[0]) + 1) % 4)
    output = {"sem_seg_labels": right.argmax(0).to(torch.uint8), "sem_seg": wrong}
    assert evaluated(SemanticEvaluator("toy_semantic"), toy[:1], [output])["pACC"] == 100.0


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
    assert "IoU-1" in SemanticEvaluator("toy_nameless", num_classes=2).evaluate()["sem_seg"]
    MetadataCatalog.remove("toy_nameless")


def test_every_evaluator_type_has_its_evaluators():
    assert {kind: [e.__name__ for e in evaluators] for kind, evaluators in EVALUATORS.items()} == {
        "sem_seg": ["SemanticEvaluator"],
        "cityscapes_sem_seg": ["SemanticEvaluator"],
        "coco": ["InstanceEvaluator"],
        "coco_panoptic_seg": ["SemanticEvaluator", "InstanceEvaluator", "PanopticEvaluator"],
    }


def test_the_table_shows_what_exists_on_80_columns():
    semantic = {"mIoU": 100.0, "pACC": 91.234, "IoU-a class whose name is much too long": 100.0, "IoU-b": float("nan")}
    ap = {"AP": 100.0, "AP50": 100.0}
    full = {"sem_seg": semantic, "bbox": ap, "segm": ap, "panoptic_seg": {"PQ": 100.0, "SQ": 100.0, "RQ": 100.0}}
    lines = results_table(full).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == "mIoU pix acc box AP AP50 mask AP AP50 PQ SQ RQ".split()
    assert lines[2].split() == ["100.00", "91.23"] + ["100.00"] * 7
    assert lines[-1].split() == ["a", "class", "whose", "name", "is", "much", "t", "100.00", "b", "-"]


def test_the_table_leaves_out_what_is_missing_and_many_classes():
    many = {"mIoU": 50.0, **{f"IoU-{i}": 50.0 for i in range(21)}}
    assert results_table({"sem_seg": many}).split() == ["mIoU", "------", "50.00"]
    assert results_table({"segm": {"AP": 1.0}}).split() == ["mask", "AP", "---------", "1.00"]
    assert results_table({}) == "no scores"
