"""The average of the weights: its formula, and what is evaluated, saved and trained on."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from seg_ext.config import get_cfg
from seg_ext.engine.ema import WeightAverage, build_ema
from seg_ext.engine.trainer import Trainer
from seg_ext.errors import UserError

EMA = ("SOLVER.EMA.ENABLED", True, "SOLVER.EMA.DECAY", 0.5, "SOLVER.EMA.WARMUP", False)


class Walk(nn.Module):
    """A weight, a buffer, a count and a frozen weight that take given values."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.frozen = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.ones(3), requires_grad=False)
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("count", torch.tensor(0))

    def move(self, value: torch.Tensor) -> None:
        self.w.data.copy_(value)
        self.mean.copy_(10 * value)
        self.count += 1


def walked(path: torch.Tensor, **kwargs: Any) -> tuple[Walk, WeightAverage]:
    model = Walk()
    average = WeightAverage(model, **kwargs)
    for iteration, value in enumerate(path):
        model.move(value)
        average.trainer = SimpleNamespace(iter=iteration)
        average.after_step()
    return model, average


@pytest.mark.parametrize("start", [0, 3])
@pytest.mark.parametrize("warmup", [False, True])
def test_equals_its_closed_form(start: int, warmup: bool) -> None:
    path, decay = torch.randn(12, 3, generator=torch.Generator().manual_seed(0)), 0.7
    model, average = walked(path, decay=decay, start=start, warmup=warmup)
    taken = path[start:].double()
    decays = [min(decay, (1 + n) / (10 + n)) if warmup else decay for n in range(1, len(taken))]
    shares = [1.0, *(1 - d for d in decays)]
    for n, d in enumerate(decays, 1):
        shares[:n] = [share * d for share in shares[:n]]
    assert sum(shares) == pytest.approx(1.0)
    if not warmup:  # d^n w_0 + (1 - d) sum_i d^(n - i) w_i
        n = len(taken) - 1
        assert shares == pytest.approx([decay**n, *((1 - decay) * decay ** (n - i) for i in range(1, n + 1))])
    wanted = (torch.tensor(shares).double()[:, None] * taken).sum(0).float()
    with average.averaged():
        torch.testing.assert_close(model.w.data, wanted, rtol=0, atol=1e-6)
        torch.testing.assert_close(model.mean, 10 * wanted, rtol=0, atol=1e-5)
        assert model.count == 12 and torch.equal(model.frozen.data, torch.ones(3))
        with average.averaged():
            torch.testing.assert_close(model.w.data, wanted, rtol=0, atol=1e-6)
    assert torch.equal(model.w.data, path[-1]), "training goes on at the trained weights"


def test_before_its_start_the_weights_are_their_own_average() -> None:
    path = torch.randn(3, 3)
    model, average = walked(path, decay=0.5, start=3)
    with average.averaged():
        assert torch.equal(model.w.data, path[-1])
    assert average.state_dict() == {}


@pytest.mark.parametrize("inside", [True, False])
def test_a_loaded_average_goes_on_as_the_saved_one(inside: bool) -> None:
    path = torch.randn(6, 3)
    _, whole = walked(path, decay=0.5, warmup=False)
    model, average = walked(path[:4], decay=0.5, warmup=False)
    if inside:  # as a checkpoint saves them
        with average.averaged():
            saved = {name: x.clone() for name, x in model.state_dict().items()}, copied(average.state_dict())
    else:
        saved = {name: x.clone() for name, x in model.state_dict().items()}, copied(average.state_dict())
    again = Walk()
    resumed = WeightAverage(again, decay=0.5, warmup=False)
    again.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    assert torch.equal(again.w.data, path[3])
    for value in path[4:]:
        again.move(value)
        resumed.update()
    assert resumed.updates == whole.updates
    for name, value in whole.state_dict()["weights"].items():
        assert torch.equal(resumed.state_dict()["weights"][name], value), name


def copied(state: dict[str, Any]) -> dict[str, Any]:
    return {**state, "weights": {name: x.clone() for name, x in state["weights"].items()}}


def test_the_weights_of_another_model_are_refused() -> None:
    _, average = walked(torch.randn(2, 3), decay=0.5)
    with pytest.raises(UserError, match="of another model: 0.bias"):
        WeightAverage(nn.Sequential(nn.Linear(1, 1)), decay=0.5).load_state_dict(average.state_dict())


def test_the_average_is_scored_and_saved_and_training_goes_on_exactly(
    trainer: Callable[..., Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = trainer("DATASETS.TEST", "()", "OUTPUT_DIR", tmp_path / "plain")
    plain.train()
    final = {name: x.clone() for name, x in plain.checkpointer.model.state_dict().items()}

    def score(run: Trainer) -> list[dict[str, torch.Tensor]]:
        scored: list[dict[str, torch.Tensor]] = []
        monkeypatch.setattr(
            run, "test", lambda cfg, model: scored.append({k: v.clone() for k, v in model.state_dict().items()}) or {}
        )
        run.train()
        return scored

    run = trainer(*EMA, "TEST.EVAL_PERIOD", 2)
    scored = score(run)
    for name, value in run.checkpointer.model.state_dict().items():
        assert torch.equal(value, final[name]), f"{name}: the average changes nothing in the training"
    for file, weights in (("model_0000001", scored[0]), ("model_final", scored[1])):
        saved = torch.load(tmp_path / "run" / f"{file}.pth")["model"]
        assert all(torch.equal(saved[name], value) for name, value in weights.items()), file
    assert any(not torch.equal(scored[1][name], final[name]) for name in final)

    (tmp_path / "run" / "last_checkpoint").write_text("model_0000001.pth")
    (tmp_path / "run").rename(tmp_path / "again")
    resumed = trainer(*EMA, "OUTPUT_DIR", tmp_path / "again")
    resumed.resume_or_load(resume=True)
    (last,) = score(resumed)
    assert all(torch.equal(last[name], value) for name, value in scored[1].items())
    assert all(torch.equal(value, final[name]) for name, value in resumed.checkpointer.model.state_dict().items())


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"DECAY": 1.0}, "SOLVER.EMA.DECAY 1.0: takes the share"),
        ({"START": -1}, "SOLVER.EMA.START -1: takes"),
        ({"OPTIMIZER": "SCHEDULE_FREE_SGD"}, "SOLVER.EMA.ENABLED: takes False with OPTIMIZER SCHEDULE_FREE_SGD"),
    ],
)
def test_what_cannot_be_averaged_is_refused(keys: dict[str, Any], line: str) -> None:
    cfg = get_cfg()
    assert build_ema(cfg, Walk()) is None
    cfg.SOLVER.OPTIMIZER = keys.pop("OPTIMIZER", "SGD")
    cfg.SOLVER.EMA.update({"ENABLED": True, **keys})
    with pytest.raises(UserError, match=line):
        build_ema(cfg, Walk())
