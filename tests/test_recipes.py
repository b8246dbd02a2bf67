"""The papers' training recipes, stated here once more, against the shipped yamls and the optimizers they give."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

import seg_ext.modeling  # noqa: F401  registers models
from seg_ext.config import embeds_instances, has_instances, load_config
from seg_ext.data.mapper import SegMapper
from seg_ext.engine.schedules import build_lr_scheduler
from seg_ext.engine.solver import build_optimizer

ROOT = Path(__file__).parents[1] / "configs"
STEP_V1 = (lambda t: 0.1 ** int(3 * t), "a tenth every third")
DROP = (lambda t: 1.0 if t < 2 / 3 else 0.1, "a tenth at the end")
POLY = (lambda t: (1 - t) ** 0.9, "poly 0.9")
FIXED = (lambda t: 1.0, "fixed")


class Recipe(NamedTuple):
    """What the paper or its released code says; a default where it says nothing is ours.

    Attributes:
        schedule: factor at a share t of the training.
        backbone: rate of a backbone weight over that of the recipe; likewise `classifier` and its `bias`.
        bias_decay: weight decay of the classifier's bias; None as of weights.
        crop: side of the random crop, pixels; None for whole images.
        scale: of the random scaling.
        statistics: momentum, eps and freezing of BatchNorm.
    """

    lr: float
    iterations: int
    batch: int
    schedule: Any = FIXED
    optimizer: str = "SGD"
    momentum: float = 0.9
    decay: float = 1e-4
    backbone: float = 1
    classifier: float = 1
    bias: float = 1
    bias_decay: float | None = None
    crop: int | None = None
    scale: tuple[float, float] = (1.0, 1.0)
    reduction: str = "mean"
    statistics: tuple[float | None, float | None, str] = (None, None, "")


def fcn(lr: float) -> Recipe:
    """Heavy learning of the PAMI version's released solvers."""
    return Recipe(lr, 100_000, 1, momentum=0.99, decay=5e-4, bias=2, bias_decay=0, reduction="sum")


def deeplab_v2(lr: float, frozen: str = "") -> Recipe:
    """Poly 10/20k of table 1 of DeepLab v2."""
    few = {"classifier": 10, "bias": 20, "bias_decay": 0, "crop": 321, "scale": (0.5, 1.5)}
    return Recipe(lr, 20_000, 10, POLY, decay=5e-4, statistics=(None, None, frozen), **few)


V3 = Recipe(0.007, 30_000, 16, POLY, crop=513, scale=(0.5, 2.0), statistics=(3e-4, None, ""))
PSP = Recipe(0.01, 30_000, 16, POLY, classifier=10, bias=10, crop=473, scale=(0.5, 2.0))
FRONT_END = Recipe(0.001, 60_000, 14, crop=513, scale=(0.5, 2.0))
SEGNET = Recipe(0.001, 40_000, 4, decay=5e-4)
SEGNET_BASIC = Recipe(0.1, 10_000, 4, decay=5e-4)
UNETPP = Recipe(3e-4, 10_000, 16, optimizer="ADAM", decay=2e-4, bias_decay=0, crop=96)  # L2 of 1e-4 is 2e-4 of decay
RECIPES: dict[str, Recipe] = {
    "voc/fcn32s_vgg16.yaml": fcn(1e-10),
    "voc/fcn16s_vgg16.yaml": fcn(1e-12),
    "voc/fcn8s_vgg16.yaml": fcn(1e-14),
    "voc/deeplabv1_vgg16_largefov.yaml": Recipe(
        0.001, 6_000, 20, STEP_V1, decay=5e-4, classifier=10, bias=10, crop=321
    ),
    "voc/deeplabv2_vgg16_aspp.yaml": deeplab_v2(0.001),
    "voc/deeplabv2_R_101.yaml": deeplab_v2(2.5e-4, "all"),
    "voc/deeplabv3_R_101.yaml": V3,
    "voc/deeplabv3_R_101_d8.yaml": V3._replace(lr=0.001, statistics=(None, None, "all")),
    "voc/deeplabv3_cascade_R_101.yaml": V3,
    "voc/deeplabv3plus_R_101.yaml": V3,
    "voc/deeplabv3plus_R_101_separable.yaml": V3,
    "voc/deeplabv3plus_xception65.yaml": V3._replace(decay=4e-5, statistics=(3e-4, 1e-3, "")),
    "voc/pspnet_R_50.yaml": PSP,
    "voc/pspnet_R_101.yaml": PSP,
    "voc/refinenet_R_101.yaml": Recipe(5e-4, 30_000, 4, DROP, crop=400, scale=(0.7, 1.3)),
    "voc/gcn_R_152.yaml": Recipe(
        1e-4, 30_000, 1, POLY, momentum=0.99, decay=5e-4, crop=512, statistics=(None, None, "all")
    ),
    "voc/dilation_vgg16_front_end.yaml": FRONT_END,
    "voc/dilation_vgg16_basic.yaml": FRONT_END._replace(backbone=0),
    "voc/dilation_vgg16_large.yaml": FRONT_END._replace(backbone=0),
    "camvid/segnet_vgg16.yaml": SEGNET,
    "camvid/bayesian_segnet_vgg16.yaml": SEGNET._replace(iterations=60_000),
    "camvid/segnet_basic.yaml": SEGNET_BASIC,
    "camvid/bayesian_segnet_basic.yaml": SEGNET_BASIC,
    "isbi2012/unet.yaml": Recipe(1e-4, 20_000, 1, momentum=0.99, reduction="pixel_mean"),
    "dsb2018/unetpp.yaml": UNETPP,
    "dsb2018/unetpp_deepsup.yaml": UNETPP,
    "nerve/unet_dice.yaml": Recipe(1e-5, 3_500, 32, optimizer="ADAM", decay=0),
}
OURS = (  # networks of which no recipe is known
    *(f"dsb2018/{name}.yaml" for name in ("unet3p", "unet3p_deepsup", "unet3p_cgm")),
    *("voc/fcn_R_50_d8.yaml", "voc/semantic_fpn_R_50.yaml", "potsdam/fcn_sum_R_50.yaml"),
    "camvid/unet_R_18_cpu.yaml",
    *(f"cityscapes/{name}_R_103_os16.yaml" for name in ("deeplabv3", "deeplabv3plus")),  # detectron2's
)


def classifier(model: torch.nn.Module) -> str:
    """Name of the last layer with weight and bias that trains in the head."""
    names = [name for name, x in model.sem_seg_head.named_parameters() if x.requires_grad and name.endswith(".bias")]
    return "sem_seg_head." + names[-1].removesuffix(".bias")


def test_every_semantic_config_has_a_recipe_or_is_ours() -> None:
    shipped = {file.relative_to(ROOT).as_posix() for file in ROOT.glob("*/*.yaml")}
    cfgs = {name: load_config(name) for name in shipped}
    shipped = {name for name, cfg in cfgs.items() if not has_instances(cfg) and not embeds_instances(cfg)}
    assert set(RECIPES) | set(OURS) == shipped and not set(RECIPES) & set(OURS)


@pytest.mark.parametrize("name", RECIPES)
def test_data_loss_and_batch_norm_are_the_papers(name: str) -> None:
    cfg, recipe = load_config(name), RECIPES[name]
    crops = [entry for entry in cfg.INPUT.AUGMENTATIONS if entry["NAME"] == "RandomScaleCrop"]
    assert len(crops) == (recipe.crop is not None)
    for entry in crops:
        assert entry["size"] == [recipe.crop] * 2
        assert tuple(entry.get("scale", (1.0, 1.0))) == recipe.scale
    reduction = {"border_weighted_cross_entropy": "pixel_mean"}  # by default
    losses = [entry for entry in cfg.MODEL.SEM_SEG_HEAD.LOSSES if "cross_entropy" in entry["NAME"]]
    assert all(entry.get("reduction", reduction.get(entry["NAME"], "mean")) == recipe.reduction for entry in losses)
    assert (cfg.MODEL.BN.MOMENTUM, cfg.MODEL.BN.EPS, cfg.MODEL.BN.FROZEN) == recipe.statistics
    assert cfg.SOLVER.IMS_PER_BATCH == recipe.batch and cfg.SOLVER.MAX_ITER == recipe.iterations


@pytest.mark.parametrize("name", RECIPES)
def test_the_optimizer_is_the_papers(name: str) -> None:
    cfg, recipe = load_config(name, ["MODEL.DEVICE", "meta"]), RECIPES[name]
    with torch.device("meta"):
        model = build_model(cfg)
    optimizer = build_optimizer(cfg, model)
    assert type(optimizer).__name__.upper() == recipe.optimizer
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    groups = {names[id(p)]: group for group in optimizer.param_groups for p in group["params"]}
    assert recipe.optimizer != "SGD" or {g["momentum"] for g in optimizer.param_groups} == {recipe.momentum}
    last = classifier(model)
    weight, bias = groups[f"{last}.weight"], groups[f"{last}.bias"]
    assert weight["lr"] == pytest.approx(recipe.lr * recipe.classifier, rel=1e-6)
    assert bias["lr"] == pytest.approx(recipe.lr * recipe.bias, rel=1e-6)
    assert weight["weight_decay"] == recipe.decay
    assert bias["weight_decay"] == (recipe.decay if recipe.bias_decay is None else recipe.bias_decay)
    first = next(key for key, x in model.named_parameters() if key.startswith("backbone.") and x.dim() == 4)
    assert (first in groups) == (recipe.backbone > 0)
    assert first not in groups or groups[first]["lr"] == pytest.approx(recipe.lr * recipe.backbone, rel=1e-6)
    check_schedule(cfg, optimizer, recipe)


def check_schedule(cfg: CfgNode, optimizer: torch.optim.Optimizer, recipe: Recipe) -> None:
    """At the ends and around the thirds, over the rates at the start."""
    schedule = build_lr_scheduler(cfg, optimizer)
    third = recipe.iterations // 3
    for i in (0, 1, third - 1, third + 1, 2 * third - 1, 2 * third + 1, recipe.iterations - 1):
        schedule.last_epoch = i
        factor = recipe.schedule[0](i / recipe.iterations)
        want = [base * factor for base in schedule.base_lrs]
        assert schedule.get_lr() == pytest.approx(want, rel=1e-6), (recipe.schedule[1], i)


@pytest.mark.parametrize("depth", [50, 101])
def test_pspnet_rotates_and_blurs(depth: int) -> None:
    augmentations = load_config(f"voc/pspnet_R_{depth}.yaml").INPUT.AUGMENTATIONS
    assert {"NAME": "RandomRotation", "angle": [-10, 10]} in augmentations
    assert any(entry["NAME"] == "GaussianBlur" for entry in augmentations)


@pytest.mark.parametrize("name", RECIPES)
def test_the_augmentations_are_built(name: str) -> None:
    cfg = load_config(name)
    assert len(SegMapper(cfg, is_train=True).augmentations.augs) == len(cfg.INPUT.AUGMENTATIONS)


def test_deeplab_v3s_second_stage_takes_the_firsts_weights() -> None:
    shapes = []
    for name in ("deeplabv3_R_101", "deeplabv3_R_101_d8"):
        cfg = load_config(f"voc/{name}.yaml", ["MODEL.DEVICE", "meta"])
        with torch.device("meta"):
            shapes.append({key: x.shape for key, x in build_model(cfg).state_dict().items()})
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    ("later", "earlier", "fresh"),
    [
        (
            "fcn16s_vgg16",
            "fcn32s_vgg16",
            {"scores.pool4.weight", "scores.pool4.bias", "ups.pool4.weight", "ups.final.weight"},
        ),
        (
            "fcn8s_vgg16",
            "fcn16s_vgg16",
            {"scores.pool3.weight", "scores.pool3.bias", "ups.pool3.weight", "ups.final.weight"},
        ),
        ("dilation_vgg16_basic", "dilation_vgg16_front_end", {f"context.{i}" for i in range(8)}),
    ],
)
def test_later_stages_start_fresh_only_where_they_are_new(later: str, earlier: str, fresh: set[str]) -> None:
    states = []
    for name in (later, earlier):
        cfg = load_config(f"voc/{name}.yaml", ["MODEL.DEVICE", "meta"])
        with torch.device("meta"):
            states.append({key: x.shape for key, x in build_model(cfg).state_dict().items()})
    new = {key for key, shape in states[0].items() if states[1].get(key) != shape}
    decoder = "sem_seg_head.decoder."
    assert new and all(any(key.startswith(decoder + start) for start in fresh) for key in new), new
