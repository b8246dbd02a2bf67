"""Schedule-free training: gradients at the trained weights, evaluation and checkpoints with their average."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from seg_ext.config import get_cfg
from seg_ext.engine.solver import build_optimizer
from seg_ext.engine.trainer import Trainer
from seg_ext.errors import UserError


class ScheduleFree(torch.optim.Optimizer):
    """SGD that moves z and averages it into x; gradients are at y = 0.1 z + 0.9 x (Defazio et al., 2024)."""

    def __init__(self, params: Any, lr: float, momentum: float = 0.9) -> None:
        super().__init__(params, {"lr": lr, "k": 0, "train_mode": False, "momentum": momentum, "weight_decay": 0.0})

    def train(self) -> None:
        self._switch(True, lambda group: 1 - group["momentum"])

    def eval(self) -> None:
        self._switch(False, lambda group: 1 - 1 / group["momentum"])

    @torch.no_grad()
    def _switch(self, training: bool, share: Any) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if group["train_mode"] != training and "z" in self.state[p]:
                    p.lerp_(self.state[p]["z"], share(group))
            group["train_mode"] = training

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            assert group["train_mode"], "a step with the average in the model"
            momentum = group["momentum"]
            group["k"] += 1
            for p in (p for p in group["params"] if p.grad is not None):
                z = self.state[p].setdefault("z", p.clone())
                x = (p - (1 - momentum) * z) / momentum
                z -= group["lr"] * p.grad
                x.lerp_(z, 1 / group["k"])
                p.copy_((1 - momentum) * z + momentum * x)


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    classes = {"SGDScheduleFree": ScheduleFree, "AdamWScheduleFree": ScheduleFree}
    monkeypatch.setitem(sys.modules, "schedulefree", SimpleNamespace(**classes))


@pytest.fixture
def schedule_free(trainer: Callable[..., Trainer]) -> Callable[..., Trainer]:
    """Takes ``KEY, VALUE`` overrides."""
    names = ("SOLVER.OPTIMIZER", "SCHEDULE_FREE_SGD", "SOLVER.LR_SCHEDULER_NAME", "WarmupConstantLR")
    return lambda *opts: trainer(*names, "DATASETS.TEST", "()", *opts)


def averages(run: Trainer) -> dict[str, torch.Tensor]:
    """x of every parameter, computed from the optimizer's z and what is in the model."""
    optimizer = run._trainer.optimizer
    group = optimizer.param_groups[0]
    names = {id(p): name for name, p in run.checkpointer.model.named_parameters()}
    found = {}
    for p in (p for g in optimizer.param_groups for p in g["params"]):
        z, momentum = optimizer.state[p]["z"], group["momentum"]
        y = p.detach().clone()
        found[names[id(p)]] = (y - (1 - momentum) * z) / momentum if group["train_mode"] else y
    return found


@pytest.mark.usefixtures("package")
def test_evaluation_and_checkpoints_have_the_average(
    schedule_free: Callable[..., Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = schedule_free("TEST.EVAL_PERIOD", 3, "SOLVER.CHECKPOINT_PERIOD", 3)
    evaluated: list[bool] = []

    def score(cfg: Any, model: nn.Module) -> dict[str, Any]:
        evaluated.append(run._trainer.optimizer.param_groups[0]["train_mode"])
        now = {name: p.detach() for name, p in model.named_parameters()}
        assert all(torch.equal(now[name], x) for name, x in averages(run).items())
        return {}

    monkeypatch.setattr(run, "test", score)
    saved = {}
    save = run.checkpointer.save

    def watched(name: str, **kwargs: Any) -> None:
        saved[name] = averages(run)
        save(name, **kwargs)
        assert run._trainer.optimizer.param_groups[0]["train_mode"], "training goes on with the trained weights"

    monkeypatch.setattr(run.checkpointer, "save", watched)
    run.train()
    assert evaluated == [False, False] and set(saved) == {"model_0000002", "model_final"}
    for name, want in saved.items():
        written = torch.load(tmp_path / "run" / f"{name}.pth")
        assert all(torch.allclose(written["model"][key], x, atol=1e-6) for key, x in want.items())
        assert not written["trainer"]["_trainer"]["optimizer"]["param_groups"][0]["train_mode"]
    assert not run._trainer.optimizer.param_groups[0]["train_mode"], "the average is what a training leaves"


@pytest.mark.usefixtures("package")
def test_a_resumed_training_goes_on_at_the_trained_weights(schedule_free: Callable[..., Trainer]) -> None:
    schedule_free("SOLVER.MAX_ITER", 2).train()
    run = schedule_free("SOLVER.MAX_ITER", 3)
    run.resume_or_load(resume=True)
    loaded = {name: p.detach().clone() for name, p in run.checkpointer.model.named_parameters()}
    optimizer: Any = run._trainer.optimizer
    states = {name: optimizer.state[p]["z"].clone() for name, p in run.checkpointer.model.named_parameters()}
    optimizer.train()
    for name, p in run.checkpointer.model.named_parameters():
        assert torch.allclose(p, 0.1 * states[name] + 0.9 * loaded[name], atol=1e-6), name
    optimizer.eval()
    assert run.start_iter == 2
    run.train()
    assert optimizer.param_groups[0]["k"] == 3


def test_the_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "schedulefree", None)
    cfg = get_cfg()
    cfg.SOLVER.update({"OPTIMIZER": "SCHEDULE_FREE_ADAMW", "LR_SCHEDULER_NAME": "WarmupConstantLR"})
    with pytest.raises(
        UserError, match=r"SCHEDULE_FREE_ADAMW: needs schedulefree: pip install 'seg-ext\[schedulefree\]'"
    ):
        build_optimizer(cfg, nn.Linear(1, 1))


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("solver", "line"),
    [
        (
            {"LR_SCHEDULER_NAME": "WarmupPolyLR"},
            "WarmupPolyLR: takes WarmupConstantLR with OPTIMIZER SCHEDULE_FREE_SGD",
        ),
        ({"LR_SCHEDULER_NAME": "WarmupConstantLR", "MOMENTUM": 0.0}, "SOLVER.MOMENTUM 0.0: lies between 0 and 1"),
    ],
)
def test_refuses_in_a_line(solver: dict[str, Any], line: str) -> None:
    cfg = get_cfg()
    cfg.SOLVER.update({"OPTIMIZER": "SCHEDULE_FREE_SGD", **solver})
    with pytest.raises(UserError, match=line):
        build_optimizer(cfg, nn.Linear(1, 1))
