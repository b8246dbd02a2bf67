"""What goes to W&B, MLflow and TensorBoard, with stand-ins for the packages that are not there."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from seg_ext.engine.trainer import Trainer
from seg_ext.errors import UserError


class Wandb:
    """Notes what it is given."""

    def __init__(self) -> None:
        self.begun: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, Any]]] = []
        self.finished = 0

    def init(self, **kwargs: Any) -> SimpleNamespace:
        self.begun.append(kwargs)
        return SimpleNamespace(id=kwargs["id"] or "id1", log=self.log, finish=self.finish)

    def log(self, values: dict[str, Any], step: int) -> None:
        assert not self.logged or step >= self.logged[-1][0], "W&B drops what is of an earlier step"
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished += 1

    def Image(self, picture: np.ndarray) -> np.ndarray:
        return picture


class Mlflow:
    """Likewise, and refuses the names that MLflow refuses."""

    def __init__(self) -> None:
        self.begun: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.texts: dict[str, str] = {}
        self.images: list[tuple[str, tuple[int, ...]]] = []
        self.ended = 0

    def start_run(self, **kwargs: Any) -> SimpleNamespace:
        self.begun.append(kwargs)
        return SimpleNamespace(info=SimpleNamespace(run_id=kwargs.get("run_id", "id2")))

    def log_text(self, text: str, name: str) -> None:
        self.texts[name] = text

    def log_metrics(self, values: dict[str, float], step: int) -> None:
        assert all(letter.isalnum() or letter in "_-. /:" for name in values for letter in name)
        self.logged.append((step, values))

    def log_image(self, picture: np.ndarray, name: str) -> None:
        self.images.append((name, picture.shape))

    def end_run(self) -> None:
        self.ended += 1


RUN = ("TEST.EVAL_PERIOD", 2, "TEST.PICTURES", 1)


def test_wandb_gets_numbers_pictures_and_config_and_goes_on_with_its_run(
    trainer: Callable[..., Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    trainer(*RUN, "WRITERS", "['wandb']").train()
    assert len(wandb.begun) == wandb.finished == 1
    begun = wandb.begun[0]
    assert begun["id"] is None and begun["name"] == "run" and begun["config"]["SOLVER"]["MAX_ITER"] == 4
    values: dict[str, list[int]] = {}
    for step, logged in wandb.logged:
        for name in logged:
            values.setdefault(name, []).append(step)
    assert values["total_loss"] == [1, 3] and values["sem_seg/mIoU"] == [1, 4]
    pictures = {name: x for _, logged in wandb.logged for name, x in logged.items() if isinstance(x, np.ndarray)}
    assert len(pictures) == 1 and next(iter(pictures.values())).shape[1:] == (640, 3)

    resumed = trainer(*RUN, "WRITERS", "['wandb']", "SOLVER.MAX_ITER", 6)
    resumed.resume_or_load(resume=True)
    resumed.train()
    assert wandb.begun[1]["id"] == "id1"
    assert [step for step, logged in wandb.logged if "total_loss" in logged] == [1, 3, 5]


def test_mlflow_gets_numbers_pictures_and_config(
    trainer: Callable[..., Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = Mlflow()
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    run = trainer(*RUN, "WRITERS", "['mlflow']")
    monkeypatch.setattr(run, "test", lambda cfg, model, test=run.test: {**test(cfg, model), "odd": {"a (b)": 1.0}})
    run.train()
    assert mlflow.begun == [{"run_name": "run"}] and mlflow.ended == 1
    assert "MAX_ITER: 4" in mlflow.texts["config.yaml"]
    assert [step for step, values in mlflow.logged if "odd/a _b_" in values] == [1, 4]
    assert len(mlflow.images) == 2 and all(shape[1:] == (640, 3) for _, shape in mlflow.images)


def test_tensorboard_shows_the_same_image_at_each_evaluation(trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    trainer(*RUN, "WRITERS", "['tensorboard']").train()
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    (tag,) = events.Tags()["images"]
    assert tag.endswith("/0_semantic") and [event.step for event in events.Images(tag)] == [1, 4]
    assert [event.width for event in events.Images(tag)] == [640] * 2
    assert "sem_seg/mIoU" in events.Tags()["scalars"]
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_pictures_are_not_kept_where_nobody_takes_them(trainer: Callable[..., Trainer]) -> None:
    run = trainer(*RUN, "WRITERS", "['json']")
    run.train()
    assert run.storage._vis_data == []


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_named_with_its_extra(
    trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"WRITERS {name}: needs {name}: pip install 'seg-ext\[{name}\]'"):
        trainer("WRITERS", f"['{name}']")


def test_an_unknown_writer_is_refused(trainer: Callable[..., Trainer]) -> None:
    with pytest.raises(UserError, match="WRITERS 'csv': takes json, tensorboard, wandb, mlflow"):
        trainer("WRITERS", "['csv']")
