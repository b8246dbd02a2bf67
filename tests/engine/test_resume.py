"""Exact resume: a run that was killed and goes on gives the numbers of one that was left alone, to the bit."""

from __future__ import annotations

import io
import json
import logging
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from seg_ext.checkpoint import Checkpointer
from seg_ext.cli.main import main
from seg_ext.data.stream import TrainLoader
from seg_ext.engine.interrupt import CutOff, StopRequest
from seg_ext.engine.resume import Checkpoints, RunState, rng_state, set_rng_state, unchanged_rng

ROOT = Path(__file__).parents[2]
KILLED = """
import os, signal, sys, threading, time
from seg_ext.cli.main import main
from seg_ext.engine.trainer import Trainer
step, at, seconds = Trainer.run_step, int(sys.argv[1]), float(sys.argv[2])
def run_step(self):
    if self.iter == at:
        threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
    if self.iter > at + 1:
        time.sleep(60)  # it comes
    step(self)
Trainer.run_step = run_step
main(sys.argv[3:])
"""
COMMON = (
    "MODEL.DEVICE", "cpu", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "8", "SOLVER.CHECKPOINT_PERIOD", "2",
    "TEST.EVAL_PERIOD", "4", "DATALOADER.NUM_WORKERS", "2", "DATALOADER.ASPECT_RATIO_GROUPING", "True",
)  # fmt: skip
PANOPTIC = (
    "MODEL.FPN.OUT_CHANNELS", "32", "MODEL.ROI_BOX_HEAD.FC_DIM", "32", "MODEL.ROI_MASK_HEAD.CONV_DIM", "32",
    "MODEL.RPN.POST_NMS_TOPK_TRAIN", "64", "MODEL.RPN.POST_NMS_TOPK_TEST", "16", "INPUT.MIN_SIZE_TEST", "48",
    "TEST.GALLERY", "0", "SOLVER.OPTIMIZER", "SGD", "SOLVER.BASE_LR", "0.01",
    "INPUT.AUGMENTATIONS", "[{'NAME': 'RandomScaleCrop', 'size': [48, 48], 'scale': [1.0, 1.2]}]",
)  # fmt: skip


pytestmark = pytest.mark.usefixtures("one_thread")  # as in the process that is killed


def discs(index: int) -> np.ndarray:
    """Ids of two, landscape and portrait in turn."""
    label = np.zeros((64, 48) if index % 2 else (48, 64), np.uint16)
    cv2.circle(label, (14, 16), 9, 1, cv2.FILLED)
    return cv2.circle(label, (32 + index, 30), 10, 2, cv2.FILLED)


@pytest.fixture
def tree(nuclei_tree: Callable[..., Path]) -> Path:
    return nuclei_tree({"train": [discs(index) for index in range(5)], "test": [discs(0)]})


def semantic(tree: Path, toy_config: Path) -> list[str]:
    """The toy network with dropout, on the images of the tree."""
    train = tree / "nuclei" / "train"
    text = toy_config.read_text().replace("unet, ARGS: {channels: [16, 16]}", "fcn_head, ARGS: {dropout: 0.3}")
    for folder, place in (("IMAGES", train / "images"), ("LABELS", train / "binary")):
        text = text.replace(text.split(f"{folder}: ")[1].split(",")[0], str(place))
    (train / "binary").mkdir()
    for file in (train / "labels").iterdir():
        label = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
        cv2.imwrite(str(train / "binary" / file.name), (label > 0).astype(np.uint8))
    toy_config.write_text(text)
    return ["train", "--config-file", str(toy_config)]


def panoptic(tree: Path, toy_config: Path) -> list[str]:
    return ["train", "--config-file", "nuclei/panoptic_unet_R_18_FPN.yaml", *PANOPTIC, "SEED", "0"]


def outcome(folder: Path) -> tuple[Any, ...]:
    """All that is to be equal: the lines of metrics.json, every loss of every iteration, the last weights."""
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    final = torch.load(folder / "model_final.pth")
    losses = final["trainer"]["hooks"]["RunState"]["metrics"]
    timeless = [{key: x for key, x in line.items() if "time" not in key and key != "eta_seconds"} for line in lines]
    weights = {name: x.numpy().tobytes() for name, x in final["model"].items()}
    return timeless, {name: x for name, x in losses.items() if "time" not in name and name != "eta_seconds"}, weights


@pytest.mark.parametrize("task", [semantic, panoptic])
def test_a_killed_run_goes_on_to_the_bit(tree: Path, toy_config: Path, task: Any) -> None:
    command = [*task(tree, toy_config), *COMMON]
    assert main([*command, "OUTPUT_DIR", str(tree / "whole")]) == 0
    expected = outcome(tree / "whole")
    assert len(expected[1]["total_loss"]) == 8 and [line["iteration"] for line in expected[0]] == [3, 7, 8]

    at, seconds = random.randint(2, 5), random.uniform(0, 0.1)  # nobody's seed: another place each time
    place = ["OUTPUT_DIR", str(tree / "killed")]
    environment = {**os.environ, "DETECTRON2_DATASETS": str(tree), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(at), str(seconds), *command, *place], env=environment, timeout=120
    )
    assert killed.returncode == -signal.SIGKILL and not (tree / "killed" / "model_final.pth").exists()
    command.insert(1, "--resume")
    assert main([*command, *place]) == 0
    assert str(outcome(tree / "killed")) == str(expected), f"killed {seconds:.3f} s into iteration {at}"


def test_an_evaluation_that_failed_is_made_up_for_and_costs_no_training(
    toy_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [
        "SOLVER.MAX_ITER",
        "4",
        "SOLVER.CHECKPOINT_PERIOD",
        "2",
        "TEST.EVAL_PERIOD",
        "2",
        "TEST.BEST",
        "sem_seg/mIoU",
    ]
    command = ["train", "--config-file", str(toy_config), *keys, "OUTPUT_DIR"]
    assert main([*command, str(tmp_path / "whole")]) == 0

    def fail(*args: Any) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="out of memory"):
        patched.setattr("seg_ext.engine.trainer.evaluate", fail)
        main([*command, str(tmp_path / "failed")])
    assert (tmp_path / "failed" / "last_checkpoint").read_text() == "model_0000001.pth"
    metrics = tmp_path / "failed" / "metrics.json"
    metrics.write_text(metrics.read_text() + '{"iteration": 3, "total_loss": 7}\n{"iter')  # of a later time
    assert main([command[0], "--resume", *command[1:], str(tmp_path / "failed")]) == 0
    assert str(outcome(tmp_path / "failed")) == str(outcome(tmp_path / "whole"))
    first, second = (torch.load(tmp_path / run / "model_final.pth")["trainer"]["hooks"] for run in ("whole", "failed"))
    assert first["Selection"] == second["Selection"] and first["Selection"]["seen"] == 3


def test_a_signal_cuts_an_evaluation_off_and_the_run_goes_on_to_the_same_end(
    toy_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "--config-file", str(toy_config), "SOLVER.MAX_ITER", "4", "TEST.EVAL_PERIOD", "1", "OUTPUT_DIR"]
    assert main([*command, str(tmp_path / "whole")]) == 0
    assert "of it waiting for data: " in capsys.readouterr().err
    expected = outcome(tmp_path / "whole")
    scored = [line["iteration"] for line in expected[0] if "sem_seg/mIoU" in line]
    assert scored == [0, 1, 2, 4], "each evaluation is written"

    class Signalled:
        images = 0

        def __init__(self, cfg: Any, model: nn.Module) -> None:
            self.model = model

        def __call__(self, inputs: Any) -> Any:
            Signalled.images += 1
            if Signalled.images == 7:  # the second of the second evaluation's five
                signal.raise_signal(signal.SIGTERM)
            return self.model(inputs)

    with monkeypatch.context() as patched:
        patched.setattr("seg_ext.engine.evaluate.build_predictor", Signalled)
        assert main([*command, str(tmp_path / "cut")]) == 130
    assert Signalled.images == 7 and (tmp_path / "cut" / "last_checkpoint").read_text() == "model_0000001.pth"
    assert "stopped during an evaluation, kept model_0000001.pth; go on with it by --resume" in capsys.readouterr().err
    assert main([command[0], "--resume", *command[1:], str(tmp_path / "cut")]) == 0
    assert str(outcome(tmp_path / "cut")) == str(expected)


def test_all_processes_stop_where_one_was_asked_once_their_own_batches_are_through(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stop, seen = StopRequest(), list[int]()
    assert list(stop.until([1, 2])) == [1, 2], "outside a training nothing is asked"
    stop.listen()
    try:
        monkeypatch.setattr("detectron2.utils.comm.all_gather", lambda own: [own, True])
        with pytest.raises(CutOff):
            for batch in stop.until([1, 2]):
                seen.append(batch)
        assert seen == [1, 2]
        monkeypatch.setattr("detectron2.utils.comm.all_gather", lambda own: [own, False])
        assert list(stop.until([1, 2])) == [1, 2]
    finally:
        stop.release()


def test_scoring_more_often_changes_no_loss(toy_config: Path, tmp_path: Path) -> None:
    text = toy_config.read_text().replace("unet, ARGS: {channels: [16, 16]}", "fcn_head, ARGS: {dropout: 0.3}")
    toy_config.write_text(text)
    weights = []
    for period in ("0", "1"):
        out = tmp_path / period
        command = ["train", "--config-file", str(toy_config), "OUTPUT_DIR", str(out)]
        assert main([*command, "SOLVER.MAX_ITER", "3", "TEST.EVAL_PERIOD", period]) == 0
        weights.append(outcome(out)[2])
    assert weights[0] == weights[1]


@pytest.mark.parametrize(("period", "between"), [(2, ["model_0000001", "model_0000003"]), (0, [])])
def test_checkpoints_come_by_their_period_and_at_the_end(period: int, between: list[str]) -> None:
    saved: list[str] = []
    hook = Checkpoints(SimpleNamespace(save=lambda name, finished=True: saved.append(name)), period)
    for iteration in range(4):
        hook.trainer = SimpleNamespace(iter=iteration, max_iter=4)
        hook.after_step()
    assert saved == [*between, "model_final"]


def test_generators_go_on_as_if_nothing_had_been_drawn() -> None:
    def draw() -> list[float]:
        return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(1).item()]

    draw()  # an odd number of normal ones: the second of a pair is part of the state
    state = rng_state()
    torch.save(state, content := io.BytesIO())
    with unchanged_rng():
        first = draw()
    assert draw() == first
    content.seek(0)
    set_rng_state(torch.load(content, weights_only=True))
    assert draw() == first


class _Loader(TrainLoader):
    def __init__(self, batch_size: int) -> None:
        super().__init__([{}], dict, [0], batch_size=batch_size, seed=0)


@pytest.mark.parametrize("processes", [0, 1, 3])
def test_with_other_processes_a_run_goes_on_where_nothing_was_seen_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, processes: int
) -> None:
    trainer = SimpleNamespace(start_iter=5, iter=5, storage=EventStorage(5), _hooks=[])
    loader = _Loader(batch_size=4)
    hook = RunState(Checkpointer(nn.Linear(1, 1), str(tmp_path)), loader, seed=0)
    hook.trainer = trainer
    state = hook.state_dict()
    stream = {"position": 31, "pending": [3], "skipped": {}}
    state["ranks"] = [{"stream": {**stream, "position": 31 - rank}, "rng": rng_state()} for rank in range(processes)]
    if processes:  # else a checkpoint of a trainer without this hook
        hook.load_state_dict(state)
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 2)
    monkeypatch.setattr(logging.getLogger("seg_ext"), "propagate", True)
    hook.before_train()
    assert (loader.position, loader.pending) == ((31, []) if processes else (20, []))
    assert f"stream positions of {processes} processes and there are 2" in caplog.text


def test_a_second_signal_ends_the_run_at_once(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def leave(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr(os, "_exit", leave)
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    stop = StopRequest()
    stop.listen()
    try:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # the same request, by way of a launcher
        assert stop._asked_at is not None
        stop._asked_at -= 2
        with pytest.raises(SystemExit, match="130"):
            signal.raise_signal(signal.SIGINT)
    finally:
        stop.release()
    assert "seg-ext: stopped at once" in capfd.readouterr().err
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
