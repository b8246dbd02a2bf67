"""Optimizers and their parameter groups: which parameter learns how fast, and what decays."""

import logging
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import seg_ext.modeling  # noqa: F401  registers models
from seg_ext.config import get_cfg, load_config
from seg_ext.engine.solver import OPTIMIZERS, base_learning_rate, build_optimizer
from seg_ext.errors import UserError

OWN = [name for name in OPTIMIZERS if not name.startswith("SCHEDULE_FREE")]


def config(**solver: Any) -> CfgNode:
    cfg = get_cfg()
    cfg.SOLVER.update({"BASE_LR": 0.5, **solver})
    return cfg


def segmentor() -> nn.Module:
    """A backbone and a head, a convolution and a norm each."""
    parts = {name: nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)) for name in ("backbone", "sem_seg_head")}
    return nn.ModuleDict(parts)


def groups(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, tuple[float, float]]:
    """(learning rate, weight decay) of every parameter that the optimizer has, by name."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [
        (names[id(p)], (group["lr"], group["weight_decay"]))
        for group in optimizer.param_groups
        for p in group["params"]
    ]
    assert len(found) == len(dict(found)), "a parameter in two groups"
    return dict(found)


@pytest.mark.parametrize("name", OWN)
def test_factors_multiply_and_decays_are_of_weights_norms_and_biases(name: str) -> None:
    factors = {"BACKBONE_LR_FACTOR": 0.1, "HEAD_LR_FACTOR": 10.0, "BIAS_LR_FACTOR": 2.0}
    decays = {"WEIGHT_DECAY": 0.3, "WEIGHT_DECAY_NORM": 0.2, "WEIGHT_DECAY_BIAS": 0.1}
    model = segmentor()
    got = groups(build_optimizer(config(OPTIMIZER=name, **factors, **decays), model), model)
    want = {
        "backbone.0.weight": (0.05, 0.3),
        "backbone.0.bias": (0.1, 0.1),
        "backbone.1.weight": (0.05, 0.2),
        "backbone.1.bias": (0.1, 0.1),
        "sem_seg_head.0.weight": (5.0, 0.3),
        "sem_seg_head.0.bias": (10.0, 0.1),
        "sem_seg_head.1.weight": (5.0, 0.2),
        "sem_seg_head.1.bias": (10.0, 0.1),
    }
    assert {key: pytest.approx(value) for key, value in want.items()} == got


def test_a_bias_decays_as_its_layer_unless_told() -> None:
    model = segmentor()
    got = groups(build_optimizer(config(WEIGHT_DECAY=0.3, WEIGHT_DECAY_NORM=0.2), model), model)
    assert got["backbone.0.bias"] == (0.5, 0.3) and got["backbone.1.bias"] == (0.5, 0.2)


def test_a_factor_of_zero_keeps_the_part_as_it_is() -> None:
    model = segmentor()
    optimizer = build_optimizer(config(BACKBONE_LR_FACTOR=0.0, WEIGHT_DECAY=0.1), model)
    before = {name: x.clone() for name, x in model.named_parameters()}
    out = model["sem_seg_head"](model["backbone"](torch.rand(2, 1, 4, 4)))
    (out * torch.rand(2, 1, 4, 4)).sum().backward()
    optimizer.step()
    moved = {name for name, x in model.named_parameters() if not torch.equal(x, before[name])}
    assert moved and all(name.startswith("sem_seg_head.") for name in moved)
    assert all(x.grad is None for x in model["backbone"].parameters())


@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_every_trainable_parameter_is_in_exactly_one_group(data: st.DataObject) -> None:
    yaml = data.draw(
        st.sampled_from(
            ["camvid/segnet_basic.yaml", "camvid/unet_R_18_cpu.yaml", "nuclei/panoptic_unet_R_18_FPN.yaml"]
            + ["voc/fcn8s_vgg16.yaml", "voc/deeplabv3plus_R_101.yaml", "voc/semantic_fpn_R_50.yaml"]
        )
    )
    factor = st.sampled_from([0.0, 0.1, 1.0, 10.0])
    cfg = load_config(yaml, ["MODEL.DEVICE", "meta"])
    cfg.MODEL.BN.FROZEN = data.draw(st.sampled_from(["", "backbone", "all"]))
    cfg.SOLVER.BACKBONE_LR_FACTOR, cfg.SOLVER.BIAS_LR_FACTOR = data.draw(factor), data.draw(st.sampled_from([1.0, 2.0]))
    cfg.SOLVER.WEIGHT_DECAY_BIAS = data.draw(st.sampled_from([None, 0.0, 0.1]))
    with torch.device("meta"):
        model = build_model(cfg)
    got = groups(build_optimizer(cfg, model), model)
    assert set(got) == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    backbone = any(name.startswith("backbone.") for name in got)
    assert backbone == (cfg.SOLVER.BACKBONE_LR_FACTOR > 0) and all(lr > 0 for lr, _ in got.values())


def test_the_rate_scales_with_the_batch_on_request_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    assert base_learning_rate(config(IMS_PER_BATCH=4)) == 0.5
    with caplog.at_level(logging.INFO, "seg_ext.engine.solver"):
        model = segmentor()
        optimizer = build_optimizer(config(IMS_PER_BATCH=4, REFERENCE_BATCH_SIZE=16, HEAD_LR_FACTOR=10.0), model)
    assert groups(optimizer, model)["backbone.0.weight"][0] == 0.125
    assert groups(optimizer, model)["sem_seg_head.0.weight"][0] == 1.25
    assert caplog.messages == ["learning rate 0.125: BASE_LR 0.5 times IMS_PER_BATCH 4 / REFERENCE_BATCH_SIZE 16"]


@pytest.mark.parametrize("name", OWN)
def test_clipping_bounds_the_gradient(name: str) -> None:
    cfg = config(OPTIMIZER=name)
    cfg.SOLVER.CLIP_GRADIENTS.update({"ENABLED": True, "CLIP_TYPE": "norm", "CLIP_VALUE": 1.0})
    model = torch.nn.Linear(1, 1, bias=False)
    optimizer = build_optimizer(cfg, model)
    model.weight.grad = torch.full_like(model.weight, 100.0)
    optimizer.step()
    assert model.weight.grad.item() == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize(
    ("solver", "line"),
    [
        ({"OPTIMIZER": "LION"}, "SOLVER.OPTIMIZER 'LION': takes one of SGD, ADAM, ADAMW, SCHEDULE_FREE_SGD"),
        ({"HEAD_LR_FACTOR": -1.0}, "SOLVER.HEAD_LR_FACTOR -1.0: takes a number >= 0"),
        ({"BACKBONE_LR_FACTOR": float("nan")}, "SOLVER.BACKBONE_LR_FACTOR nan: takes a number >= 0"),
        ({"BASE_LR": -1.0}, "SOLVER.BASE_LR -1.0: takes a number >= 0"),
        ({"BASE_LR": float("inf")}, "SOLVER.BASE_LR inf: takes a number >= 0"),
        ({"WEIGHT_DECAY_NORM": -0.1}, "SOLVER.WEIGHT_DECAY_NORM -0.1: takes a number >= 0"),
        ({"WEIGHT_DECAY_BIAS": "0"}, "SOLVER.WEIGHT_DECAY_BIAS 0: takes a number >= 0"),
        ({"MOMENTUM": 1.5}, "SOLVER.MOMENTUM 1.5: takes a number >= 0 and < 1, above 0 with NESTEROV"),
        ({"MOMENTUM": 0.0, "NESTEROV": True}, "SOLVER.MOMENTUM 0.0: takes a number >= 0 and < 1, above 0 with"),
        ({"HEAD_LR_FACTOR": 0.0, "BACKBONE_LR_FACTOR": 0.0}, "nothing to train"),
        ({"REFERENCE_BATCH_SIZE": -1}, "SOLVER.REFERENCE_BATCH_SIZE -1: takes a number >= 0"),
        ({"REFERENCE_BATCH_SIZE": 8, "REFERENCE_WORLD_SIZE": 8}, "0 beside REFERENCE_WORLD_SIZE"),
    ],
)
def test_refuses_in_a_line(solver: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError) as refusal:
        build_optimizer(config(**solver), segmentor())
    assert line in str(refusal.value) and "\n" not in str(refusal.value)
