"""Every schedule against its closed form at every step, the one after the last included."""

from collections.abc import Callable
from math import cos, pi
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode

from seg_ext.config import get_cfg
from seg_ext.engine.schedules import SCHEDULES, build_lr_scheduler
from seg_ext.errors import UserError

STEPS = 20
BASE = 0.5


def config(**solver: Any) -> CfgNode:
    cfg = get_cfg()
    one_cycle = solver.pop("ONE_CYCLE", {})
    cfg.SOLVER.update({"MAX_ITER": STEPS, "WARMUP_ITERS": 0, "BASE_LR": BASE, **solver})
    cfg.SOLVER.ONE_CYCLE.update(one_cycle)
    return cfg


def rates(cfg: CfgNode) -> list[float]:
    """Before each of MAX_ITER steps, and after the last."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=BASE)
    schedule = build_lr_scheduler(cfg, optimizer)
    seen = [optimizer.param_groups[0]["lr"]]
    for _ in range(cfg.SOLVER.MAX_ITER):
        optimizer.step()
        schedule.step()
        seen.append(optimizer.param_groups[0]["lr"])
    return seen


CLOSED_FORMS: list[tuple[str, dict[str, Any], Callable[[int], float]]] = [
    ("WarmupConstantLR", {}, lambda i: 1.0),
    ("WarmupPolyLR", {}, lambda i: (1 - i / 20) ** 0.9),
    ("WarmupPolyLR", {"POLY_LR_POWER": 2.0}, lambda i: (1 - i / 20) ** 2),
    ("WarmupCosineLR", {}, lambda i: (1 + cos(pi * i / 20)) / 2),
    ("WarmupCosineLR", {"BASE_LR_END": 0.05}, lambda i: 0.1 + 0.9 * (1 + cos(pi * i / 20)) / 2),
    ("WarmupMultiStepLR", {"STEPS": (7, 15)}, lambda i: 1.0 if i < 7 else 0.1 if i < 15 else 0.01),
    ("WarmupMultiStepLR", {"STEPS": (7, 20, 90), "GAMMA": 0.5}, lambda i: 1.0 if i < 7 else 0.5 if i < 20 else 0.25),
    ("WarmupMultiStepLR", {"STEPS": ()}, lambda i: 1.0),
    # DeepLab v1: a tenth every third of the training
    ("WarmupStepWithFixedGammaLR", {"MAX_ITER": 24, "NUM_DECAYS": 2}, lambda i: 0.1 ** min(i // 8, 2)),
    ("WarmupStepWithFixedGammaLR", {"NUM_DECAYS": 0}, lambda i: 1.0),
    (
        "OneCycleLR",
        {"ONE_CYCLE": {"PEAK": 0.25, "START_FACTOR": 0.1, "END_FACTOR": 0.0}},
        lambda i: 0.1 + 0.9 * (1 - cos(pi * i / 5)) / 2 if i < 5 else (1 + cos(pi * (i - 5) / 15)) / 2,
    ),
]


@pytest.mark.parametrize(("name", "solver", "factor"), CLOSED_FORMS)
def test_follows_its_closed_form(name: str, solver: dict[str, Any], factor: Callable[[int], float]) -> None:
    cfg = config(LR_SCHEDULER_NAME=name, **solver)
    assert rates(cfg) == pytest.approx([BASE * factor(i) for i in range(cfg.SOLVER.MAX_ITER + 1)], abs=1e-12)


def test_every_schedule_has_a_closed_form() -> None:
    assert {name for name, *_ in CLOSED_FORMS} == set(SCHEDULES)


@pytest.mark.parametrize("iterations", [7, 300, 6000, 90000])
def test_steps_come_at_their_iteration_however_long_the_training(iterations: int) -> None:
    for at in range(1, iterations, max(iterations // 50, 1)):
        curve = SCHEDULES["WarmupMultiStepLR"](config(MAX_ITER=iterations, STEPS=(at,)).SOLVER)
        assert curve((at - 1) / iterations) == 1.0 and curve(at / iterations) == pytest.approx(0.1), at


def test_one_cycle_is_torchs() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
    theirs = torch.optim.lr_scheduler.OneCycleLR(  # its phases end a step before their share of the total
        optimizer, BASE, total_steps=STEPS + 1, pct_start=(0.3 * STEPS + 1) / (STEPS + 1), div_factor=25
    )
    want = []
    for _ in range(STEPS):
        want.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    want.append(optimizer.param_groups[0]["lr"])
    assert rates(config(LR_SCHEDULER_NAME="OneCycleLR", WARMUP_ITERS=5)) == pytest.approx(want)


@pytest.mark.parametrize("name", sorted(set(SCHEDULES) - {"OneCycleLR"}))
def test_warms_up_linearly_to_the_rate_that_the_schedule_has_then(name: str) -> None:
    plain = rates(config(LR_SCHEDULER_NAME=name, STEPS=(10,)))
    got = rates(config(LR_SCHEDULER_NAME=name, STEPS=(10,), WARMUP_ITERS=5, WARMUP_FACTOR=0.2))
    first = 0.2 * BASE
    assert got == pytest.approx([first + (plain[5] - first) * i / 5 for i in range(5)] + plain[5:])


def test_warms_up_at_a_constant_rate() -> None:
    got = rates(
        config(LR_SCHEDULER_NAME="WarmupConstantLR", WARMUP_ITERS=5, WARMUP_FACTOR=0.2, WARMUP_METHOD="constant")
    )
    assert got == pytest.approx([0.2 * BASE] * 5 + [BASE] * 16)


@pytest.mark.parametrize(
    ("solver", "line"),
    [
        (
            {"WARMUP_ITERS": 100},
            "SOLVER.WARMUP_ITERS 100: the warm-up takes all of MAX_ITER 20; it never gets to BASE_LR",
        ),
        ({"STEPS": (7, 30, 90)}, "SOLVER.STEPS [30, 90] never come: MAX_ITER is 20"),
        ({"WARMUP_ITERS": 19, "STEPS": (7, 20)}, ""),
    ],
)
def test_says_what_a_short_training_does_not_get_to(
    solver: dict[str, Any], line: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert len(rates(config(**{"STEPS": (), **solver}))) == STEPS + 1
    assert caplog.messages == [line] * bool(line)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_rate_of_zero_stays_zero(name: str) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.0)
    schedule = build_lr_scheduler(config(LR_SCHEDULER_NAME=name, BASE_LR=0.0), optimizer)
    optimizer.step()
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == 0


@pytest.mark.parametrize(
    ("solver", "line"),
    [
        ({"LR_SCHEDULER_NAME": "Step"}, "SOLVER.LR_SCHEDULER_NAME 'Step': takes one of WarmupConstantLR, WarmupPolyLR"),
        ({"MAX_ITER": 0}, "SOLVER.MAX_ITER 0: takes a number >= 1"),
        ({"WARMUP_METHOD": "slow"}, "SOLVER.WARMUP_METHOD 'slow': takes linear or constant"),
        ({"LR_SCHEDULER_NAME": "WarmupCosineLR", "BASE_LR_END": 1.0}, "SOLVER.BASE_LR_END 1.0: lies between 0 and"),
        ({"STEPS": (9, 3)}, "SOLVER.STEPS (9, 3): takes iterations in ascending order"),
        ({"LR_SCHEDULER_NAME": "WarmupStepWithFixedGammaLR", "NUM_DECAYS": -1}, "SOLVER.NUM_DECAYS -1: takes"),
        ({"STEPS": (0.5, 0.8)}, "SOLVER.STEPS (0.5, 0.8): takes iterations in ascending order"),
        ({"STEPS": ("5",)}, "SOLVER.STEPS ('5',): takes iterations in ascending order"),
        ({"GAMMA": -0.1}, "SOLVER.GAMMA -0.1: takes a number >= 0"),
        ({"LR_SCHEDULER_NAME": "WarmupStepWithFixedGammaLR", "GAMMA": float("nan")}, "SOLVER.GAMMA nan: takes"),
        ({"LR_SCHEDULER_NAME": "WarmupPolyLR", "POLY_LR_POWER": -1.0}, "SOLVER.POLY_LR_POWER -1.0: takes"),
        ({"WARMUP_ITERS": -5}, "SOLVER.WARMUP_ITERS -5: takes a number >= 0"),
        ({"WARMUP_FACTOR": -1.0}, "SOLVER.WARMUP_FACTOR -1.0: takes a number >= 0"),
        ({"LR_SCHEDULER_NAME": "OneCycleLR", "ONE_CYCLE": {"PEAK": 1.0}}, "takes 0 < PEAK < 1"),
    ],
)
def test_refuses_in_a_line(solver: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError) as refusal:
        rates(config(**solver))
    assert line in str(refusal.value) and "\n" not in str(refusal.value)
