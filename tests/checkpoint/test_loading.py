"""What a loading says, what it refuses, and class scores that move by the classes' names."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from seg_ext.checkpoint import Checkpointer, write_safetensors
from seg_ext.checkpoint.class_heads import canonical, common, transfer
from seg_ext.checkpoint.report import LoadingReport
from seg_ext.errors import UserError

VOC = ["background", "aeroplane", "bird", "tvmonitor"]
COCO = ["__background__", "person", "airplane", "tv", "bird", "sofa"]


class Head(nn.Module):
    """A semantic head and one of instances, of as many classes."""

    def __init__(self, semantic: int, instance: int) -> None:
        super().__init__()
        self.backbone = nn.Linear(4, 4)
        self.sem_seg_head = nn.ModuleDict({"score": nn.Conv2d(4, semantic, 1)})
        self.roi_heads = nn.ModuleDict()
        self.roi_heads["cls_score"] = nn.Linear(4, instance + 1)
        self.roi_heads["bbox_pred"] = nn.Linear(4, 4 * instance)


def classes(semantic: list[str], instance: list[str]) -> dict[str, Any]:
    return {"format": 1, "metadata": {"stuff_classes": semantic, "thing_classes": instance}}


@pytest.fixture
def lines() -> Iterator[list[tuple[str, str]]]:
    said: list[tuple[str, str]] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append((record.levelname, record.getMessage()))

    logger, handler = logging.getLogger("seg_ext.checkpoint"), Handler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield said
    logger.removeHandler(handler)
    logger.setLevel(level)


def test_the_line_and_the_table_say_what_became_of_every_tensor() -> None:
    model = {name: torch.zeros(2) for name in ("a", "b", "c", "d", "e.num_batches_tracked")}
    state = {
        "a": torch.zeros(2),
        "b": torch.zeros(2),
        "c": torch.zeros(3),
        "z": torch.zeros(1),
        "pixel_mean": torch.zeros(3),
    }
    report = LoadingReport.compare(state, model, {"b": "theirs.b", "z": "theirs.z"})
    assert report.line() == (
        "2 of 4 tensors loaded, 1 of them renamed, 1 missing in the file (d), 1 not in the model (theirs.z), "
        "1 of another shape (c (3,) there, (2,) here)"
    )
    assert not report.clean and not report.lacks_most
    rows = [row.split() for row in report.table().splitlines()]
    assert rows == [
        ["loaded", "a"],
        ["renamed", "b", "theirs.b"],
        ["missing", "d"],
        ["unexpected", "theirs.z"],
        ["mismatched", "c", "(3,)", "there,", "(2,)", "here"],
    ]


def test_a_file_that_lacks_more_than_half_is_refused_unless_asked_for(
    tmp_path: Path, lines: list[tuple[str, str]]
) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    half = {key: torch.ones_like(value) for key, value in model.state_dict().items() if key[0] == "1"}
    torch.save(half, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"2 of 6 tensors loaded, 4 missing .*; MODEL.LOADING.PARTIAL True takes what"):
        Checkpointer(model).load(str(tmp_path / "w.pth"))
    assert not (model[1].weight == 1).any() and not lines
    Checkpointer(model, partial=True, table=True).load(str(tmp_path / "w.pth"))
    assert (model[1].weight == 1).all() and [level for level, _ in lines] == ["WARNING", "INFO"]
    assert "missing     0.weight" in lines[1][1]


def test_a_whole_file_is_one_line(tmp_path: Path, lines: list[tuple[str, str]]) -> None:
    model = nn.Linear(2, 2)
    write_safetensors(tmp_path / "w.safetensors", model.state_dict())
    Checkpointer(model).load(str(tmp_path / "w.safetensors"))
    assert lines == [("INFO", f"weights {tmp_path / 'w.safetensors'}: 2 of 2 tensors loaded")]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("aeroplane", "Airplane"),
        ("motorbike", "motorcycle"),
        ("tvmonitor", "tv"),
        ("diningtable", "dining table"),
        ("sky-other-merged", "Sky"),
        ("SignSymbol", "traffic_sign"),
        ("__background__", "background"),
    ],
)
def test_a_class_goes_by_several_names(one: str, other: str) -> None:
    assert canonical(one) == canonical(other)
    assert canonical("cat") != canonical("dog")


def test_scores_move_by_class_name_between_numbers_of_classes(tmp_path: Path, lines: list[tuple[str, str]]) -> None:
    theirs = Head(len(VOC), len(VOC) - 1)
    Checkpointer(theirs, str(tmp_path), sidecar=classes(VOC, VOC[1:])).save("voc")
    ours = Head(len(COCO), len(COCO) - 1)
    before = {key: value.clone() for key, value in ours.state_dict().items()}
    Checkpointer(ours, sidecar=classes(COCO, COCO[1:])).load(str(tmp_path / "voc.pth"))
    old, new = theirs.state_dict(), ours.state_dict()
    for here, there in zip(range(6), (0, None, 1, 3, 2, None), strict=True):  # background, person, airplane, tv, bird
        for key in ("sem_seg_head.score.weight", "sem_seg_head.score.bias"):
            assert torch.equal(new[key][here], before[key][here] if there is None else old[key][there])
    for here, there in zip(range(6), (None, 0, 2, 1, None, 3), strict=True):  # the last is the background's
        key = "roi_heads.cls_score.weight"
        assert torch.equal(new[key][here], before[key][here] if there is None else old[key][there])
    boxes = [new["roi_heads.bbox_pred.bias"].view(-1, 4)[i] for i in (1, 2, 3)]
    assert torch.equal(torch.stack(boxes), old["roi_heads.bbox_pred.bias"].view(-1, 4)[[0, 2, 1]])
    assert torch.equal(new["backbone.weight"], old["backbone.weight"])
    assert "sem_seg_head.score.weight by class name (4 of 6 classes)" in lines[0][1]


def test_as_many_classes_in_another_order_are_put_in_order_too(tmp_path: Path) -> None:
    theirs, ours = Head(3, 2), Head(3, 2)
    Checkpointer(theirs, str(tmp_path), sidecar=classes(["a", "b", "c"], ["b", "c"])).save("w")
    Checkpointer(ours, sidecar=classes(["c", "a", "b"], ["b", "c"])).load(str(tmp_path / "w.pth"))
    weight = theirs.state_dict()["sem_seg_head.score.weight"]
    assert torch.equal(ours.state_dict()["sem_seg_head.score.weight"], weight[[2, 0, 1]])
    assert torch.equal(ours.roi_heads["cls_score"].weight, theirs.roi_heads["cls_score"].weight)


def test_without_names_another_number_of_classes_is_a_mismatch(tmp_path: Path) -> None:
    Checkpointer(Head(4, 3), str(tmp_path)).save("w")
    checkpointer = Checkpointer(Head(6, 5), sidecar=classes(COCO, COCO[1:]))
    checkpointer.load(str(tmp_path / "w.pth"))
    assert checkpointer.report.mismatched["sem_seg_head.score.bias"] == ((4,), (6,))
    assert not checkpointer.report.by_class


def test_kernels_from_class_to_class_move_both_ways() -> None:
    def kernels(count: int) -> dict[str, Tensor]:
        return {"sem_seg_head.decoder.ups.res4.weight": torch.rand(count, count, 2, 2)}

    state, model = kernels(3), kernels(2)
    value = state["sem_seg_head.decoder.ups.res4.weight"]
    assert common(["x", "y", "z"], ["z", "x"]) == [2, 0]
    transfer(state, model, {"semantic": ["x", "y", "z"]}, {"semantic": ["z", "x"]})
    assert torch.equal(state["sem_seg_head.decoder.ups.res4.weight"], value[[2, 0]][:, [2, 0]])


@pytest.mark.parametrize("count", [3, 4])  # with the background as many rows as a box has numbers, and without it
def test_boxes_that_are_of_no_class_stay(count: int) -> None:
    key, names = "roi_heads.box_predictor.bbox_pred.bias", [str(number) for number in range(count)]
    state = {key: torch.rand(4)}
    value = state[key]
    assert transfer(state, {key: torch.rand(4)}, {"instance": names}, {"instance": names[::-1]}) == {}
    assert torch.equal(state[key], value)


@pytest.mark.parametrize(
    "key", ["sem_seg_head.decoder.refine.conv.weight", "sem_seg_head.decoder.laterals.res2.weight"]
)
def test_layers_that_score_no_classes_stay(key: str) -> None:
    state, model = {key: torch.rand(2, 4)}, {key: torch.rand(2, 4)}
    value = state[key]
    assert transfer(state, model, {"semantic": ["x", "y"]}, {"semantic": ["y", "x"]}) == {}
    assert torch.equal(state[key], value)
