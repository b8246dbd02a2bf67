"""Weights on the command line: import, export, info, prediction from a checkpoint alone; bad input in one line."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from seg_ext.checkpoint import read_checkpoint
from seg_ext.cli.main import main


def run(*argv: object) -> int:
    return main([str(arg) for arg in argv])


def test_a_trained_checkpoint_needs_nothing_else(
    toy_config: Path, toy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", "--config-file", toy_config, "SOLVER.MAX_ITER", 2, "TEST.EVAL_PERIOD", 1) == 0
    alone = tmp_path / "alone" / "weights.pth"
    alone.parent.mkdir()
    shutil.copy(tmp_path / "run" / "model_final.pth", alone)
    content = torch.load(alone, weights_only=True)
    for key in ("sem_seg_head.decoder.score.weight", "sem_seg_head.decoder.score.bias"):
        content["model"][key] = content["model"][key].repeat(2, *[1] * (content["model"][key].dim() - 1))
    other = saved(tmp_path / "other.pth", content)  # of another number of classes
    assert run("eval", "--config-file", toy_config, "--weights", other) == 2
    told = capsys.readouterr().err
    assert "score.weight is (4, 16, 1, 1) there, (2, 16, 1, 1) in the model; does NUM_CLASSES in the config fit" in told
    name = f"toy_{tmp_path.name}"
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)
    capsys.readouterr()
    assert run("info", alone) == 0
    told = capsys.readouterr().out
    for text in ("semantic      2 classes: ground, box", "channels: BGR", "torch: ", "of iteration", "sem_seg/mIoU: "):
        assert text in told, told
    assert run("info", alone, "--config") == 0 and "NAME: unet" in capsys.readouterr().out
    assert run("info", alone, "--json") == 0
    assert json.loads(capsys.readouterr().out)["metadata"]["stuff_classes"] == ["ground", "box"]
    assert run("info", alone, "--tensors") == 0 and "(64, 3, 7, 7)" in capsys.readouterr().out
    image = next((toy_folder / "images").iterdir())
    assert run("predict", "--weights", alone, "--input", image, "--output", tmp_path / "out", "--backend", "eager") == 0
    assert list((tmp_path / "out").rglob("*.png"))
    assert run("export-weights", alone, "--to", "safetensors", "-o", tmp_path / "w.safetensors") == 0
    there, here = read_checkpoint(tmp_path / "w.safetensors"), read_checkpoint(alone)
    assert there["sidecar"] == here["sidecar"]
    assert all(torch.equal(x, here["model"][key]) for key, x in there["model"].items())


def saved(file: Path, content: object) -> Path:
    torch.save(content, file)
    return file


def damaged(file: Path, content: bytes) -> Path:
    file.write_bytes(content)
    return file


UNET = {
    "segmentation_head.0.weight": torch.zeros(2, 8, 3, 3),
    "decoder.blocks.0.conv1.0.weight": torch.zeros(8, 8, 3, 3),
}
MMSEG = {"decode_head.conv_seg.weight": torch.zeros(2, 8, 1, 1), "decode_head.convs.0.conv.weight": torch.zeros(1)}
BAD: list[tuple[str, Callable[[Path], Path], str]] = [
    (
        "keras",
        lambda d: saved(d / "w.pth", UNET),
        "--from keras: takes one of torchvision, smp, timm, mmseg, detectron2",
    ),
    ("smp", lambda d: d / "nowhere.pth", "nowhere.pth not found"),
    ("smp", lambda d: d, ": a folder; takes a file, a URL"),
    ("smp", lambda d: damaged(d / "w.pth", b""), "w.pth: not a readable checkpoint: it is empty (0 bytes)"),
    ("smp", lambda d: damaged(d / "w.pth", b"text"), "w.pth: not a readable checkpoint: takes a PyTorch file"),
    ("mmseg", lambda d: saved(d / "w.pth", {"optimizer": {}}), "holds the state of an optimizer or schedule, and no"),
    (
        "torchvision",
        lambda d: saved(d / "w.pth", UNET),
        "none of torchvision's fcn_resnet, deeplabv3_resnet and maskrcnn",
    ),
    ("smp", lambda d: saved(d / "w.pth", UNET), "an encoder of smp other than its resnets"),
    ("mmseg", lambda d: saved(d / "w.pth", MMSEG), "its backbone is no ResNet of 18, 34, 50, 101, 152: (0, 0, 0, 0)"),
    ("detectron2", lambda d: saved(d / "w.pth", UNET), "none of detectron2's Mask R-CNN FPN, Panoptic FPN"),
    ("timm", lambda d: saved(d / "w.pth", UNET), "timm's weights do not say their network: give --arch NAME"),
]


@pytest.mark.parametrize(("source", "make", "text"), BAD)
def test_what_cannot_be_imported_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str, make: Callable[[Path], Path], text: str
) -> None:
    assert run("import-weights", "--from", source, make(tmp_path), "-o", tmp_path / "out") == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("seg-ext: error: ") and text in line
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def linknet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import segmentation_models_pytorch as smp

    net = smp.Linknet("resnet18", encoder_weights=None, encoder_depth=3, classes=3)
    return saved(tmp_path_factory.mktemp("smp") / "w.pth", net.state_dict())


def test_an_import_tells_what_it_placed_and_names_the_classes(
    linknet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    linknet.with_name("config.json").write_text("[" * 100_000)  # no JSON says nothing
    line = ("import-weights", "--from", "smp", linknet, "-o", tmp_path / "out", "--format", "pth")
    assert run(*line, "--classes", "road,car,sky") == 0
    told = capsys.readouterr().out
    assert "smp's Linknet on a resnet: all" in told and "that inference does not read left out" in told
    assert run("info", tmp_path / "out" / "model.pth") == 0
    told = capsys.readouterr().out
    assert (
        "semantic      3 classes: road, car, sky" in told
        and "source        smp, smp's Linknet on a resnet, w.pth" in told
    )


@pytest.mark.parametrize(
    ("source", "more", "text"),
    [
        ("smp", ("--classes", "road,car"), "--classes: 2 names, and the weights have 3 classes"),
        ("smp", ("--classes", "road,,car"), "--classes road,,car: a name is empty; takes one a class"),
        ("smp", ("--arch", "resnet18"), "--arch resnet18: goes with --from timm or mmseg"),
        ("smp", ("--format", "h5"), "--format h5: takes one of safetensors, pth"),
        ("smp", ("--opts", "MODEL.NOPE", "1"), "unknown key MODEL.NOPE"),
        ("smp", ("--opts", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "4"), "does not fit its config: 1"),
        ("torchvision", (), "it seems to be of smp"),
    ],
)
def test_what_does_not_fit_the_weights_is_one_line(
    linknet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str, more: tuple, text: str
) -> None:
    assert run("import-weights", "--from", source, linknet, "-o", tmp_path / "out", *more) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("seg-ext: error: ") and text in line, line


def test_tensors_of_fewer_dimensions_are_said_to_be_so(
    linknet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = {key: torch.zeros(()) for key in torch.load(linknet, weights_only=True)}
    assert run("import-weights", "--from", "smp", saved(tmp_path / "w.pth", state), "-o", tmp_path / "out") == 2
    assert "--from smp: a tensor of it has fewer dimensions than that network's" in capsys.readouterr().err


def test_an_import_does_not_take_the_place_of_what_it_reads(
    linknet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = tmp_path / "model.pth"  # as smp's own save_pretrained calls its file, but for the suffix
    shutil.copy(linknet, theirs)
    assert run("import-weights", "--from", "smp", theirs, "-o", tmp_path, "--format", "pth") == 2
    assert "its model.pth is the file that is read; give another folder" in capsys.readouterr().err
    assert theirs.read_bytes() == linknet.read_bytes() and [file.name for file in tmp_path.iterdir()] == ["model.pth"]


def test_scores_that_are_no_numbers_are_null_in_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = {"iteration": 4, "scores": {"sem_seg": {"mIoU": 61.5, "IoU-box": float("nan")}}}
    file = saved(tmp_path / "w.pth", {"model": {"a": torch.zeros(1)}, "sidecar": {"format": 1, "metrics": metrics}})
    assert run("info", file, "--json") == 0
    told = capsys.readouterr().out
    assert json.loads(told)["metrics"]["scores"] == {"sem_seg": {"mIoU": 61.5, "IoU-box": None}}


def test_info_of_other_libraries_files_says_that_they_carry_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = damaged(tmp_path / "w.pkl", pickle.dumps({"model": {"a": np.zeros((2, 3))}, "__author__": "x"}))
    assert run("info", file) == 0
    told = capsys.readouterr().out
    assert "1 tensors, 6 numbers" in told and "carries no sidecar" in told
    assert run("info", file, "--config") == 2 and "carries no config" in capsys.readouterr().err
