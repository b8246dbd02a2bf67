"""The best evaluation is kept, and a training that gets no better ends."""

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from seg_ext.config import get_cfg
from seg_ext.engine.selection import Selection, StoppedEarly, build_selection
from seg_ext.engine.trainer import Trainer
from seg_ext.errors import UserError

SCORE = "sem_seg/mIoU"


def follow(scores: list[float], metric: str = SCORE, *, hook: Selection | None = None, **kwargs: Any) -> dict[str, Any]:
    """Hand over evaluations after iterations 9, 19, ...; which were the best, and where it stopped, if it did."""
    saved: list[tuple[str, int]] = []
    task, name = metric.split("/")
    hook = hook or Selection(lambda name: saved.append((name, hook.trainer.iter)), metric, **kwargs)
    hook.trainer = SimpleNamespace(max_iter=10**6, iter=0, evaluation=None)
    stopped = None
    for number, score in enumerate(scores, 1):
        hook.trainer.iter = 10 * number - 1
        hook.after_step()  # an iteration without a new evaluation
        hook.trainer.evaluation = (10 * number - 1, {task: {name: score}})
        try:
            hook.after_step()
        except StoppedEarly:
            stopped = number
            break
    best = [iteration for file, iteration in saved if file == "model_best"]
    return {"best": best, "stopped": stopped, "last": saved[-1] if saved else None, "hook": hook}


def test_a_plateau_stops_after_the_patience() -> None:
    found = follow([10, 20, 30, 30, 30, 29, 30, 90], patience=4)
    assert found["best"] == [9, 19, 29] and found["stopped"] == 7
    assert found["last"] == ("model_final", 69)


def test_a_gain_within_the_patience_starts_it_anew() -> None:
    assert follow([10, 9, 9, 11, 9, 9, 12, 9, 9, 9], patience=3)["stopped"] == 10
    assert follow([10, 9] * 20)["stopped"] is None


def test_small_gains_are_kept_but_are_no_reason_to_go_on() -> None:
    found = follow([10, 10.4, 10.8, 11.2, 11.3], patience=3, min_delta=1.0)
    assert found["best"] == [9, 19, 29, 39, 49] and found["stopped"] is None  # 11.2 is more than 1 above 10
    assert follow([10, 10.4, 10.8, 10.9], patience=3, min_delta=1.0)["stopped"] == 4


@pytest.mark.parametrize(
    ("metric", "mode", "least"),
    [
        ("sem_seg/mIoU", "", False),
        ("segm/AP50", "", False),
        ("validation/total_loss", "", True),
        ("sem_seg/ECE", "", True),
        ("sem_seg/AURC", "", True),
        ("sem_seg/IoU-forest_loss", "", False),  # the name of a class
        ("segm_tide/Bkg", "", True),
        ("segm_tide/AP50", "", False),
        ("sem_seg/odd", "min", True),
        ("validation/loss_of_something_good", "max", False),
    ],
)
def test_the_direction_follows_from_the_name_or_is_given(metric: str, mode: str, least: bool) -> None:
    assert follow([5, 4, 6, 3], metric, mode=mode)["best"] == ([9, 19, 39] if least else [9, 29])


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_never_the_best(odd: float) -> None:
    assert follow([odd, 1, odd, 2])["best"] == [19, 39]
    assert follow([odd] * 5, patience=2)["stopped"] == 2


def test_a_resumed_run_knows_the_best_and_its_patience() -> None:
    state = follow([10, 30, 20])["hook"].state_dict()
    saved: list[str] = []
    hook = Selection(saved.append, SCORE, patience=3)
    hook.load_state_dict(json.loads(json.dumps(state)))
    assert (hook.best, hook.iteration, hook.waited) == (30, 19, 1)
    follow([0, 0, 0, 25], hook=hook)  # the first three it has seen
    assert saved == [] and hook.waited == 2
    other = Selection(saved.append, "segm/AP", patience=3)
    other.load_state_dict(state)
    assert other.best is None and other.waited == 0


def test_an_unknown_score_is_named_with_those_there_are() -> None:
    saved: list[str] = []
    hook = Selection(saved.append, "sem_seg/miou")
    hook.trainer = SimpleNamespace(max_iter=100, iter=9, evaluation=(9, {"sem_seg": {"mIoU": 1.0, "pACC": 2.0}}))
    with pytest.raises(UserError, match="'sem_seg/miou': the evaluation has no such score; it has sem_seg/mIoU"):
        hook.after_step()
    assert saved == ["model_0000009"], "the training so far is not lost"


def test_training_keeps_the_best_and_stops_early(
    trainer: Callable[..., Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stop = ("TEST.BEST", SCORE, "TEST.EARLY_STOP.PATIENCE", 2, "TEST.EVAL_PERIOD", 1)
    run = trainer(*stop, "SOLVER.MAX_ITER", 50, "SOLVER.CHECKPOINT_PERIOD", 50)
    scores = iter([10.0, 30.0, 20.0, 30.0, 90.0])
    monkeypatch.setattr(run, "test", lambda cfg, model: {"sem_seg": {"mIoU": next(scores)}})
    with caplog.at_level(logging.INFO):
        assert run.train() == {"sem_seg": {"mIoU": 30.0}}
    assert "stopped after iteration 4: sem_seg/mIoU 30, the best is 30 of iteration 2" in caplog.text
    assert "Exception during training" not in caplog.text
    files = {file.name: torch.load(file) for file in (tmp_path / "run").glob("*.pth")}
    assert {name: file["iteration"] for name, file in files.items()} == {"model_best.pth": 1, "model_final.pth": 3}
    assert (tmp_path / "run" / "last_checkpoint").read_text() == "model_final.pth"
    written = [json.loads(line) for line in (tmp_path / "run" / "metrics.json").read_text().splitlines()]
    assert written[-1]["iteration"] == 3 and written[-1][SCORE] == 30.0
    resumed = trainer(*stop, "SOLVER.MAX_ITER", 5, "SOLVER.CHECKPOINT_PERIOD", 50)
    resumed.resume_or_load(resume=True)
    monkeypatch.setattr(resumed, "test", lambda cfg, model: {"sem_seg": {"mIoU": next(scores)}})
    resumed.train()
    assert torch.load(tmp_path / "run" / "model_best.pth")["iteration"] == 4, "of the evaluation after the last"
    state = torch.load(tmp_path / "run" / "model_final.pth")["trainer"]
    assert state["iteration"] == 4 and state["hooks"]["Selection"]["best"] == 90.0


@pytest.mark.parametrize(
    ("test", "line"),
    [
        ({"EARLY_STOP": {"PATIENCE": 3}}, "PATIENCE needs the score that counts: set TEST.BEST"),
        ({"BEST": SCORE, "EARLY_STOP": {"PATIENCE": 3}, "EVAL_PERIOD": 0}, "set TEST.EVAL_PERIOD"),
        ({"BEST": SCORE, "EARLY_STOP": {"PATIENCE": -1}, "EVAL_PERIOD": 1}, "PATIENCE -1: takes a number"),
        ({"BEST": SCORE, "EARLY_STOP": {"MIN_DELTA": -0.1}}, "MIN_DELTA -0.1: takes a number >= 0"),
        ({"BEST": SCORE, "BEST_MODE": "maximum"}, "TEST.BEST_MODE 'maximum': takes max, min"),
        ({"BEST": "validation/total_loss"}, "needs TEST.VALIDATION_LOSS True"),
    ],
)
def test_settings_that_do_not_fit_are_refused(test: dict[str, Any], line: str) -> None:
    cfg = get_cfg()
    cfg.DATASETS.TEST = ("some",)
    cfg.TEST.EARLY_STOP.update(test.pop("EARLY_STOP", {}))
    cfg.TEST.update(test)
    with pytest.raises(UserError, match=line):
        build_selection(cfg, lambda name: None)
