"""``seg-ext eval --predictions`` and ``seg-ext compare``: label maps of any tool, scored, shown and compared."""

import csv
import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image

from seg_ext.cli.main import main
from seg_ext.evaluation.prediction_writer import PredictionWriter
from seg_ext.evaluation.report import data_fingerprint, versions
from seg_ext.metrics import confusion_matrix, semantic_scores

NAME, CLASSES, SIZE, IMAGES = "toy_saved", ["ground", "tree", "car", "boat"], (24, 32), 6


def run(*argv) -> int:
    return main([str(arg) for arg in argv])


def refusal(capsys, *argv) -> str:
    capsys.readouterr()
    assert run(*argv) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("seg-ext: error: "), lines
    return lines[0]


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array.astype(np.uint8)).save(path)


def write_tree(root: Path) -> list[dict]:
    """Images and label maps in two folders of equal stems, "boat" in none, and predictions 10 % wrong of them."""
    rng, records = np.random.default_rng(0), []
    for i in range(IMAGES):
        key = f"{'ab'[i % 2]}/{i // 2}.png"
        labels = rng.integers(0, 3, (3, 4)).repeat(8, 0).repeat(8, 1)
        labels[:2] = 255
        guess = np.where(rng.random(SIZE) < 0.1, rng.integers(0, 4, SIZE), np.where(labels == 255, 0, labels))
        save(root / "images" / key, rng.integers(0, 255, (*SIZE, 3)))
        save(root / "labels" / key, labels)
        save(root / "guess" / key, guess)
        records.append({"file_name": str(root / "images" / key), "sem_seg_file_name": str(root / "labels" / key)})
    return records


@pytest.fixture
def tree(tmp_path):
    records = write_tree(tmp_path)
    DatasetCatalog.register(NAME, lambda: records)
    MetadataCatalog.get(NAME).set(evaluator_type="sem_seg", stuff_classes=CLASSES, ignore_label=255)
    yield tmp_path
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def read(path: Path) -> np.ndarray:
    return np.array(Image.open(path)).astype(int)


def matrix(tree: Path, folder: str = "guess") -> np.ndarray:
    files = sorted(path.relative_to(tree / "labels") for path in tree.glob("labels/*/*.png"))
    return sum(confusion_matrix(read(tree / folder / f), read(tree / "labels" / f), 4, ignore=255) for f in files)


def test_label_maps_are_scored_as_a_model_would_be(tree, capsys):
    out = tree / "out"
    command = ("eval", "--predictions", tree / "guess", "--dataset", NAME, "--output", out)
    assert run(*command, "--per-image", "--html", "--metrics", "boundary,bf,trimap") == 0
    assert "mIoU" in (printed := capsys.readouterr().out) and str(out / "results.json") in printed
    assert "1 of 4 classes are not in the ground truth, and in no mean: boat" in printed
    results = json.loads((out / "results.json").read_text())
    expected = semantic_scores(matrix(tree))
    assert results["sem_seg"]["mIoU"] == pytest.approx(100 * expected.miou, abs=1e-9)
    assert results["sem_seg"]["IoU-boat"] is None and 0 < results["sem_seg"]["BF-car"] < 100
    about = results["about"]
    assert about["versions"] == versions() and {"python", "torch", "detectron2", "seg-ext"} <= set(versions())
    assert about["data"] == {NAME: data_fingerprint(NAME)} and about["data"][NAME]["images"] == IMAGES
    assert about["config"]["predictions"] == str(tree / "guess") and about["config"]["kind"] == "labels"
    with (out / "confusion.csv").open(newline="") as file:
        head, *rows = csv.reader(file)
    assert head[1:] == [*CLASSES, "no class"] and [row[0] for row in rows] == CLASSES
    np.testing.assert_array_equal(np.array([row[1:] for row in rows], int), matrix(tree))
    assert cv2.imread(str(out / "confusion.png")).shape[0] > 300
    page = (out / "gallery" / "index.html").read_text()
    assert all(text in page for text in ("Worst images", "Confusion matrix", "IoU of the classes", "min(IoU, B-Iou)"))
    assert not re.search(r"https?:|@import|<script|<link|url\(", page)
    shown = {f"pictures/{path.name}" for path in (out / "gallery" / "pictures").iterdir()}
    assert {url for url in re.findall(r'src="([^"]+)"', page)} == shown
    assert len((out / "per_image_sem_seg.jsonl").read_text().splitlines()) == 1 + IMAGES
    assert not [path for path in out.rglob("*") if "partial" in path.name or path.name.startswith(".")]


@pytest.mark.parametrize(("guess", "score"), [(None, 100.0), (3, 0.0)])
def test_perfect_maps_score_100_and_all_wrong_ones_0(tree, guess, score):
    for path in tree.glob("labels/*/*.png"):
        labels = read(path)
        save(tree / "other" / path.relative_to(tree / "labels"), labels if guess is None else labels * 0 + guess)
    command = ("eval", "--predictions", tree / "other", "--dataset", NAME, "--output", tree / "out")
    assert run(*command, "--metrics", "boundary,bf,trimap") == 0
    scores = json.loads((tree / "out" / "results.json").read_text())["sem_seg"]
    assert {value for key, value in scores.items() if not key.endswith("-boat")} == {score}


def test_unique_stems_are_enough_and_the_ignored_id_is_a_miss(tmp_path, tree):
    for index, path in enumerate(sorted(tree.glob("guess/*/*.png"))):
        path.rename(tree / "guess" / f"{index}.png")
    records = DatasetCatalog.get(NAME)
    for index, record in enumerate(sorted(records, key=lambda r: r["file_name"])):
        record["file_name"] = str(tree / "images" / f"deep{index}" / f"{index}.jpg")
    save(tree / "guess" / "0.png", np.full(SIZE, 255))
    assert run("eval", "--predictions", tree / "guess", "--dataset", NAME, "--output", tree / "out") == 0
    with (tree / "out" / "confusion.csv").open(newline="") as file:
        assert sum(int(row[-1]) for row in list(csv.reader(file))[1:]) == (SIZE[0] - 2) * SIZE[1]


def test_raw_ids_go_through_the_label_map_of_the_data_set(tree, capsys):
    MetadataCatalog.get(NAME).set(label_map={0: 1, 1: 0, 9: 255})
    for path in tree.glob("labels/*/*.png"):
        labels = read(path)
        labels[0, 0] = 9
        save(path, labels)
    command = ("eval", "--predictions", tree / "labels", "--dataset", NAME, "--output", tree / "out")
    assert "ids 9; takes train ids 0..3, or 255 for no class (--raw-ids" in refusal(capsys, *command)
    assert run(*command, "--raw-ids") == 0
    assert json.loads((tree / "out" / "results.json").read_text())["sem_seg"]["mIoU"] == 100


def test_a_data_yaml_names_the_data(tree):
    (tree / "data.yaml").write_text(
        f"name: own_saved\nimages: images/a\nmasks: labels/a\nclasses: {CLASSES}\nsplit: {{val: val.txt}}\n"
    )
    (tree / "val.txt").write_text("0.png\n1.png\n")
    (tree / "guess/a/2.png").unlink()
    command = ("eval", "--predictions", tree / "guess/a", "--data", tree / "data.yaml", "--output", tree / "out")
    assert run(*command) == 0
    results = json.loads((tree / "out" / "results.json").read_text())
    assert results["about"]["data"]["own_saved_val"]["images"] == 2


FAULTS = {
    "an image without": (lambda g: (g / "a/1.png").unlink(), r"no label map a/1\.png, 1 of 6 missing"),
    "a stranger": (lambda g: save(g / "a/9.png", np.zeros(SIZE)), r"a/9\.png belongs to no image"),
    "two of one": (lambda g: shutil.copy(g / "a/1.png", g / "a/1.tif"), r"two predictions, .*a/1\.png and .*a/1\.tif"),
    "another size": (lambda g: save(g / "b/2.png", np.zeros((9, 9))), r"b/2\.png: 9x9; takes the ground truth's 24x32"),
    "an unknown id": (
        lambda g: save(g / "b/2.png", np.full(SIZE, 7)),
        r"b/2\.png: ids 7; takes train ids 0\.\.3, or 255",
    ),
    "cut off": (lambda g: (g / "b/2.png").write_bytes((g / "b/2.png").read_bytes()[:60]), r"b/2\.png: .*read"),
    "empty": (lambda g: (g / "b/2.png").write_bytes(b""), r"b/2\.png: the file is empty"),
    "nothing": (lambda g: shutil.rmtree(g), r"guess: no such file or folder"),
}


@pytest.mark.parametrize(("spoil", "words"), FAULTS.values(), ids=FAULTS)
def test_predictions_at_fault_are_named_and_leave_nothing_behind(tree, capsys, spoil, words):
    spoil(tree / "guess")
    command = ("eval", "--predictions", tree / "guess", "--dataset", NAME, "--output", tree / "out", "--html")
    assert re.search(words, refusal(capsys, *command, "--per-image"))
    assert not [path for path in (tree / "out").rglob("*") if path.is_file()]


def test_an_earlier_result_survives_a_later_fault(tree, capsys):
    command = ("eval", "--predictions", tree / "guess", "--dataset", NAME, "--output", tree / "out", "--html")
    assert run(*command) == 0
    before = {path: path.read_bytes() for path in (tree / "out").rglob("*") if path.is_file()}
    save(tree / "guess" / "b/2.png", np.full(SIZE, 7))
    refusal(capsys, *command)
    assert {path: path.read_bytes() for path in (tree / "out").rglob("*") if path.is_file()} == before


def test_counts_of_an_earlier_evaluation_do_not_outlive_its_scores(tree, panoptic, capsys):
    name, root = panoptic
    for path, data in ((tree / "guess", NAME), (root / "saved" / "panoptic.json", name)):
        out = tree / f"out_{data}"
        for extra in (("--per-image",), ()):
            assert run("eval", "--predictions", path, "--dataset", data, "--output", out, *extra) == 0
            assert bool([*out.glob("per_image_*")]) == bool(extra)


def test_arguments_at_fault_are_named(tree, capsys):
    saved = ("eval", "--predictions", tree / "guess")
    assert "did you mean toy_saved?" in refusal(capsys, *saved, "--dataset", "toy_save")
    assert "of one data set: give --dataset" in refusal(capsys, *saved)
    assert "semantic metric 'iou'" in refusal(capsys, *saved, "--dataset", NAME, "--metrics", "iou")
    assert "go with --config-file" in refusal(capsys, *saved, "--dataset", NAME, "TEST.GALLERY", "3")
    assert "--kind goes with --predictions" in refusal(capsys, "eval", "--kind", "labels")
    (tree / "empty.json").write_bytes(b"")
    assert "the file is empty" in refusal(capsys, "eval", "--predictions", tree / "empty.json", "--dataset", NAME)


def test_the_fingerprint_follows_the_data_and_not_their_place(tree):
    first = data_fingerprint(NAME)
    moved = shutil.copytree(tree, tree.with_name("moved"))
    for record in DatasetCatalog.get(NAME):
        for key in ("file_name", "sem_seg_file_name"):
            record[key] = record[key].replace(str(tree), str(moved))
    assert data_fingerprint(NAME) == first
    label = moved / "labels" / "b/2.png"
    save(label, (read(label) + 1) % 3)
    assert data_fingerprint(NAME) != first


def test_two_sets_of_predictions_are_compared(tree, capsys):
    rng = np.random.default_rng(1)
    for path in tree.glob("labels/*/*.png"):
        noisy = np.where(rng.random(SIZE) < 0.5, 0, read(path))
        save(tree / "worse" / path.relative_to(tree / "labels"), noisy)
    for folder in ("worse", "guess"):
        command = ("eval", "--predictions", tree / folder, "--dataset", NAME, "--output", tree / f"out_{folder}")
        assert run(*command, "--per-image") == 0
    capsys.readouterr()
    runs = ("compare", tree / "out_worse", tree / "out_guess", "--output", tree / "diff", "--resamples", 200)
    assert run(*runs) == 0
    assert re.search(r"sem_seg +mIoU .*\+\d+\.\d\d to \+\d+\.\d\d \*", capsys.readouterr().out)
    rows = {row["metric"]: row for row in json.loads((tree / "diff" / "compare.json").read_text())[NAME]}
    assert 0 < rows["mIoU"]["low"] < rows["mIoU"]["second"] - rows["mIoU"]["first"] < rows["mIoU"]["high"]
    assert (tree / "diff" / "compare.png").is_file()
    assert "nowhere: No such file" in refusal(capsys, "compare", tree / "nowhere", tree / "out_guess")
    assert "--resamples 0" in refusal(capsys, *runs[:3], "--resamples", 0)


@pytest.fixture
def panoptic(tmp_path):
    """Two things above stuff in each image, registered with all annotations, and what a perfect model says of them."""
    name, size, records, outputs, annotations = "toy_saved_panoptic", (16, 24), [], [], []
    boxes = ([2, 2, 9, 8], [12, 2, 20, 8])
    for i in range(3):
        ids = np.zeros(size, np.uint8)
        ids[2:8, 2:9], ids[2:8, 12:20], ids[10:, i:] = 1, 2, 3
        save(tmp_path / "images" / f"{i}.png", np.stack([ids * 60] * 3, axis=-1))
        save(tmp_path / "ids" / f"{i}.png", np.stack([ids, ids * 0, ids * 0], axis=-1))
        save(tmp_path / "labels" / f"{i}.png", np.array([255, 1, 2, 0])[ids])
        segments = [{"id": s, "category_id": 10 * s, "iscrowd": 0} for s in (1, 2, 3)]
        annotations.append({"image_id": i, "file_name": f"{i}.png", "segments_info": segments})
        corners = [[x0, y0, x1, y0, x1, y1, x0, y1] for x0, y0, x1, y1 in boxes]
        objects = [
            {"bbox": b, "bbox_mode": BoxMode.XYXY_ABS, "category_id": c, "segmentation": [corners[c]], "iscrowd": 0}
            for c, b in enumerate(boxes)
        ]
        record = {"file_name": str(tmp_path / "images" / f"{i}.png"), "image_id": i, "height": 16, "width": 24}
        sem = {"sem_seg_file_name": str(tmp_path / "labels" / f"{i}.png")}
        records.append({**record, **sem, "annotations": objects})
        found = Instances(size, scores=torch.tensor([0.9, 0.8]), pred_classes=torch.tensor([0, 1]))
        found.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32))
        found.pred_masks = torch.from_numpy(np.stack([ids == 1, ids == 2]))
        info = [{"id": s, "isthing": s < 3, "category_id": (s - 1) % 2} for s in (1, 2, 3)]
        labels = torch.from_numpy(np.array([0, 1, 2, 0])[ids])
        outputs.append(
            {"sem_seg_labels": labels, "instances": found, "panoptic_seg": (torch.from_numpy(ids.astype("i4")), info)}
        )
    (tmp_path / "panoptic.json").write_text(json.dumps({"annotations": annotations}))
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(
        evaluator_type="coco_panoptic_seg",
        thing_classes=["a", "b"],
        stuff_classes=["ground", "a", "b"],
        thing_dataset_id_to_contiguous_id={10: 0, 20: 1},
        stuff_dataset_id_to_contiguous_id={30: 0, 10: 1, 20: 2},
        panoptic_json=str(tmp_path / "panoptic.json"),
        panoptic_root=str(tmp_path / "ids"),
    )
    writer = PredictionWriter(tmp_path / "saved", MetadataCatalog.get(name))
    writer.process(records, outputs)
    writer.evaluate()
    yield name, tmp_path
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


@pytest.mark.parametrize(
    ("path", "tasks", "figure"),
    [
        ("labels", {"sem_seg": "mIoU"}, "Confusion matrix"),
        ("predictions.json", {"bbox": "AP", "segm": "AP"}, "Precision and recall (segm)"),
        ("panoptic.json", {"panoptic_seg": "PQ"}, "PQ of the classes"),
    ],
)
def test_what_predict_writes_of_a_perfect_model_scores_100(panoptic, path, tasks, figure, capsys):
    name, root = panoptic
    command = ("eval", "--predictions", root / "saved" / path, "--dataset", name, "--output", root / "out", "--html")
    assert run(*command, "--per-image") == 0
    results = json.loads((root / "out" / "results.json").read_text())
    assert set(results) == {*tasks, "about"}
    assert [results[task][key] for task, key in tasks.items()] == [pytest.approx(100)] * len(tasks)
    assert figure in (root / "out" / "gallery" / "index.html").read_text()
    files = [root / "out" / f"per_image_{task}.jsonl" for task in sorted(tasks)]
    assert sorted((root / "out").glob("*.jsonl")) == files
    assert run("compare", root / "out", root / "out", "--output", root / "diff", "--resamples", 20) == 0
    rows = [row for rows in json.loads((root / "diff" / "compare.json").read_text()).values() for row in rows]
    certain = {(row["task"], row["metric"]) for row in rows if row["low"] == row["high"] == 0}
    assert set(tasks.items()) <= certain
    assert "100.00" in capsys.readouterr().out


def test_metrics_that_a_kind_does_not_have_are_refused(panoptic, capsys):
    name, root = panoptic
    saved = ("--dataset", name, "--output", root / "out", "--metrics")
    assert "bf" in refusal(capsys, "eval", "--predictions", root / "saved" / "predictions.json", *saved, "bf")
    labels = refusal(capsys, "eval", "--predictions", root / "saved" / "labels", *saved, "boundary,calibration")
    assert "calibration needs scores" in labels
    assert "panoptic quality alone" in refusal(
        capsys, "eval", "--predictions", root / "saved" / "panoptic.json", *saved, "voc"
    )
    assert not (root / "out").exists()
