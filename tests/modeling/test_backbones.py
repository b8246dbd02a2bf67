"""ResNet and FPN against detectron2's with the same weights; strides, taps and refusals of our own."""

import math

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone

import seg_ext.modeling  # noqa: F401  registers the backbones
from seg_ext.config import get_cfg
from seg_ext.errors import UserError


def config(name: str, **resnets) -> CfgNode:
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.FREEZE_AT = name, 0
    cfg.MODEL.RESNETS.NORM, cfg.MODEL.RESNETS.OUT_FEATURES = "BN", ["res2", "res3", "res4", "res5"]
    cfg.MODEL.RESNETS.update(resnets)
    if cfg.MODEL.RESNETS.DEPTH < 50:
        cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.FPN.IN_FEATURES, cfg.MODEL.FPN.OUT_CHANNELS = ["res2", "res3", "res4", "res5"], 16
    return cfg


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("kind", ["resnet", "resnet_fpn"])
def test_equals_detectron2_with_the_same_weights(depth: int, kind: str) -> None:
    ours = build_backbone(config(f"build_seg_ext_{kind}_backbone", DEPTH=depth)).eval()
    theirs = build_backbone(config(f"build_{kind}_backbone", DEPTH=depth)).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        got, want = ours(image), theirs(image)
    assert set(want) <= set(got)
    for name, x in want.items():
        assert torch.allclose(got[name], x, atol=1e-5), name
        assert (ours.output_shape()[name].channels, ours.output_shape()[name].stride) == (
            theirs.output_shape()[name].channels,
            theirs.output_shape()[name].stride,
        )


@pytest.mark.parametrize("kind", ["resnet", "resnet_fpn"])
@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("deep", [False, True])
def test_declared_shapes_are_true_at_any_output_stride(kind: str, stride: int, depth: int, deep: bool) -> None:
    out = ["conv1", "stem", "res2", "res3", "res4", "res5"]
    name = f"build_seg_ext_{kind}_backbone"
    with torch.device("meta"):
        backbone = build_backbone(config(name, DEPTH=depth, OUTPUT_STRIDE=stride, DEEP_STEM=deep, OUT_FEATURES=out))
        outputs = backbone.eval()(torch.zeros(1, 3, 64, 96))
    shapes = backbone.output_shape()
    assert list(outputs) == list(shapes) and shapes["res5"].stride == stride
    for key, x in outputs.items():
        size = (math.ceil(64 / shapes[key].stride), math.ceil(96 / shapes[key].stride))
        assert x.shape == (1, shapes[key].channels, *size), key


@pytest.mark.parametrize("stride", [8, 16])
@pytest.mark.parametrize("first", ["own", "previous"])
@pytest.mark.parametrize("grid", [[1, 1, 1], [1, 2, 4]])
def test_dilation_leaves_the_state_dict_alone(stride: int, first: str, grid: list[int]) -> None:
    with torch.device("meta"):
        plain = build_backbone(config("build_seg_ext_resnet_backbone", DEPTH=50))
        dilated = build_backbone(
            config("build_seg_ext_resnet_backbone", OUTPUT_STRIDE=stride, FIRST_DILATION=first, MULTI_GRID=grid)
        )
    shapes = {key: x.shape for key, x in plain.state_dict().items()}
    assert {key: x.shape for key, x in dilated.state_dict().items()} == shapes


def rates(backbone, stage: str) -> list[int]:
    return [block.conv2.dilation[0] for block in getattr(backbone, stage)]


def test_dilation_rates_follow_the_papers() -> None:
    def build(**keys):
        with torch.device("meta"):
            return build_backbone(config("build_seg_ext_resnet_backbone", DEPTH=50, **keys))

    assert rates(build(OUTPUT_STRIDE=8), "res4") == [2] * 6
    assert rates(build(OUTPUT_STRIDE=8), "res5") == [4] * 3
    assert rates(build(OUTPUT_STRIDE=16, MULTI_GRID=[1, 2, 4]), "res5") == [2, 4, 8]
    assert rates(build(OUTPUT_STRIDE=8, FIRST_DILATION="previous"), "res4") == [1] + [2] * 5
    assert rates(build(OUTPUT_STRIDE=8, FIRST_DILATION="previous"), "res5") == [2, 4, 4]
    assert rates(build(OUTPUT_STRIDE=32, DILATIONS=[1, 1, 2, 4], FIRST_DILATION="previous"), "res5") == [2, 4, 4]
    assert rates(build(OUTPUT_STRIDE=16, DILATIONS=[1, 1, 1, 1], MULTI_GRID=[1, 2, 4]), "res5") == [1, 2, 4]


@pytest.mark.parametrize(("which", "dilations"), [("both", [4, 4]), ("first", [4, 1])])
def test_units_of_two_convolutions_dilate_both_or_the_first(which: str, dilations: list[int]) -> None:
    keys = {"DEPTH": 18, "OUTPUT_STRIDE": 8, "BASIC_DILATION": which}
    with torch.device("meta"):
        unit = build_backbone(config("build_seg_ext_resnet_backbone", **keys)).res5[1]
    assert [unit.conv1.dilation[0], unit.conv2.dilation[0]] == dilations


CASCADE = ["res5", "res6", "res7", "res8"]


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize(("stride", "dilations"), [(8, [4, 8, 16, 32]), (16, [2, 4, 8, 16]), (32, [1, 2, 4, 8])])
def test_the_cascade_goes_on_with_copies_of_res5_that_dilate(depth: int, stride: int, dilations: list[int]) -> None:
    keys = {"DEPTH": depth, "OUTPUT_STRIDE": stride, "CASCADE": 3, "OUT_FEATURES": CASCADE}
    with torch.device("meta"):
        plain = build_backbone(config("build_seg_ext_resnet_backbone", **keys))
        grid = build_backbone(config("build_seg_ext_resnet_backbone", **keys, MULTI_GRID=[1, 2, 4])).eval()
        outputs = grid(torch.zeros(1, 3, 64, 96))
    units = len(plain.res5)
    for name, rate in zip(CASCADE, dilations, strict=True):
        assert rates(plain, name) == [rate] * units
        assert rates(grid, name) == [rate, 2 * rate, 4 * rate][:units]
    assert list(outputs) == ["image", *CASCADE]
    for name in CASCADE:
        assert grid.output_shape()[name] == plain.output_shape()["res5"] and grid.output_shape()[name].stride == stride
        assert outputs[name].shape == (1, grid.output_shape()[name].channels, 64 // stride, 96 // stride)


def test_a_copy_of_res5_has_its_units_but_no_projection() -> None:
    backbone = build_backbone(config("build_seg_ext_resnet_backbone", DEPTH=18, CASCADE=1, OUT_FEATURES=["res6"]))
    assert backbone.res6[0].shortcut is None and not hasattr(backbone, "res7")
    shapes = [x.shape for key, x in backbone.res5.state_dict().items() if not key.startswith("0.")]
    assert [x.shape for key, x in backbone.res6.state_dict().items() if not key.startswith("0.")] == shapes


@pytest.mark.parametrize("stride", [8, 16])
def test_the_state_dict_of_a_cascade_does_not_depend_on_the_output_stride(stride: int) -> None:
    def shapes(stride: int) -> dict[str, torch.Size]:
        keys = {"DEPTH": 18, "OUTPUT_STRIDE": stride, "CASCADE": 3, "OUT_FEATURES": CASCADE}
        with torch.device("meta"):
            backbone = build_backbone(config("build_seg_ext_resnet_backbone", **keys))
        return {key: x.shape for key, x in backbone.state_dict().items()}

    assert shapes(stride) == shapes(32)


def test_stages_behind_the_deepest_feature_are_not_built() -> None:
    backbone = build_backbone(config("build_seg_ext_resnet_backbone", DEPTH=18, OUT_FEATURES=["conv1", "res3"]))
    assert [name for name, _ in backbone.named_children()] == ["stem", "res2", "res3"]


def test_freezing_stops_gradients_of_the_first_stages() -> None:
    cfg = config("build_seg_ext_resnet_backbone", DEPTH=18)
    cfg.MODEL.BACKBONE.FREEZE_AT = 2
    backbone = build_backbone(cfg)
    assert not any(p.requires_grad for p in backbone.res2.parameters())
    assert all(p.requires_grad for p in backbone.res3.parameters())


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"DEPTH": 42}, "MODEL.RESNETS.DEPTH 42: takes 18 or 34 or 50"),
        ({"OUTPUT_STRIDE": 4}, "MODEL.RESNETS.OUTPUT_STRIDE 4: takes 8 or 16 or 32"),
        ({"NORM": "BM"}, "MODEL.RESNETS.NORM 'BM': takes one of"),
        ({"OUT_FEATURES": ["res9"]}, "MODEL.RESNETS.OUT_FEATURES"),
        ({"OUT_FEATURES": []}, "MODEL.RESNETS.OUT_FEATURES"),
        ({"OUT_FEATURES": ["res7"], "CASCADE": 1}, r"OUT_FEATURES \['res7'\]: takes some of conv1, .*, res6 here"),
        ({"CASCADE": 4}, "MODEL.RESNETS.CASCADE 4: takes 0 or 1 or 2 or 3 here"),
        ({"MULTI_GRID": []}, "MODEL.RESNETS.MULTI_GRID .*: takes one or more whole numbers >= 1"),
        ({"MULTI_GRID": [1, 0]}, "MODEL.RESNETS.MULTI_GRID .*: takes one or more whole numbers >= 1"),
        ({"DILATIONS": [1, 2]}, r"MODEL.RESNETS.DILATIONS \[1, 2\]: takes none, or 4 whole numbers >= 1 here"),
        ({"DILATIONS": [1, 1, 1, 0]}, "MODEL.RESNETS.DILATIONS .*: takes none, or 4 whole numbers >= 1 here"),
        ({"BASIC_DILATION": "all"}, "MODEL.RESNETS.BASIC_DILATION 'all': takes 'both' or 'first' here"),
        ({"OUT_FEATURES": [["res5"]]}, r"MODEL.RESNETS.OUT_FEATURES \[\['res5'\]\]: takes some of"),
        ({"STEM_OUT_CHANNELS": 1, "DEEP_STEM": True}, "MODEL.RESNETS.STEM_OUT_CHANNELS 1: takes a number >= 2 here"),
        ({"NUM_GROUPS": 0}, "MODEL.RESNETS.NUM_GROUPS 0: takes a number >= 1"),
        ({"WIDTH_PER_GROUP": -1}, "MODEL.RESNETS.WIDTH_PER_GROUP -1: takes a number >= 1"),
        ({"RES5_DILATION": 2}, "MODEL.RESNETS.RES5_DILATION 2: takes 1 here"),
        ({"DEFORM_ON_PER_STAGE": [False, True]}, "MODEL.RESNETS.DEFORM_ON_PER_STAGE True: takes False here"),
    ],
)
def test_bad_keys_are_refused_by_name(keys: dict, text: str) -> None:
    with pytest.raises(UserError, match=text):
        build_backbone(config("build_seg_ext_resnet_backbone", **keys))


def test_fpn_names_features_the_bottom_up_does_not_give() -> None:
    cfg = config("build_seg_ext_resnet_fpn_backbone", DEPTH=18, OUT_FEATURES=["res4", "res5"])
    with pytest.raises(UserError, match="MODEL.FPN.IN_FEATURES .*gives image, res4, res5"):
        build_backbone(cfg)


def test_fpn_names_its_levels_by_the_numbers_of_the_bottom_up() -> None:
    from torch import nn

    from seg_ext.layers import FeatureSpec
    from seg_ext.modeling.fpn import FPN

    class Bottom(nn.Module):
        def output_shape(self) -> dict[str, FeatureSpec]:
            return {"pool3": FeatureSpec(4, 8), "pool4": FeatureSpec(4, 16), "fc": FeatureSpec(4, 16)}

    assert {"p3", "p4", "p5"} <= set(FPN(Bottom(), ["pool3", "pool4"], out_channels=4).output_shape())
    with pytest.raises(UserError, match="takes names that end in different numbers"):
        FPN(Bottom(), ["pool3", "fc"], out_channels=4)
