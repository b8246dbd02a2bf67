"""``seg-ext predict`` from the command line: a model of first weights, from its checkpoint alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model

from seg_ext import load_config
from seg_ext.cli import predict as command
from seg_ext.cli.main import main
from seg_ext.data.label_io import read_label
from seg_ext.evaluation.image_writer import KINDS
from seg_ext.inference.backends import BACKENDS


@pytest.fixture
def weights(toy_config: Path, tmp_path: Path) -> Path:
    cfg = load_config(toy_config)
    torch.manual_seed(0)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(cfg.dump())
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "run" / "model_final.pth")
    return tmp_path / "run" / "model_final.pth"


def predict(weights: Path, *arguments: object) -> int:
    return main(["predict", "--weights", str(weights), *map(str, arguments)])


def test_the_choices_are_those_of_what_does_the_work() -> None:
    assert command.KINDS == KINDS and command.BACKENDS == BACKENDS


def test_backends_batches_and_resumed_runs_give_the_same_files(
    weights: Path, toy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ("--input", toy_folder / "images", "--save", "ids", "json", "overlay")
    assert predict(weights, *common, "--output", tmp_path / "a", "--backend", "eager") == 0
    assert predict(weights, *common, "--output", tmp_path / "b", "--batch-size", 2, "--threads", 1) == 0
    for index in range(5):
        one, other = (read_label(tmp_path / name / "ids" / f"{index}.png") for name in "ab")
        assert one.shape == (48, 40) and (one != other).mean() < 0.01
        assert (tmp_path / "a" / "overlay" / f"{index}_semantic.png").is_file()
    images = json.loads((tmp_path / "a" / "predictions.json").read_text())["images"]
    assert [Path(image["file_name"]).name for image in images] == [f"{index}.png" for index in range(5)]
    capsys.readouterr()
    assert predict(weights, *common, "--output", tmp_path / "a", "--resume") == 0
    assert "0 images, 5 inputs done before" in capsys.readouterr().out
    assert predict(weights, *common[:2], "--output", tmp_path / "a", "--resume") == 2
    assert "of a run with other --save" in capsys.readouterr().err


def test_processes_of_torchrun_share_the_images(
    weights: Path,
    toy_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = ("--input", toy_folder / "images", "--output", tmp_path / "out", "--save", "ids", "json")
    arguments += ("--backend", "eager")
    said = []
    for rank in range(2):
        for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2}.items():
            monkeypatch.setenv(name, str(value))
        assert not (tmp_path / "out" / "predictions.json").exists()
        assert predict(weights, *arguments) == 0
        said.append(capsys.readouterr().out.split(":")[0])
    assert said == ["3 images", "2 images"]
    assert len(json.loads((tmp_path / "out" / "predictions.json").read_text())["images"]) == 5
    assert len(list((tmp_path / "out" / "ids").iterdir())) == 5


def test_bad_arguments_are_one_line(
    weights: Path, toy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "void").mkdir()
    (tmp_path / "file").write_text("")
    image = toy_folder / "images" / "0.png"
    cases = [
        (("--input", "nowhere.png"), "nowhere.png: no such file or folder"),
        (("--input", tmp_path / "void"), "no image in this folder"),
        (("--input", f"{tmp_path}/*.jpg"), "no image of this pattern"),
        (("--input", "https://example.org/a.png"), "--allow-urls"),
        (("--input", image, "--output", tmp_path / "file"), "file cannot be written"),
        (("--input", image, "--backend", "onnxruntime", "TEST.LABELS_ONLY", "True"), "does not go with"),
    ]
    for arguments, text in cases:
        capsys.readouterr()
        assert predict(weights, *arguments) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("seg-ext")]
        assert len(lines) == 1 and text in lines[0], (arguments, lines)
    assert main(["predict", "--input", str(image)]) == 2
    assert "--weights FILE is missing" in capsys.readouterr().err


def test_data_of_ones_own_run_no_code_that_the_config_beside_the_weights_names(
    weights: Path, toy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    beside = weights.with_name("config.yaml")
    torch.save({**torch.load(weights), "sidecar": {"format": 1, "config": beside.read_text()}}, weights)
    beside.write_text(beside.read_text().replace("NAME: unet", "NAME: subprocess:Popen"))
    own = {"name": "own", "images": str(toy_folder / "images"), "masks": str(toy_folder / "labels")}
    (tmp_path / "data.yaml").write_text(json.dumps(own | {"classes": ["ground", "box"], "split": {"val": 0.2}}))
    command = ("--input", toy_folder / "images", "--output", tmp_path / "out", "--data", tmp_path / "data.yaml")
    assert predict(weights, *command) == 2
    assert "config.yaml: DECODER.NAME subprocess:Popen is foreign code" in capsys.readouterr().err
    assert predict(weights, *command, "--trust-code") == 2
    assert "takes a torch.nn.Module subclass" in capsys.readouterr().err


@pytest.fixture(autouse=True)
def _clean_catalog():
    known = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - known:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)
