"""Written predictions read back as what was predicted, and bad folders are named."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.data.catalog import Metadata
from detectron2.evaluation import DatasetEvaluators
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from PIL import Image
from pycocotools import mask as mask_util
from pycocotools.coco import COCO

from seg_ext.data.label_io import read_label, read_panoptic_ids
from seg_ext.errors import UserError
from seg_ext.evaluation.image_writer import ImageWriter
from seg_ext.evaluation.output_files import write_picture
from seg_ext.evaluation.prediction_writer import PredictionWriter

COLORS = [(0, 0, 0), (250, 10, 20), (30, 40, 250)]
GREY = np.full((40, 50, 3), 90, np.uint8)


def metadata(**fields: Any) -> Metadata:
    return Metadata(**{"name": "no such set", "stuff_classes": ["a", "b", "c"], "stuff_colors": COLORS, **fields})


def semantic(labels: np.ndarray) -> dict[str, Any]:
    return {"sem_seg_labels": torch.from_numpy(labels)}


def instances(masks: np.ndarray, *, classes: list[int] | None = None, scores: list[float] | None = None) -> Instances:
    found = Instances(masks.shape[1:], pred_masks=torch.from_numpy(masks))
    found.pred_boxes = Boxes(torch.tensor([[3.0, 4.0, 13.0, 24.0]] * len(masks)).reshape(-1, 4))
    found.pred_classes = torch.tensor(classes or [0] * len(masks), dtype=torch.long)
    found.scores = torch.tensor(scores or [0.75] * len(masks))
    return found


def files(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def test_a_palette_png_reads_back_as_the_labels_in_the_sets_colours(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 3, (40, 50))
    PredictionWriter(tmp_path, metadata(), write=["labels"]).write("in/x.jpg", None, semantic(labels))
    assert files(tmp_path) == {"labels/x.png"}
    assert (read_label(tmp_path / "labels/x.png") == labels).all()
    with Image.open(tmp_path / "labels/x.png") as image:
        assert image.mode == "P"
        assert (np.asarray(image.convert("RGB")) == np.array(COLORS)[labels]).all()


def test_ids_of_300_classes_survive_in_16_bits(tmp_path: Path) -> None:
    labels = np.arange(300).repeat(5).reshape(30, 50)
    toy = metadata(stuff_classes=[f"c{i}" for i in range(300)], stuff_colors=None)
    writer = PredictionWriter(tmp_path, toy, write=["labels", "overlay"])
    writer.write("x.jpg", np.zeros((30, 50, 3), np.uint8), semantic(labels))
    assert (read_label(tmp_path / "labels/x.png") == labels).all()
    assert np.asarray(Image.open(tmp_path / "labels/x.png")).dtype == np.uint16


def test_scores_are_written_as_their_best_class(tmp_path: Path) -> None:
    scores = torch.rand(3, 40, 50)
    PredictionWriter(tmp_path, metadata(), write=["labels"]).write("x.jpg", None, {"sem_seg": scores})
    assert (read_label(tmp_path / "labels/x.png") == scores.argmax(0).numpy()).all()


def test_the_overlay_is_drawn_on_the_image_given_or_read(tmp_path: Path) -> None:
    write_picture(tmp_path / "x.png", GREY)
    output = semantic(np.ones((40, 50), int))
    for folder, image in (("a", GREY), ("b", None)):
        writer = PredictionWriter(tmp_path / folder, metadata(), write=["overlay"])
        writer.write(tmp_path / "x.png", image, output)
        assert files(tmp_path / folder) == {"overlay/x_semantic.png"}
    given, read = (cv2.imread(str(tmp_path / folder / "overlay/x_semantic.png")) for folder in "ab")
    assert (given == read).all() and given[5, 5].tolist() == [52, 46, 178], "BGR of 45 % grey and 55 % class b"


def test_the_json_holds_each_instance_as_coco_has_it(tmp_path: Path) -> None:
    masks = np.random.default_rng(0).random((3, 40, 50)) < 0.4
    toy = metadata(thing_classes=["cat", "dog"], thing_dataset_id_to_contiguous_id={17: 0, 18: 1})
    writer = PredictionWriter(tmp_path, toy, write=["json"])
    writer.write("in/x.jpg", None, {"instances": instances(masks, classes=[1, 0, 1], scores=[0.9, 0.5, 0.01])})
    writer.write("in/y.jpg", None, {"instances": instances(masks[:0])})
    path = writer.finish()
    content = json.loads(path.read_text())
    assert path == tmp_path / "predictions.json" and files(tmp_path) == {"predictions.json"}
    assert content["images"] == [
        {"id": 1, "file_name": "in/x.jpg", "height": 40, "width": 50},
        {"id": 2, "file_name": "in/y.jpg", "height": 40, "width": 50},
    ]
    assert [(c["id"], c["name"]) for c in content["categories"]] == [(17, "cat"), (18, "dog")]
    rows = content["annotations"]
    assert [row["id"] for row in rows] == [1, 2, 3] and {row["image_id"] for row in rows} == {1}
    assert [(row["category_id"], row["category_name"]) for row in rows] == [(18, "dog"), (17, "cat"), (18, "dog")]
    assert [row["score"] for row in rows] == [0.9, 0.5, 0.01]
    for row, mask in zip(rows, masks, strict=True):
        assert row["bbox"] == [3, 4, 10, 20] and row["area"] == mask.sum()
        assert isinstance(row["segmentation"]["counts"], str)
        assert (mask_util.decode(row["segmentation"]) == mask).all()


def test_pycocotools_loads_the_json(tmp_path: Path) -> None:
    writer = PredictionWriter(tmp_path, metadata(thing_classes=["cat"]), write=["json"])
    writer.write("x.jpg", None, {"instances": instances(np.ones((300, 40, 50), bool))})
    coco = COCO(str(writer.finish()))
    assert len(coco.getAnnIds(imgIds=[1], catIds=[0])) == 300
    assert (coco.annToMask(coco.anns[300]) == 1).all()


def test_boxes_without_masks_are_written_without_segmentation(tmp_path: Path) -> None:
    found = instances(np.ones((1, 40, 50), bool))
    found.remove("pred_masks")
    writer = PredictionWriter(tmp_path, metadata(), write=["json"])
    writer.write("x.jpg", None, {"instances": found})
    (row,) = json.loads(writer.finish().read_text())["annotations"]
    assert "segmentation" not in row and row["area"] == 200 and row["category_name"] == "0"


def test_panoptic_ids_and_segments_read_back(tmp_path: Path) -> None:
    ids = np.zeros((40, 50), np.int32)
    ids[:10], ids[20:] = 70000, 255
    info = [
        {"id": 70000, "isthing": True, "category_id": 0, "score": 0.5},
        {"id": 255, "isthing": False, "category_id": 2},
    ]
    toy = metadata(
        thing_classes=["cat"],
        thing_dataset_id_to_contiguous_id={17: 0},
        stuff_dataset_id_to_contiguous_id={17: 0, 90: 1, 91: 2},
    )
    writer = PredictionWriter(tmp_path, toy)
    writer.write("x.jpg", GREY, {"panoptic_seg": (torch.from_numpy(ids), info)})
    writer.finish()
    assert files(tmp_path) == {"overlay/x_panoptic.png", "panoptic/x.png", "panoptic.json", "predictions.json"}
    assert (read_panoptic_ids(tmp_path / "panoptic/x.png") == ids).all()
    content = json.loads((tmp_path / "panoptic.json").read_text())
    (row,) = content["annotations"]
    assert row["image_id"] == 1 and row["file_name"] == "x.png"
    assert row["segments_info"] == [
        {"id": 70000, "category_id": 17, "isthing": 1, "area": 500, "score": 0.5},
        {"id": 255, "category_id": 91, "isthing": 0, "area": 1000},
    ]
    assert [(c["id"], c["name"], c["isthing"]) for c in content["categories"]] == [
        (17, "cat", 1),
        (90, "b", 0),
        (91, "c", 0),
    ]


def test_equal_stems_do_not_overwrite_each_other_and_keep_their_names(tmp_path: Path) -> None:
    for _ in range(2):
        writer = PredictionWriter(tmp_path / "out", metadata(), write=["labels"])
        for value, path in enumerate(["a/x.jpg", "b/x.jpg", "a/x.png"]):
            writer.write(path, None, semantic(np.full((4, 4), value)))
        writer.write("a/x.jpg", None, semantic(np.full((4, 4), 0)))
    written = files(tmp_path / "out")
    assert len(written) == 3 and "labels/x.png" in written
    assert {int(read_label(tmp_path / "out" / name)[0, 0]) for name in written} == {0, 1, 2}
    assert (read_label(tmp_path / "out/labels/x.png") == 0).all()


def test_names_in_a_data_set_do_not_depend_on_the_order(tmp_path: Path) -> None:
    records = [{"file_name": name, "image_id": name} for name in ("a/x.jpg", "b/x.jpg", "b/y.jpg")]
    DatasetCatalog.register("writer_stems", lambda: records)
    try:
        found = []
        for order in (records, records[::-1]):
            folder = tmp_path / str(len(found))
            writer = PredictionWriter(folder, metadata(name="writer_stems"), write=["labels"])
            for record in order:
                writer.process([record], [semantic(np.full((4, 4), records.index(record) % 3))])
            found.append({name: int(read_label(folder / name)[0, 0]) for name in files(folder)})
        assert found[0] == found[1] and len(found[0]) == 3 and found[0]["labels/y.png"] == 2
    finally:
        DatasetCatalog.remove("writer_stems")


def test_in_a_chain_it_writes_and_gives_no_scores(tmp_path: Path) -> None:
    write_picture(tmp_path / "x.png", GREY)
    chain = DatasetEvaluators([PredictionWriter(tmp_path / "out", metadata())])
    chain.reset()
    masks = np.ones((1, 40, 50), bool)
    inputs = [{"file_name": str(tmp_path / "x.png"), "image_id": 42}]
    chain.process(inputs, [{**semantic(np.zeros((40, 50), int)), "instances": instances(masks)}])
    assert chain.evaluate() == {}
    names = {"labels/x.png", "overlay/x_semantic.png", "overlay/x_instance.png", "predictions.json"}
    assert files(tmp_path / "out") == names
    (row,) = json.loads((tmp_path / "out/predictions.json").read_text())["annotations"]
    assert row["image_id"] == 42


def test_two_processes_write_what_one_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    masks = np.random.default_rng(0).random((4, 40, 50)) < 0.5
    batches = [({"file_name": f"{i}.jpg", "image_id": i}, {"instances": instances(masks[: i + 1])}) for i in range(4)]

    def fed(folder: str, part: list[Any]) -> PredictionWriter:
        writer = PredictionWriter(tmp_path / folder, metadata(), write=["json"])
        for image, output in part:
            writer.process([image], [output])
        return writer

    fed("one", batches).evaluate()
    first, second = fed("two", batches[:2]), fed("two", batches[2:])
    sent: list[Any] = []
    monkeypatch.setattr(comm, "gather", lambda data: sent.append(data) or [])
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    second.evaluate()
    assert files(tmp_path / "two") == set()
    monkeypatch.setattr(comm, "gather", lambda data: [data, *sent])
    monkeypatch.setattr(comm, "is_main_process", lambda: True)
    first.evaluate()
    assert (tmp_path / "two/predictions.json").read_text() == (tmp_path / "one/predictions.json").read_text()


def test_what_is_kept_of_an_output_comes_to_the_hosts_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there, here = torch.zeros(4, 5), torch.ones(4, 5)
    output = {"sem_seg_labels": there, "panoptic_seg": (there, []), "uncertainty": {"entropy": there}}
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, device: here if device == "cpu" else tensor)
    kept = ImageWriter(tmp_path, metadata(), write=[]).keep(output)
    assert kept["sem_seg_labels"] is kept["panoptic_seg"][0] is kept["uncertainty"]["entropy"] is here


def test_only_known_kinds_are_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'masks'.*labels, ids, overlay, json"):
        PredictionWriter(tmp_path, metadata(), write=["masks"])
    writer = PredictionWriter(tmp_path, metadata(), write=[])
    writer.write("x.jpg", None, semantic(np.zeros((4, 4), int)))
    assert writer.finish() == tmp_path and files(tmp_path) == set()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=f"{tmp_path}/file/out cannot be written: Not a directory"):
        PredictionWriter(tmp_path / "file" / "out", metadata())
    with pytest.raises(UserError, match=f"{tmp_path}/file cannot be written"):
        PredictionWriter(tmp_path / "file", metadata())
    writer = PredictionWriter(tmp_path / "out", metadata())
    (tmp_path / "out" / "labels").write_text("")
    with pytest.raises(UserError, match="out/labels/x.png cannot be written"):
        writer.write("x.jpg", GREY, semantic(np.zeros((40, 50), int)))


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = PredictionWriter(tmp_path, metadata(), write=["json", "labels"])
    writer.write("x.jpg", None, semantic(np.zeros((4, 4), int)))
    before = writer.finish().read_text()
    writer.write("y.jpg", None, semantic(np.ones((4, 4), int)))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match="predictions.json cannot be written: No space left on device"):
        writer.finish()
    assert (tmp_path / "predictions.json").read_text() == before
    assert files(tmp_path) == {"predictions.json", "labels/x.png", "labels/y.png"}


def test_an_output_without_a_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"x.jpg: the model gives \['proposals'\], takes sem_seg"):
        PredictionWriter(tmp_path, metadata()).write("x.jpg", GREY, {"proposals": None})


def test_a_class_that_the_data_set_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="semantic class 3"):
        PredictionWriter(tmp_path, metadata()).write("x.jpg", GREY, semantic(np.full((40, 50), 3)))
