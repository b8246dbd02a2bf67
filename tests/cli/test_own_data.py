"""Your own data, without Python: a data.yaml on the command line trains and scores every kind of model."""

from __future__ import annotations

import json
import math
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml

from seg_ext.cli.main import main

OWN = runpy.run_path(str(Path(__file__).parents[1] / "data" / "datasets" / "test_own.py"))
write_tree, derived_below_tmp = OWN["write_tree"], OWN["derived_below_tmp"]

COMMON = (
    "MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64",
    "MODEL.RESNETS.NORM", "GN", "MODEL.SEM_SEG_HEAD.NORM", "GN", "DATALOADER.NUM_WORKERS", "0",
    "SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.BASE_LR", "0.001", "INPUT.MIN_SIZE_TRAIN", "(32,)",
    "INPUT.MIN_SIZE_TEST", "32", "INPUT.FORMAT", "RGB",
)  # fmt: skip
UNET = ("MODEL.SEM_SEG_HEAD.DECODER.NAME", "unet", "MODEL.SEM_SEG_HEAD.DECODER.ARGS.channels", "[16, 16, 16]")
NO_SEMANTICS = ("MODEL.SEM_SEG_HEAD.NAME", "")
DETECTOR = (
    "MODEL.FPN.OUT_CHANNELS", "16", "MODEL.FPN.NORM", "GN", "MODEL.ROI_BOX_HEAD.FC_DIM", "16",
    "MODEL.ROI_MASK_HEAD.CONV_DIM", "16", "MODEL.ROI_MASK_HEAD.NUM_CONV", "1",
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN", "100", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "20", "MODEL.RPN.PRE_NMS_TOPK_TEST", "100",
    "MODEL.RPN.POST_NMS_TOPK_TEST", "20", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "8",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "TEST.DETECTIONS_PER_IMAGE", "8",
)  # fmt: skip
SEMANTIC = ("--config-file", "Base-Semantic.yaml")
PANOPTIC = ("--config-file", "Base-Panoptic.yaml")
TASKS = {"sem_seg": "mIoU", "bbox": "AP", "segm": "AP", "panoptic_seg": "PQ"}


@pytest.fixture(autouse=True)
def below_tmp(derived_below_tmp: None) -> None:
    """No data set stays registered, and what is derived goes below tmp_path."""


def run(*argv: object) -> int:
    return main([str(arg) for arg in argv])


def refusal(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    capsys.readouterr()
    assert run(*argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("seg-ext: error: ")
    return line


def saved_config(folder: Path) -> dict[str, Any]:
    return yaml.safe_load((folder / "config.yaml").read_text())


@pytest.mark.parametrize(
    ("kind", "base", "options", "tasks", "counts"),
    [
        ("masks", SEMANTIC, UNET, {"sem_seg"}, (3, None)),
        ("colors", SEMANTIC, UNET, {"sem_seg"}, (3, None)),
        ("labelme", SEMANTIC, UNET, {"sem_seg"}, (3, None)),
        ("panoptic", PANOPTIC, (*UNET, *DETECTOR), set(TASKS), (3, 2)),
        ("coco", PANOPTIC, (*NO_SEMANTICS, *DETECTOR), {"bbox", "segm"}, (None, 2)),
        ("labelme", PANOPTIC, (*NO_SEMANTICS, *DETECTOR), {"bbox", "segm"}, (None, 2)),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_model_trains_and_is_scored_on_a_data_yaml(
    kind: str, base: tuple, options: tuple, tasks: set[str], counts: tuple, tmp_path: Path
) -> None:
    file, out = write_tree(tmp_path / kind, kind), tmp_path / "run"
    assert run("train", *base, "--data", file, *COMMON, *options, "OUTPUT_DIR", out) == 0
    results = json.loads((out / "results.json").read_text())
    assert set(results) == {*tasks, "about"}
    assert all(0 <= results[task][TASKS[task]] <= 100 for task in tasks)
    losses = [json.loads(line) for line in (out / "metrics.json").read_text().splitlines()]
    assert all(math.isfinite(line["total_loss"]) for line in losses if "total_loss" in line)
    config = saved_config(out)
    heads = config["MODEL"]["SEM_SEG_HEAD"]["NUM_CLASSES"], config["MODEL"]["ROI_HEADS"]["NUM_CLASSES"]
    assert all(count in (None, head) for count, head in zip(counts, heads, strict=True))
    assert (config["DATASETS"]["TRAIN"], config["DATASETS"]["TEST"]) == ([f"own_{kind}_train"], [f"own_{kind}_val"])

    (out / "results.json").unlink()
    assert run("eval", "--config-file", out / "config.yaml", "--weights", out / "model_final.pth") == 0
    again = json.loads((out / "results.json").read_text())
    assert {task: again[task] for task in tasks} == {task: results[task] for task in tasks}
    assert again["about"]["data"] == results["about"]["data"]


def test_a_config_may_name_the_file_and_its_weights_predict_where_the_data_are_gone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = write_tree(tmp_path / "masks", "masks"), tmp_path / "run"
    sets = ("DATASETS.FILES", f"['{file}']", "DATASETS.TRAIN", "('own_masks_val',)", "DATASETS.TEST", "()")
    assert run("train", *SEMANTIC, *sets, *COMMON, *UNET, "OUTPUT_DIR", out) == 0
    config = saved_config(out)
    assert config["MODEL"]["SEM_SEG_HEAD"]["NUM_CLASSES"] == 3
    assert (config["DATASETS"]["TRAIN"], config["DATASETS"]["TEST"]) == (["own_masks_val"], [])
    (tmp_path / "masks" / "images").rename(tmp_path / "images")
    file.unlink()
    image, weights = tmp_path / "images" / "s0.png", out / "model_final.pth"
    assert run("predict", "--weights", weights, "--input", image, "--output", tmp_path / "predicted") == 0
    assert any((tmp_path / "predicted").rglob("*.png"))
    assert "nowhere.yaml: cannot be read" in refusal(capsys, "train", *SEMANTIC, "DATASETS.FILES", "['nowhere.yaml']")


@pytest.mark.slow
def test_two_processes_train_on_derived_data(tmp_path: Path) -> None:
    file, out = write_tree(tmp_path / "labelme", "labelme"), tmp_path / "run"
    flags = ("--num-gpus", 2, "--dist-url", "auto")
    options = (*COMMON, *UNET, *DETECTOR, "OUTPUT_DIR", out)
    assert run("train", *PANOPTIC, "--data", file, *flags, *options) == 0
    assert set(json.loads((out / "results.json").read_text())) == {*TASKS, "about"}


def test_data_that_do_not_serve_the_model_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    masks, labelme = write_tree(tmp_path / "m", "masks"), write_tree(tmp_path / "l", "labelme")
    cpu = ("MODEL.DEVICE", "cpu")
    text = refusal(capsys, "train", *PANOPTIC, "--data", masks, *cpu, *UNET)
    assert "data set own_masks_train has no instances" in text and str(masks) in text
    assert "needs COCO, panoptic or LabelMe annotations" in text
    camvid = ("--config-file", "camvid/unet_R_18_cpu.yaml")
    text = refusal(capsys, "train", *camvid, "--data", masks, *cpu)
    assert "NUM_CLASSES is 11, but data set own_masks_train has 3 classes" in text
    assert "camvid/unet_R_18_cpu.yaml" in text and f"the latter by {masks}" in text
    text = refusal(capsys, "train", *SEMANTIC, "--data", labelme, *cpu, *UNET, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 2)
    assert "NUM_CLASSES is 2, but data set own_labelme_train has 3 classes" in text and "the command line" in text
    (tmp_path / "l" / "labelme" / "s0.json").write_text('{"shapes": [{"label": "cat", "points": []}]}')
    for command in ("train", "eval"):
        out = ("--data", labelme, *cpu, *UNET, "OUTPUT_DIR", tmp_path / "run")
        text = refusal(capsys, command, *SEMANTIC, *out)
        assert "s0.json: label 'cat' is not in classes (shapes: 1, files: 1)" in text
    assert not (tmp_path / "run").exists()
    assert "none.yaml: cannot be read" in refusal(capsys, "predict", "--input", masks, *SEMANTIC, "--data", "none.yaml")
