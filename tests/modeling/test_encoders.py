"""Encoders as detectron2 backbones: from the config, under decoders that exist, with the counts of whole nets."""

from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone, build_model
from detectron2.utils.events import EventStorage

import seg_ext.modeling  # noqa: F401  registers the backbones
from seg_ext.config import load_config
from seg_ext.errors import UserError
from seg_ext.layers import FeatureSpec


def config(backbone: str, node: dict[str, Any], head: dict[str, Any] | None = None, **decoder: Any) -> CfgNode:
    cfg = load_config("Base-Semantic.yaml", ["MODEL.DEVICE", "cpu"])
    cfg.MODEL.BACKBONE.NAME = f"build_seg_ext_{backbone}_backbone"
    cfg.MODEL[backbone.upper()].update(node)
    cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = cfg.MODEL[backbone.upper()].OUT_FEATURES
    cfg.MODEL.SEM_SEG_HEAD.update({"NUM_CLASSES": 5, "NORM": "GN", **(head or {})})
    cfg.MODEL.SEM_SEG_HEAD.DECODER.NAME = decoder.pop("NAME", "")
    cfg.MODEL.SEM_SEG_HEAD.DECODER.ARGS.update(decoder)
    return cfg


FCN = {"VARIANT": "fcn", "WIDTH": 4, "OUT_FEATURES": ["pool3", "pool4", "fc7"]}
MODELS = {
    "plain VGG, U-Net": ("vgg", {"WIDTH": 4, "NORM": "GN"}, {"NAME": "unet"}),
    "VGG padded by 100, FCN": ("vgg", FCN, {"NAME": "fcn"}),
    "LargeFOV": (
        "vgg",
        {"VARIANT": "deeplab_largefov", "WIDTH": 4, "OUT_FEATURES": ["fc7"]},
        {"NAME": "fcn", "replicate_border": True},
    ),
    "front end": ("vgg", {"VARIANT": "dilated", "WIDTH": 4, "OUT_FEATURES": ["fc7"]}, {"NAME": "fcn_head"}),
    "Xception": (
        "xception",
        {"DEPTH": 41, "NORM": "GN"},
        {"NAME": "deeplabv3plus", "channels": 8, "low_level_channels": 8},
    ),
    "U-Net": ("unet", {"WIDTH": 4}, {"NAME": "unet"}),
    "timm": ("timm", {"NAME": "mobilenetv3_small_050"}, {"NAME": "pspnet", "channels": 8}),
}


@pytest.mark.parametrize("name", MODELS)
def test_trains_a_step_and_infers_at_the_size_of_the_image(name: str) -> None:
    torch.manual_seed(0)
    backbone, node, decoder = MODELS[name]
    model = build_model(config(backbone, node, None, **decoder))
    image = {"image": torch.rand(3, 50, 41) * 255, "sem_seg": torch.randint(0, 5, (50, 41))}
    with EventStorage():
        losses = model.train()([image, image])
    sum(losses.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    with torch.no_grad():
        scores = model.eval()([{"image": image["image"], "height": 50, "width": 41}])[0]["sem_seg"]
    assert scores.shape == (5, 50, 41) and scores.isfinite().all()


@pytest.mark.parametrize("backbone", ["vgg", "xception", "unet", "timm"])
def test_the_image_comes_first_and_shapes_are_declared(backbone: str) -> None:
    node = {"timm": {"NAME": "resnet18", "OUT_FEATURES": ["stage4", "stage1"]}}.get(backbone, {})
    with torch.device("meta"):
        built = build_backbone(config(backbone, node))
        maps = built(torch.empty(1, 3, 64, 96))
    shapes = built.output_shape()
    assert list(maps) == list(shapes) and list(maps)[0] == "image" and built.size_divisibility == 0
    assert shapes["image"] == FeatureSpec(3, 1)
    for name, x in maps.items():
        spec = shapes[name]
        assert x.shape == (1, spec.channels, 64 // spec.stride, 96 // spec.stride), name


@pytest.mark.parametrize(
    ("features", "count"),
    [(["fc7"], 136_152_917), (["pool4", "fc7"], 134_815_994), (["pool3", "pool4", "fc7"], 134_489_759)],
)
def test_fcn_counts_as_released_and_covers_the_image(features: list[str], count: int) -> None:
    cfg = config("vgg", {**FCN, "WIDTH": 64, "OUT_FEATURES": features}, {"NUM_CLASSES": 21, "NORM": ""}, NAME="fcn")
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg)
        logits = model.sem_seg_head.decoder(model.backbone(torch.empty(1, 3, 100, 90)))["logits"]
    assert sum(p.numel() for p in model.parameters()) == count
    offset = {1: 19, 2: 27, 3: 31}[len(features)]
    assert model.sem_seg_head.decoder.out_offset == offset
    assert logits.shape[2] >= offset + 100 and logits.shape[3] >= offset + 90


LARGEFOV = {"VARIANT": "deeplab_largefov", "OUT_FEATURES": ["fc7"]}
SEGNET = {
    "VARIANT": "segnet",
    "NORM": "BN",
    "OUT_FEATURES": ["conv1", *(f"pool{i}_indices" for i in range(1, 6)), "pool5"],
}
COUNTS = {
    "X-65, DeepLabv3+": ("xception", {}, 21, {"NAME": "deeplabv3plus", "separable": True}, 41_055_413),
    "X-71, DeepLabv3+": ("xception", {"DEPTH": 71}, 21, {"NAME": "deeplabv3plus", "separable": True}, 43_477_837),
    "U-Net": ("unet", {}, 21, {"NAME": "unet"}, 31_033_045),
    "U-Net with BN": ("unet", {"NORM": "BN"}, 2, {"NAME": "unet"}, 31_037_698),
    "SegNet": ("vgg", SEGNET, 11, {"NAME": "segnet"}, 29_449_355),
    "LargeFOV": ("vgg", LARGEFOV, 21, {"NAME": "deeplabv1"}, 20_505_429),
    "front end and context": (
        "vgg",
        {"VARIANT": "dilated", "OUT_FEATURES": ["fc7"]},
        21,
        {"NAME": "dilated_context"},
        134_346_581 + 28_392,
    ),
    "ASPP on VGG": (
        "vgg",
        {"VARIANT": "deeplab", "OUT_FEATURES": ["pool5"]},
        21,
        {"NAME": "deeplabv2", "hidden": 1024},
        37_877_652,
    ),
}


@pytest.mark.parametrize("name", COUNTS)
def test_whole_nets_count_as_published(name: str) -> None:
    backbone, node, classes, decoder, count = COUNTS[name]
    norm = "" if name in ("U-Net", "ASPP on VGG") else "BN"
    cfg = config(backbone, node, {"NUM_CLASSES": classes, "NORM": norm}, **decoder)
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg)
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize(
    ("backbone", "node", "text"),
    [
        ("vgg", {"VARIANT": "fcn8"}, "MODEL.VGG.VARIANT 'fcn8': takes one of plain, segnet"),
        ("vgg", {"NORM": "BM"}, "MODEL.VGG.NORM 'BM': takes one of"),
        ("vgg", {"OUT_FEATURES": ["fc7"]}, r"MODEL.VGG.OUT_FEATURES \['fc7'\]: takes some of conv1, pool1"),
        ("vgg", {"OUT_FEATURES": [["pool5"]]}, r"MODEL.VGG.OUT_FEATURES \[\['pool5'\]\]: takes some of conv1"),
        ("vgg", {"DROPOUT": 1.0}, "MODEL.VGG: VGG takes 0 <= dropout < 1"),
        ("vgg", {"WIDTH": -2}, "MODEL.VGG: VGG takes width >= 1, not -2"),
        ("xception", {"OUTPUT_STRIDE": 4}, "MODEL.XCEPTION: Xception takes depth"),
        ("unet", {"OUT_FEATURES": []}, r"MODEL.UNET.OUT_FEATURES \[\]: takes some of level1"),
        ("timm", {"NAME": "resnet81"}, "MODEL.TIMM: timm has no model 'resnet81'"),
    ],
)
def test_bad_keys_are_refused_by_name(backbone: str, node: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text):
        build_backbone(config(backbone, node))


def test_freezing_is_refused() -> None:
    cfg = config("unet", {})
    cfg.MODEL.BACKBONE.FREEZE_AT = 2
    with pytest.raises(UserError, match="MODEL.BACKBONE.FREEZE_AT 2: takes 0 with MODEL.UNET"):
        build_backbone(cfg)


def test_an_image_too_small_for_the_encoder_is_the_users_error() -> None:
    backbone = build_backbone(config("vgg", {"WIDTH": 2}))
    with pytest.raises(UserError, match="VGG takes images of 32 or more pixels a side, not 31x64"):
        backbone(torch.zeros(1, 3, 31, 64))
