"""The command line end to end on toy images, and its answers to bad input."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from seg_ext.cli.main import main
from seg_ext.config import load_config

ROOT = Path(__file__).parents[2]


def run(*argv: str) -> int:
    return main([str(arg) for arg in argv])


def refusal(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line on stderr of a command that exits with status 2."""
    capsys.readouterr()
    assert run(*argv) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "running on the CPU" not in line]
    assert len(lines) == 1 and lines[0].startswith("seg-ext: error: "), lines
    return lines[0]


def scores_in(folder: Path) -> dict:
    """What a run's results.json holds beside what it says of itself."""
    results = json.loads((folder / "results.json").read_text())
    assert {"versions", "data", "config"} <= set(results.pop("about"))
    return results


def test_trains_evaluates_resumes_and_predicts(toy_config: Path, toy_folder: Path, tmp_path: Path, capsys) -> None:
    assert run("train", "--config-file", toy_config, "TEST.GALLERY", "3") == 0
    out = tmp_path / "run"
    results = scores_in(out)
    assert 0 <= results["sem_seg"]["mIoU"] <= 100 and "mIoU" in capsys.readouterr().out
    for name in ("config.yaml", "run.log", "metrics.json", "model_final.pth", "gallery/index.html", "confusion.csv"):
        assert (out / name).is_file(), name
    written = [json.loads(line) for line in (out / "metrics.json").read_text().splitlines()]
    assert written[-1]["sem_seg/mIoU"] == pytest.approx(results["sem_seg"]["mIoU"]) and "total_loss" in written[0]

    assert run("eval", "--config-file", toy_config, "--weights", out / "model_final.pth", "--html", "--per-image") == 0
    assert scores_in(out) == results
    assert "Confusion matrix" in (out / "gallery" / "index.html").read_text()
    assert len((out / "per_image_sem_seg.jsonl").read_text().splitlines()) == 1 + 5
    assert run("train", "--config-file", toy_config, "--eval-only", "MODEL.WEIGHTS", out / "model_final.pth") == 0
    assert scores_in(out) == results

    assert run("train", "--config-file", toy_config, "--resume", "SOLVER.MAX_ITER", "6") == 0
    assert torch.load(out / "model_final.pth")["iteration"] == 5

    destination = tmp_path / "predictions"
    arguments = ("--weights", out / "model_final.pth", "--input", toy_folder / "images", "--output", destination)
    assert run("predict", *arguments, "--config-file", toy_config) == 0
    labels = [cv2.imread(str(file), cv2.IMREAD_UNCHANGED) for file in destination.rglob("*.png")]
    assert len(labels) >= 10 and all(label.shape[:2] == (48, 40) for label in labels if label.ndim == 2)


def test_learns_the_toy_task(toy_config: Path, tmp_path: Path) -> None:
    adam = ("SOLVER.OPTIMIZER", "ADAMW", "SOLVER.BASE_LR", ".002")
    assert run("train", "--config-file", toy_config, "SOLVER.MAX_ITER", "100", "SOLVER.IMS_PER_BATCH", "4", *adam) == 0
    assert scores_in(tmp_path / "run")["sem_seg"]["mIoU"] > 95


def test_same_seed_same_losses(toy_config: Path, tmp_path: Path) -> None:
    losses = []
    for folder in ("a", "b"):
        assert run("train", "--config-file", toy_config, "OUTPUT_DIR", tmp_path / folder, "DATASETS.TEST", "()") == 0
        weights = torch.load(tmp_path / folder / "model_final.pth")["model"]
        losses.append(sum(x.double().sum().item() for x in weights.values()))
    assert losses[0] == losses[1]


def test_two_processes_train_and_score_like_one(toy_config: Path, tmp_path: Path) -> None:
    weights = tmp_path / "run" / "model_final.pth"
    assert run("train", "--config-file", toy_config) == 0
    one = scores_in(tmp_path / "run")
    command = [str(ROOT / "tools/train_net.py"), "--config-file", str(toy_config)]
    flags = ["--num-gpus", "2", "--dist-url", "auto", "--eval-only", "MODEL.WEIGHTS", str(weights)]
    assert subprocess.run([sys.executable, *command, *flags], env=quiet(), timeout=300).returncode == 0
    assert scores_in(tmp_path / "run") == one
    launcher, two = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"], tmp_path / "two"
    flags = ["OUTPUT_DIR", str(two)]
    assert subprocess.run([*launcher, *command, *flags], env=quiet(), timeout=300).returncode == 0
    trained = scores_in(two)
    assert run("eval", "--config-file", toy_config, "--weights", str(two / "model_final.pth"), *flags) == 0
    assert scores_in(two) == trained


def quiet() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@pytest.mark.parametrize(("processes", "number"), [(1, signal.SIGTERM), (2, signal.SIGINT), (2, signal.SIGTERM)])
def test_an_interrupted_run_keeps_a_checkpoint_and_resumes(
    toy_config: Path, tmp_path: Path, number: int, processes: int
) -> None:
    command = [sys.executable, str(ROOT / "tools/train_net.py"), "--config-file", str(toy_config)]
    flags = ["--num-gpus", str(processes), "--dist-url", "auto", "SOLVER.MAX_ITER", "100000"]
    process = subprocess.Popen(
        [*command, *flags], env=quiet(), stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    metrics = tmp_path / "run" / "metrics.json"
    deadline = time.monotonic() + 120
    while not (metrics.is_file() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, number)  # as Ctrl-C or a scheduler does: to all processes of the run
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "go on with --resume" in errors and "Traceback" not in errors
    kept = (tmp_path / "run" / "last_checkpoint").read_text()
    iteration = torch.load(tmp_path / "run" / kept)["iteration"]
    assert iteration > 1
    assert run("train", "--config-file", toy_config, "--resume", "SOLVER.MAX_ITER", str(iteration + 3)) == 0


def test_bad_configs_are_one_line(toy_config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("train", "--config-file", toy_config)
    assert "--config-file is missing" in refusal(capsys, "train")
    assert "config file nowhere.yaml not found" in refusal(capsys, "train", "--config-file", "nowhere.yaml")
    assert "did you mean SOLVER.MAX_ITER?" in refusal(capsys, *command, "SOLVER.MAX_ITERS", "3")
    text = refusal(capsys, *command, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "7")
    assert "NUM_CLASSES is 7" in text and "has 2 classes" in text
    assert "unknown data set 'camvid_trian'; did you mean camvid_train" in refusal(
        capsys, *command, "DATASETS.TRAIN", "('camvid_trian',)"
    )
    assert "MODEL.BACKBONE.NAME 'resnet'" in refusal(capsys, *command, "MODEL.BACKBONE.NAME", "resnet")
    assert "SOLVER.OPTIMIZER 'LION'" in refusal(capsys, *command, "SOLVER.OPTIMIZER", "LION")
    assert "SOLVER.LR_SCHEDULER_NAME 'Step'" in refusal(capsys, *command, "SOLVER.LR_SCHEDULER_NAME", "Step")
    assert "TEST.SEMANTIC_METRICS: unknown 'iou'" in refusal(capsys, *command, "TEST.SEMANTIC_METRICS", "['iou']")
    assert "DATASETS.TRAIN is empty" in refusal(capsys, *command, "DATASETS.TRAIN", "()")
    assert "weights nowhere.pth not found" in refusal(capsys, *command, "MODEL.WEIGHTS", "nowhere.pth")
    assert "OUTPUT_DIR" in refusal(capsys, *command, "OUTPUT_DIR", f"{toy_config}/below_a_file")
    assert "nothing to evaluate" in refusal(capsys, "eval", "--config-file", toy_config)
    assert "DATASETS.TEST is empty" in refusal(capsys, "eval", "--config-file", toy_config, "DATASETS.TEST", "()")


def test_a_missing_data_root_is_named(
    toy_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    head = ("MODEL.SEM_SEG_HEAD.NUM_CLASSES", "11", "DATASETS.TEST", "()")
    text = refusal(capsys, "train", "--config-file", toy_config, "DATASETS.TRAIN", "('camvid_train',)", *head)
    assert "camvid" in text and "not found" in text and "DETECTRON2_DATASETS" in text


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("fault", ["truncated image", "label out of range", "sizes differ", "empty", "no label"])
def test_bad_data_is_one_line(
    toy_config: Path, toy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str, workers: int
) -> None:
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    if fault != "empty":
        image = (toy_folder / "images" / "0.png").read_bytes()
        label = cv2.imread(str(toy_folder / "labels" / "0.png"), cv2.IMREAD_UNCHANGED)
        (tmp_path / "images" / "0.png").write_bytes(image[: len(image) // 2] if "truncated" in fault else image)
        label = np.full_like(label, 9) if "range" in fault else label[:-2] if "differ" in fault else label
        if fault != "no label":
            cv2.imwrite(str(tmp_path / "labels" / "0.png"), label)
    toy_config.write_text(toy_config.read_text().replace(str(toy_folder), str(tmp_path)))
    text = refusal(capsys, "train", "--config-file", toy_config, "DATALOADER.NUM_WORKERS", str(workers))
    expected = {"empty": "images", "label out of range": "labels/0.png", "no label": "0"}
    assert expected.get(fault, "images/0.png") in text
    assert ("9" in text and "2" in text) or "range" not in fault


def test_debug_shows_the_traceback(toy_config: Path) -> None:
    from seg_ext.errors import UserError

    with pytest.raises(UserError):
        run("train", "--config-file", toy_config, "--debug", "SOLVER.OPTIMIZER", "LION")


def test_class_weights_named_in_the_config_are_numbers_in_the_run(toy_config: Path, tmp_path: Path) -> None:
    named = ["MODEL.SEM_SEG_HEAD.LOSSES", '[{"NAME": "cross_entropy", "class_weights": "median_frequency"}]']
    assert run("train", "--config-file", toy_config, *named, "SOLVER.MAX_ITER", 2) == 0
    resolved = load_config(tmp_path / "run" / "config.yaml").MODEL.SEM_SEG_HEAD.LOSSES[0]["class_weights"]
    assert len(resolved) == 2 and all(weight > 0 for weight in resolved)
    final = tmp_path / "run" / "model_final.pth"
    assert run("eval", "--config-file", toy_config, "--weights", final, *named) == 0
