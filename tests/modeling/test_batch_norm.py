"""MODEL.BN: momentum and eps reach every BatchNorm; frozen ones neither move their statistics nor train."""

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import seg_ext.modeling  # noqa: F401  registers models
from seg_ext.config import load_config
from seg_ext.data.datasets.folder import register_from_config_list
from seg_ext.engine.checks import complete_config
from seg_ext.engine.trainer import Trainer
from seg_ext.errors import UserError
from seg_ext.modeling.batch_norm import configure_batch_norm


def norms(model: nn.Module) -> dict[str, _BatchNorm]:
    return {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}


def segmentor() -> nn.ModuleDict:
    part = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3, eps=1e-4), nn.GroupNorm(1, 3))
    return nn.ModuleDict({"backbone": part, "backbone_of_another": copy.deepcopy(part), "head": copy.deepcopy(part)})


def configured(model: nn.Module, **values: Any) -> nn.Module:
    configure_batch_norm(model, **{key.lower(): value for key, value in values.items()})
    return model


def test_momentum_and_eps_reach_every_batch_norm_and_nothing_else() -> None:
    model = configured(segmentor(), MOMENTUM=0.0003, EPS=1e-3)
    assert [(layer.momentum, layer.eps) for layer in norms(model).values()] == [(0.0003, 1e-3)] * 3
    assert model["head"][2].eps == 1e-5


def test_nothing_changes_by_default() -> None:
    model = configured(segmentor()).train()
    assert [(layer.momentum, layer.eps) for layer in norms(model).values()] == [(0.1, 1e-4)] * 3
    assert all(layer.training and layer.weight.requires_grad for layer in norms(model).values())


@pytest.mark.parametrize(
    ("frozen", "want"), [("backbone", ["backbone.1"]), ("all", ["backbone.1", "backbone_of_another.1", "head.1"])]
)
def test_frozen_layers_stay_in_eval_mode_however_training_is_switched_on(frozen: str, want: list[str]) -> None:
    model = configured(segmentor(), FROZEN=frozen)
    assert want == [name for name, layer in norms(model).items() if not layer.weight.requires_grad]
    assert want == [name for name, layer in norms(model).items() if not layer.bias.requires_grad]
    for switch in (model.train, model.eval().train, model["backbone"].train, model.requires_grad_(True).train):
        switch()
        assert not any(layer.training for name, layer in norms(model).items() if name in want)
    assert all(layer.training for name, layer in norms(model.train()).items() if name not in want)


def test_a_copy_of_a_frozen_layer_is_frozen_by_itself() -> None:
    model = configured(segmentor(), FROZEN="all")
    twin = copy.deepcopy(model).train()
    assert not any(layer.training for layer in norms(twin).values())
    statistics = twin["head"][1].running_mean
    twin["head"](torch.rand(2, 2, 4, 4))
    assert torch.equal(statistics, torch.zeros(3))


def test_parameter_counts_and_state_dicts_stay() -> None:
    plain, frozen = segmentor(), configured(segmentor(), FROZEN="all", EPS=0.01)
    assert sum(p.numel() for p in plain.parameters()) == sum(p.numel() for p in frozen.parameters())
    assert list(plain.state_dict()) == list(frozen.state_dict())
    assert all(type(layer) is nn.BatchNorm2d for layer in norms(frozen).values())


def test_a_shipped_model_trains_on_one_image_with_frozen_batch_norm() -> None:
    cfg = load_config("voc/pspnet_R_50.yaml", ["MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", "50"])
    cfg.MODEL.BN.FROZEN = "all"
    head = build_model(cfg).train().sem_seg_head
    shapes = {"res4": 1024, "res5": 2048}
    outputs = head.decoder({name: torch.rand(1, channels, 2, 2) for name, channels in shapes.items()})
    assert outputs["logits"].shape[:2] == (1, 21)


MAPS = str([f"pool{level}" for level in range(1, 6)])
TINY = [
    *("MODEL.BACKBONE.NAME", "build_seg_ext_vgg_backbone", "MODEL.VGG.WIDTH", "4", "MODEL.VGG.NORM", "BN"),
    *("MODEL.VGG.OUT_FEATURES", MAPS, "MODEL.SEM_SEG_HEAD.IN_FEATURES", MAPS),
    *("MODEL.SEM_SEG_HEAD.DECODER.ARGS.channels", "[8, 8, 8, 8]", "SOLVER.MAX_ITER", "2", "DATASETS.TEST", "()"),
]


@pytest.mark.parametrize("frozen", ["", "backbone", "all"])
def test_the_trainer_leaves_frozen_layers_bit_identical(toy_config: Path, frozen: str) -> None:
    cfg = load_config(toy_config, [*TINY, "MODEL.BN.FROZEN", frozen])
    register_from_config_list(cfg.DATASETS.FOLDERS)
    complete_config(cfg)
    Path(cfg.OUTPUT_DIR).mkdir()
    torch.manual_seed(0)
    run = Trainer(cfg)
    model = run.checkpointer.model
    before = {name: x.clone() for name, x in model.state_dict().items()}
    run.train()
    of_norms = {f"{name}.{key}" for name, layer in norms(model).items() for key in layer.state_dict()}
    still = {name for name, x in model.state_dict().items() if torch.equal(x, before[name])}
    part = {"": "none", "backbone": "backbone.", "all": ""}[frozen]
    fixed = {name for name in of_norms if name.startswith(part)}
    assert of_norms and fixed <= still
    moving = before.keys() - fixed - still
    assert {name for name in of_norms - fixed if "running" in name} <= moving, "the others' statistics move"
    assert {"backbone.encoder.conv1_1.weight", "sem_seg_head.decoder.score.weight"} <= moving


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"MOMENTUM": 3.0}, "MODEL.BN.MOMENTUM 3.0: takes the share of a new batch, from 0 to 1, or None"),
        ({"MOMENTUM": "0.1"}, "MODEL.BN.MOMENTUM 0.1: takes the share of a new batch, from 0 to 1, or None"),
        ({"EPS": 0.0}, "MODEL.BN.EPS 0.0: takes a number above 0, or None"),
        ({"EPS": True}, "MODEL.BN.EPS True: takes a number above 0, or None"),
        ({"FROZEN": "head"}, "MODEL.BN.FROZEN 'head': takes '', 'backbone', 'all'"),
    ],
)
def test_refuses_in_a_line(values: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError) as refusal:
        configured(segmentor(), **values)
    assert str(refusal.value) == line


def test_says_where_there_is_nothing_to_freeze(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "seg_ext.modeling.batch_norm"):
        configured(nn.Conv2d(1, 1, 1), FROZEN="all")
    assert caplog.messages == ["MODEL.BN.FROZEN all: 0 of 0 BatchNorm layers"]


def test_another_meta_architecture_refuses_it_instead_of_forgetting_it() -> None:
    cfg = load_config("Base-Semantic.yaml", ["MODEL.DEVICE", "cpu", "MODEL.BN.FROZEN", "all"])
    complete_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
    with pytest.raises(UserError, match="MODEL.BN is for MODEL.META_ARCHITECTURE PanopticSegmentor, not Semantic"):
        complete_config(cfg)
