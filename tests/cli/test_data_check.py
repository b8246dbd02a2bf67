"""``seg-ext data check`` on the command line: exit status, JSON, the contact sheet, and its answers to bad input."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from seg_ext.cli.main import main
from seg_ext.data.datasets import data_root
from seg_ext.data.datasets.folder import register_folder


@pytest.fixture
def toy(toy_folder: Path) -> Iterator[str]:
    """The toy folder as a data set."""
    name = "toy_check_train"
    register_folder(name, toy_folder / "images", toy_folder / "labels", classes=["ground", "box"])
    yield name
    DatasetCatalog.pop(name)
    MetadataCatalog.pop(name)


def refusal(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(["data", "check", *argv]) == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_a_sound_set_exits_0_with_its_figures(toy: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", toy]) == 0
    out = capsys.readouterr().out
    assert f"{toy}: 5 images, 0 errors, 0 warnings" in out and "class_weights" in out and "PIXEL_MEAN" in out


def test_errors_exit_1_and_json_goes_to_stdout_alone(toy: str, toy_folder: Path, tmp_path: Path, capsys) -> None:
    bad = "toy_check_bad_train"
    register_folder(bad, toy_folder / "images", toy_folder / "labels", classes=["ground"])
    try:
        assert main(["data", "check", toy, bad, "--json", "-", "--workers", "2"]) == 1
        report = json.loads(capsys.readouterr().out)
        assert [(s["name"], s["errors"]) for s in report["data_sets"]] == [(toy, 0), (bad, 1)]
        assert len(report["data_sets"][1]["faults"][0]["places"]) == 5
        assert main(["data", "check", bad, "--json", str(tmp_path / "report.json"), "--limit", "2"]) == 1
        out = capsys.readouterr().out
        assert out.count("ids 1 (") == 2 and "and 3 more: --limit 5" in out
        assert json.loads((tmp_path / "report.json").read_text())["data_sets"] == report["data_sets"][1:]
    finally:
        DatasetCatalog.pop(bad)
        MetadataCatalog.pop(bad)


def test_a_config_names_sets_and_what_is_tested_on(toy_config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", "--config-file", str(toy_config), "--json", "-"]) == 1
    (report,) = json.loads(capsys.readouterr().out)["data_sets"]
    assert [fault["code"] for fault in report["faults"]] == ["leaked_image"]
    assert main(["data", "check", "--config-file", str(toy_config), "DATASETS.TEST", "()"]) == 0


def test_all_splits_of_a_data_yaml_are_checked(toy_folder: Path, tmp_path: Path, capsys) -> None:
    places = f"images: {toy_folder / 'images'}\nmasks: {toy_folder / 'labels'}\n"
    (tmp_path / "data.yaml").write_text(f"name: trains\n{places}classes: [ground, box]\nsplit: {{val: 0.4}}\n")
    names = {"trains_train", "trains_val"}
    try:
        assert main(["data", "check", "--data", str(tmp_path / "data.yaml"), "--json", "-"]) == 0
        report = json.loads(capsys.readouterr().out)["data_sets"]
        assert {r["name"] for r in report} == names and sum(r["statistics"]["images"] for r in report) == 5
        output = tmp_path / "grid.png"
        assert main(["data", "view", "--data", str(tmp_path / "data.yaml"), "--output", str(output)]) == 0
        assert output.is_file()
    finally:
        for name in names:
            DatasetCatalog.pop(name)
            MetadataCatalog.pop(name)


def test_a_leak_between_the_splits_of_a_data_yaml_is_an_error_whatever_its_name(tmp_path: Path, capsys) -> None:
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
        for stem in ("a", "b"):
            cv2.imwrite(str(tmp_path / kind / f"{stem}.png"), np.eye(16, dtype=np.uint8))
    places = "images: images\nmasks: masks\nclasses: [ground, box]\nsplit: {train: train.txt, val: val.txt}\n"
    (tmp_path / "data.yaml").write_text(f"name: all_train\n{places}")
    for split, stem in (("train", "a"), ("val", "b")):
        (tmp_path / f"{split}.txt").write_text(stem)
    try:
        assert main(["data", "check", "--data", str(tmp_path / "data.yaml"), "--json", "-"]) == 1
        train, val = json.loads(capsys.readouterr().out)["data_sets"]
        assert train["errors"] == 0 and [fault["code"] for fault in val["faults"]] == ["leaked_image"]
    finally:
        for name in ("all_train_train", "all_train_val"):
            DatasetCatalog.pop(name)
            MetadataCatalog.pop(name)


def test_the_sheet_has_a_panel_for_image_and_label_of_each_example(toy: str, tmp_path: Path) -> None:
    assert main(["data", "check", toy, "--sheet", str(tmp_path / "sheet.png")]) == 0
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    assert sheet.shape[1] == 2 * (2 * 320 + 8) + 8 and sheet.shape[0] == 3 * (240 + 28) + 8
    image, overlay = sheet[8:248, 8:328], sheet[8:248, 328:648]
    assert np.abs(image.astype(int) - overlay).max() > 50


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["camvid_trian"], "unknown data set 'camvid_trian'; did you mean camvid_train?"),
        ([], "give the name of a data set, --config-file or --data FILE"),
        (["camvid_train", "--workers", "0"], "--workers 0: takes a whole number of at least 1"),
        (["camvid_train", "--sheet", "a.jpg"], "--sheet a.jpg: pictures are written as PNG; end the name in .png"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(capsys: pytest.CaptureFixture[str], argv: list[str], line: str) -> None:
    assert refusal(capsys, *argv) in (f"seg-ext: error: {line}", f"seg-ext: error: seg-ext data check: {line}")


def test_a_report_that_cannot_be_written_is_one_line(toy: str, tmp_path: Path, capsys) -> None:
    assert "cannot be written: No such file" in refusal(capsys, toy, "--json", str(tmp_path / "none" / "x.json"))


def test_help_is_fast_and_loads_neither_torch_nor_detectron2() -> None:
    code = (
        "import sys; from seg_ext.cli.main import main\n"
        "try: main(['data', 'check', '--help'])\nexcept SystemExit: pass\n"
        "assert not {'torch', 'detectron2', 'cv2', 'numpy'} & set(sys.modules)"
    )
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2], capture_output=True)
    assert time.perf_counter() - start < 5  # 2 on an idle machine


GENUINE = {
    "camvid": ("camvid_train", "camvid_val", "camvid_test"),
    "isbi2012": ("isbi2012_train", "isbi2012_val"),
    "dsb2018": ("dsb2018_sem_seg_train", "dsb2018_sem_seg_val", "dsb2018_instances_train", "dsb2018_instances_val"),
    "aerial_dubai": ("aerial_dubai_train", "aerial_dubai_val"),
    "coco": ("coco_2017_train", "coco_2017_val"),
}


@pytest.mark.slow
@pytest.mark.parametrize("folder", GENUINE)
def test_genuine_data_have_no_errors(folder: str) -> None:
    if not (data_root() / folder).is_dir():
        pytest.skip(f"{data_root() / folder} is not there (DETECTRON2_DATASETS)")
    assert main(["data", "check", *GENUINE[folder]]) == 0
