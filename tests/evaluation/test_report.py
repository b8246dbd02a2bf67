"""results.json: strict JSON that comes back as it was, and a file that cannot be written is one line."""

import json
import math

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from seg_ext.errors import UserError
from seg_ext.evaluation.report import data_fingerprint, read_results, write_results

NAMES = ("toy_report_a", "toy_report_b")
SCORES = {"sem_seg": {"mIoU": 50.0, "IoU-boat": math.nan}, "segm": {"AP": np.float64(12.5)}}


@pytest.fixture
def sets(tmp_path):
    for name in NAMES:
        records = [{"file_name": str(tmp_path / name / "0.jpg"), "annotations": [{"category_id": 1, "bbox": [0, 0]}]}]
        DatasetCatalog.register(name, lambda records=records: records)
        MetadataCatalog.get(name).set(stuff_classes=["a"], label_map={1: 0, "2-9": 255})
    yield
    for name in NAMES:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.mark.parametrize("names", [NAMES[:1], NAMES])
def test_scores_come_back_and_nan_is_null(sets, tmp_path, names):
    file = tmp_path / "out" / "results.json"
    write_results(file, {name: SCORES for name in names}, config={"A": {"B": (1, 2)}})
    content = json.loads(file.read_text(), parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    at_top = content if len(names) == 1 else content[names[1]]
    assert at_top["sem_seg"] == {"mIoU": 50.0, "IoU-boat": None} and at_top["segm"] == {"AP": 12.5}
    assert content["about"]["config"] == {"A": {"B": [1, 2]}} and set(content["about"]["data"]) == set(names)
    report = read_results(file.parent)
    assert list(report.scores) == list(names)
    for scores in report.scores.values():
        np.testing.assert_equal(scores, SCORES)


def test_the_fingerprint_tells_annotations_classes_and_rules_apart_but_not_folders(sets):
    first, second = map(data_fingerprint, NAMES)
    assert first == second == {"images": 1, "sha256": first["sha256"]}
    DatasetCatalog.get(NAMES[0])[0]["annotations"][0]["category_id"] = 2
    assert data_fingerprint(NAMES[0]) != first
    MetadataCatalog.get(NAMES[1]).label_map[1] = 255
    assert data_fingerprint(NAMES[1]) != first


def test_a_file_that_cannot_be_written_is_named_and_the_old_one_stays(sets, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="taken/results.json cannot be written"):
        write_results(tmp_path / "taken" / "results.json", {NAMES[0]: SCORES}, config={})
    file = tmp_path / "results.json"
    file.write_text("{}")
    with pytest.raises(TypeError):
        write_results(file, {NAMES[0]: SCORES}, config={("a",): object}, extra=3)
    assert file.read_text() == "{}" and len(list(tmp_path.iterdir())) == 2
