"""Optimizers and schedules against their closed forms."""

import pytest
import torch

from seg_ext.config import get_cfg
from seg_ext.engine.solver import OPTIMIZERS, build_lr_scheduler, build_optimizer
from seg_ext.errors import UserError


def config(**solver):
    cfg = get_cfg()
    cfg.SOLVER.update({"MAX_ITER": 20, "WARMUP_ITERS": 0, "BASE_LR": 0.5, **solver})
    return cfg


def rates(cfg) -> list[float]:
    optimizer = build_optimizer(cfg, torch.nn.Linear(1, 1))
    schedule = build_lr_scheduler(cfg, optimizer)
    out = []
    for _ in range(cfg.SOLVER.MAX_ITER):
        out.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return out


def test_poly_is_one_minus_progress_to_the_power() -> None:
    want = [0.5 * (1 - t / 20) ** 0.9 for t in range(20)]
    assert rates(config(LR_SCHEDULER_NAME="WarmupPolyLR")) == pytest.approx(want)


def test_poly_warms_up_linearly() -> None:
    got = rates(config(LR_SCHEDULER_NAME="WarmupPolyLR", WARMUP_ITERS=5, WARMUP_FACTOR=0.0))
    assert got[0] == 0 and got[:6] == sorted(got[:6])
    assert got[5:] == pytest.approx([0.5 * (1 - t / 20) ** 0.9 for t in range(5, 20)])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_norms_and_weights_get_their_own_decay(name: str) -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), torch.nn.BatchNorm2d(1))
    optimizer = build_optimizer(config(OPTIMIZER=name, WEIGHT_DECAY=0.1, WEIGHT_DECAY_NORM=0.0), model)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay[id(model[0].weight)] == 0.1 and decay[id(model[1].weight)] == 0.0


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_clipping_bounds_the_gradient(name: str) -> None:
    cfg = config(OPTIMIZER=name)
    cfg.SOLVER.CLIP_GRADIENTS.update({"ENABLED": True, "CLIP_TYPE": "norm", "CLIP_VALUE": 1.0})
    model = torch.nn.Linear(1, 1, bias=False)
    optimizer = build_optimizer(cfg, model)
    model.weight.grad = torch.full_like(model.weight, 100.0)
    optimizer.step()
    assert model.weight.grad.item() == pytest.approx(1.0, abs=1e-4)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UserError, match="SOLVER.OPTIMIZER 'LION': takes one of SGD, ADAM, ADAMW"):
        build_optimizer(config(OPTIMIZER="LION"), torch.nn.Linear(1, 1))
    with pytest.raises(UserError, match="SOLVER.LR_SCHEDULER_NAME 'Step'"):
        rates(config(LR_SCHEDULER_NAME="Step"))
