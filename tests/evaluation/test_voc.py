"""The evaluator of PASCAL VOC's boxes: detectron2's numbers on a toy tree, both years' rules, inputs at fault."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_pascal_voc
from detectron2.evaluation import PascalVOCDetectionEvaluator
from detectron2.structures import Boxes, Instances

from seg_ext.errors import UserError
from seg_ext.evaluation import VocBoxEvaluator

NAME, NAMES = "toy_voc_boxes", ["cat", "dog", "cow"]
OBJECT = (
    "<object><name>{}</name><pose>Left</pose><truncated>0</truncated><difficult>{}</difficult><bndbox>"
    "<xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
)


def write_tree(folder, rows):
    for part in ("Annotations", "ImageSets/Main"):
        (folder / part).mkdir(parents=True)
    (folder / "ImageSets/Main/test.txt").write_text("\n".join(rows) + "\n")
    for image_id, objects in rows.items():
        body = "".join(OBJECT.format(*o) for o in objects)
        size = "<size><width>100</width><height>80</height></size>"
        (folder / f"Annotations/{image_id}.xml").write_text(f"<annotation>{size}{body}</annotation>")


@pytest.fixture(params=[2007, 2012])
def tree(request, tmp_path):
    """Objects by image: name, difficult, corners counted from 1; cows are all difficult, and one name is unknown."""
    rng, rows = np.random.default_rng(0), {}
    for number in range(8):
        objects = []
        for name in rng.choice(["cat", "dog", "dog", "cow"], 5):
            x, y = rng.integers(1, 60, 2)
            w, h = rng.integers(8, 35, 2)
            objects.append((name, int(name == "cow" or rng.random() < 0.2), x, y, min(100, x + w), min(80, y + h)))
        rows[f"{number:06d}"] = objects
    write_tree(tmp_path, rows)
    register_pascal_voc(NAME, str(tmp_path), "test", request.param, class_names=NAMES)
    yield rows
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def guesses(rows, noise):
    """Image id -> instances; boxes to a tenth of a pixel and scores to a thousandth, as the text files have them."""
    rng, result = np.random.default_rng(1), {}
    scores = iter(rng.permutation(np.arange(1, 1000)) / 1000)
    for image_id, objects in rows.items():
        boxes = np.array([[x - 1, y - 1, x1, y1] for _, _, x, y, x1, y1 in objects], float)
        boxes += (rng.integers(-40, 41, boxes.shape) / 10) * noise
        classes = [NAMES.index(o[0]) if rng.random() < 1 - 0.2 * noise else int(rng.integers(2)) for o in objects]
        found = Instances((80, 100))
        found.pred_boxes, found.pred_classes = Boxes(torch.from_numpy(boxes)), torch.tensor(classes)
        found.scores = torch.tensor([next(scores) for _ in objects])
        result[image_id] = found
    return result


def evaluated(evaluator, found):
    evaluator.reset()
    for image_id, x in found.items():
        evaluator.process([{"image_id": image_id, "file_name": f"{image_id}.jpg"}], [{"instances": x}])
    return evaluator.evaluate()["bbox"]


def without_cows(tree, found):
    """detectron2 knows no class without an object, so it is asked about the other two."""
    for path in Path(MetadataCatalog.get(NAME).dirname).glob("Annotations/*.xml"):
        path.write_text(path.read_text().replace("<name>cow</name>", "<name>cat</name>"))
    MetadataCatalog.get(NAME).__dict__["thing_classes"] = NAMES[:2]
    return {i: x[x.pred_classes < 2] for i, x in found.items()}


def test_equals_detectron2(tree):
    found = without_cows(tree, guesses(tree, noise=1))
    ours = evaluated(VocBoxEvaluator(NAME), found)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = evaluated(PascalVOCDetectionEvaluator(NAME), found)
    assert 5 < theirs["AP"] < theirs["AP50"] < 95
    for key, value in theirs.items():
        assert ours[key] == pytest.approx(value, abs=1e-9), key
    year = "AP50_07" if MetadataCatalog.get(NAME).year == 2007 else "AP50_12"
    assert ours[year] == ours["AP50"] and ours["AP50_07"] != ours["AP50_12"]


def test_perfect_is_100_all_wrong_0_and_a_class_of_difficult_objects_nan(tree):
    result = evaluated(VocBoxEvaluator(NAME), guesses(tree, noise=0))
    assert np.isnan(result.pop("AP50-cow"))
    assert set(result) == {"AP", "AP50", "AP75", "AP50_07", "AP50_12", "AP50-cat", "AP50-dog"}
    assert all(value == pytest.approx(100) for value in result.values())
    far = guesses(tree, noise=0)
    for x in far.values():
        x.pred_boxes.tensor += 500
    wrong = evaluated(VocBoxEvaluator(NAME), far)
    assert np.isnan(wrong.pop("AP50-cow")) and set(wrong.values()) == {0.0}
    none = evaluated(VocBoxEvaluator(NAME), {})
    assert np.isnan(none.pop("AP50-cow")) and set(none.values()) == {0.0}


def test_half_an_object_is_not_found_as_in_detectron2(tmp_path):
    write_tree(tmp_path, {"1": [("cat", 0, 1, 1, 20, 10)]})
    register_pascal_voc(NAME, str(tmp_path), "test", 2012, class_names=NAMES[:1])
    half = Instances((80, 100))
    half.pred_boxes, half.pred_classes, half.scores = Boxes([[0, 0, 10, 10]]), torch.tensor([0]), torch.tensor([0.5])
    try:
        for evaluator in (VocBoxEvaluator(NAME), PascalVOCDetectionEvaluator(NAME)):
            assert evaluated(evaluator, {"1": half})["AP50"] == 0
            wider = Instances(
                (80, 100), pred_boxes=Boxes([[0, 0, 10.2, 10]]), **{k: half.get(k) for k in ("pred_classes", "scores")}
            )
            assert evaluated(evaluator, {"1": wider})["AP50"] == pytest.approx(100)
    finally:
        DatasetCatalog.remove(NAME)
        MetadataCatalog.remove(NAME)


@pytest.mark.parametrize("tree", [2012], indirect=True)
@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("Annotations/000003.xml", "<annotation><object>", r"000003\.xml: not an annotation"),
        ("Annotations/000003.xml", OBJECT.format("cat", 0, "a", 1, 2, 3), r"000003\.xml: not an annotation"),
        ("ImageSets/Main/test.txt", "\n", r"test\.txt: lists no image"),
        ("ImageSets/Main/test.txt", "7\n", r"7\.xml: not an annotation.*No such file"),
    ],
)
def test_annotations_at_fault_name_the_file(tree, file, text, words):
    (Path(MetadataCatalog.get(NAME).dirname) / file).write_text(
        f"<annotation>{text}</annotation>" if "<n" in text else text
    )
    with pytest.raises(UserError, match=words):
        VocBoxEvaluator(NAME)


@pytest.mark.parametrize("tree", [2012], indirect=True)
def test_predictions_at_fault_are_named(tree):
    evaluator, found = VocBoxEvaluator(NAME), guesses(tree, noise=0)["000000"]
    with pytest.raises(UserError, match=r"a\.jpg.*sem_seg.*pred_boxes"):
        evaluator.process([{"image_id": "0", "file_name": "a.jpg"}], [{"sem_seg": None}])
    evaluator.process([{"image_id": "x"}], [{"instances": found}])
    with pytest.raises(UserError, match="image_id 'x'"):
        evaluator.evaluate()
    found.pred_classes += 3
    with pytest.raises(UserError, match=r"'000000'.*classes [34]\.\.5.*has 3"):
        evaluated(evaluator, {"000000": found})
    found.scores[0] = float("nan")
    with pytest.raises(UserError, match=r"000000\.jpg: .*NaN"):
        evaluated(evaluator, {"000000": found})
    MetadataCatalog.get(NAME).__dict__["year"] = 2010
    with pytest.raises(UserError, match="2010.*2007 or 2012"):
        VocBoxEvaluator(NAME)
    del MetadataCatalog.get(NAME).split
    with pytest.raises(UserError, match="no split"):
        VocBoxEvaluator(NAME)
