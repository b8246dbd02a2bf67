"""mmsegmentation's networks from their state dicts: every tensor placed, the same scores and labels.

The peers here are built from torch after mmsegmentation 1.2.2's mmseg/models: backbones/resnet.py and unet.py,
utils/res_layer.py and up_conv_block.py, decode_heads/fcn_head.py, psp_head.py, aspp_head.py and sep_aspp_head.py, with
the settings of its configs. Their tensors are held to those of the networks that mmsegmentation builds itself, whose
own scores are compared too where it can be imported.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seg_ext.checkpoint import read_checkpoint
from seg_ext.checkpoint.sources.mmseg_config import read_config
from seg_ext.cli.main import main

D8 = {"strides": (1, 2, 1, 1), "dilations": (1, 1, 2, 4)}
D16 = {"strides": (1, 2, 2, 1), "dilations": (1, 1, 1, 2)}
D32 = {"strides": (1, 2, 2, 2), "dilations": (1, 1, 2, 4)}
UNITS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


class Module(nn.Sequential):
    """mmcv's ConvModule: conv, bn, ReLU."""

    def __init__(self, inside: int, out: int, kernel: int, dilation: int = 1, groups: int = 1) -> None:
        super().__init__()
        pad = dilation * (kernel // 2)
        self.conv = nn.Conv2d(inside, out, kernel, padding=pad, dilation=dilation, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out)
        self.act = nn.ReLU()


class Separable(nn.Sequential):
    """mmcv's DepthwiseSeparableConvModule."""

    def __init__(self, inside: int, out: int, dilation: int = 1) -> None:
        super().__init__()
        self.depthwise_conv = Module(inside, inside, 3, dilation, groups=inside)
        self.pointwise_conv = Module(inside, out, 1)


class Unit(nn.Module):
    """BasicBlock, whose first convolution alone dilates, or Bottleneck."""

    def __init__(self, inside: int, out: int, narrow: int, *, stride: int, dilation: int, basic: bool) -> None:
        super().__init__()
        plan = (
            [(inside, out, 3), (out, out, 3)] if basic else [(inside, narrow, 1), (narrow, narrow, 3), (narrow, out, 1)]
        )
        wide = 0 if basic else 1  # the one that strides and dilates
        for index, (a, b, kernel) in enumerate(plan):
            rate = dilation if index == wide else 1
            step = stride if index == wide else 1
            conv = nn.Conv2d(a, b, kernel, stride=step, padding=rate * (kernel // 2), dilation=rate, bias=False)
            self.add_module(f"conv{index + 1}", conv)
            self.add_module(f"bn{index + 1}", nn.BatchNorm2d(b))
        self.depth = len(plan)
        self.downsample = None
        if stride != 1 or inside != out:
            self.downsample = nn.Sequential(nn.Conv2d(inside, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for index in range(1, self.depth + 1):
            out = getattr(self, f"bn{index}")(getattr(self, f"conv{index}")(out))
            out = out if index == self.depth else out.relu()
        return (out + (x if self.downsample is None else self.downsample(x))).relu()


class ResNet(nn.Module):
    """ResNetV1c, or ResNet without the deep stem; contract_dilation, and multi_grid as the dilations themselves."""

    def __init__(self, depth: int, layers: Mapping[str, tuple], grid: tuple, *, deep_stem: bool, narrow: int) -> None:
        super().__init__()
        if deep_stem:
            plan = ((3, 32, 2), (32, 32, 1), (32, 64, 1))
            convs = [nn.Conv2d(a, b, 3, stride=s, padding=1, bias=False) for a, b, s in plan]
            parts = [part for conv in convs for part in (conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU())]
            self.stem = nn.Sequential(*parts)
        else:
            self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(64)
        inside, basic = 64, depth < 50
        for i, (units, stride, rate) in enumerate(
            zip(UNITS[depth], layers["strides"], layers["dilations"], strict=True)
        ):
            rates = grid if grid and i == 3 else (max(rate // 2, 1), *[rate] * (units - 1))
            out, blocks = (64 if basic else 256) * 2**i, []
            for unit in range(units):
                step = 1 if unit else stride
                blocks.append(Unit(inside, out, narrow * 2**i, stride=step, dilation=rates[unit], basic=basic))
                inside = out
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x) if hasattr(self, "stem") else self.bn1(self.conv1(x)).relu()
        maps = [F.max_pool2d(x, 3, 2, 1)]
        for i in range(4):
            maps.append(getattr(self, f"layer{i + 1}")(maps[-1]))
        return maps[1:]


def resized(x: Tensor, size: torch.Size, align: bool) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=align)


class Head(nn.Module):
    """decode_head: FCNHead, PSPHead, ASPPHead and DepthwiseSeparableASPPHead, of all channels or few."""

    def __init__(
        self, kind: str, basic: bool, classes: int, rates: tuple, dilation: int, align: bool, few: bool
    ) -> None:
        super().__init__()
        self.kind, self.align, deep = kind, align, 512 if basic else 2048
        width = 16 if few else deep // 4
        if kind == "fcn":
            self.convs = nn.Sequential(Module(deep, width, 3, dilation), Module(width, width, 3, dilation))
            self.conv_cat = Module(deep + width, width, 3)
        elif kind == "pspnet":
            self.psp_modules = nn.ModuleList(
                nn.Sequential(nn.AdaptiveAvgPool2d(bins), Module(deep, deep // 4, 1)) for bins in (1, 2, 3, 6)
            )
            self.bottleneck = Module(2 * deep, width, 3)
        else:
            plus = kind == "deeplabv3plus"
            self.image_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), Module(deep, width, 1))
            branch: Callable[..., nn.Module] = Separable if plus else lambda a, b, rate: Module(a, b, 3, rate)
            self.aspp_modules = nn.ModuleList([Module(deep, width, 1), *(branch(deep, width, r) for r in rates)])
            self.bottleneck = Module(5 * width, width, 3)
            if plus:
                low = 12 if basic else 48
                self.c1_bottleneck = Module(deep // 8, low, 1)
                self.sep_bottleneck = nn.Sequential(Separable(width + low, width), Separable(width, width))
        self.conv_seg = nn.Conv2d(width, classes, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        x = maps[-1]
        if self.kind == "fcn":
            return self.conv_seg(self.conv_cat(torch.cat([x, self.convs(x)], 1)))
        if self.kind == "pspnet":
            pooled = [resized(module(x), x.shape[2:], self.align) for module in self.psp_modules]
            return self.conv_seg(self.bottleneck(torch.cat([x, *pooled], 1)))
        found = [resized(self.image_pool(x), x.shape[2:], self.align), *(module(x) for module in self.aspp_modules)]
        x = self.bottleneck(torch.cat(found, 1))
        if self.kind == "deeplabv3plus":
            low = self.c1_bottleneck(maps[0])
            x = self.sep_bottleneck(torch.cat([resized(x, low.shape[2:], self.align), low], 1))
        return self.conv_seg(x)


class OneConvHead(nn.Module):
    """FCNHead of one convolution and no concat_input: every auxiliary_head, and the U-Net's decode_head."""

    def __init__(self, channels: int, width: int, classes: int, dilation: int = 1) -> None:
        super().__init__()
        self.convs = nn.Sequential(Module(channels, width, 3, dilation))
        self.conv_seg = nn.Conv2d(width, classes, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        return self.conv_seg(self.convs(maps[-1]))


class UNet(nn.Module):
    """UNet, InterpConv: levels of two convolutions, bilinear doubling with a 1x1; all maps, deep to shallow."""

    def __init__(self, width: int, levels: int = 5) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        for level in range(levels):
            out = width * 2**level
            convs = nn.Module()
            convs.convs = nn.Sequential(Module(out // 2 if level else 3, out, 3), Module(out, out, 3))
            self.encoder.append(nn.Sequential(*[nn.MaxPool2d(2)] * (level > 0), convs))
            if level:
                up, block = nn.Module(), nn.Module()
                up.interp_upsample = nn.Sequential(
                    nn.Upsample(scale_factor=2, mode="bilinear"), Module(out, out // 2, 1)
                )
                block.convs = nn.Sequential(Module(out, out // 2, 3), Module(out // 2, out // 2, 3))
                both = nn.Module()
                both.upsample, both.conv_block = up, block
                self.decoder.append(both)

    def forward(self, x: Tensor) -> list[Tensor]:
        skips = []
        for level in self.encoder:
            for part in level:
                x = part.convs(x) if hasattr(part, "convs") else part(x)
            skips.append(x)
        maps = [x]
        for skip, block in zip(skips[-2::-1], reversed(self.decoder), strict=True):
            x = block.conv_block.convs(torch.cat([skip, block.upsample.interp_upsample(x)], 1))
            maps.append(x)
        return maps


class Segmentor(nn.Module):
    """EncoderDecoder; with ``few``, of few channels where the backbone's maps allow it."""

    def __init__(
        self,
        kind: str,
        depth: int = 50,
        *,
        layers: Mapping[str, tuple] = D8,
        grid: tuple = (),
        rates: tuple = (12, 24, 36),
        dilation: int = 1,
        deep_stem: bool = True,
        align: bool = False,
        classes: int = 19,
        few: bool = True,
    ) -> None:
        super().__init__()
        self.align = align
        if kind == "unet":
            width = 8 if few else 64
            self.backbone = UNet(width)
            self.decode_head = OneConvHead(width, width, classes)
            self.auxiliary_head = OneConvHead(2 * width, width, classes)
        else:
            basic = depth < 50
            self.backbone = ResNet(depth, layers, grid, deep_stem=deep_stem, narrow=8 if few else 64)
            self.decode_head = Head(kind, basic, classes, rates, dilation, align, few)
            aux = 256 if basic else 1024
            self.auxiliary_head = OneConvHead(aux, aux // 4, classes, dilation)

    def forward(self, x: Tensor) -> Tensor:
        return resized(self.decode_head(self.backbone(x)), x.shape[2:], self.align)


def on_meta(kind: str, *args: Any, **options: Any) -> Segmentor:
    with torch.device("meta"):
        return Segmentor(kind, *args, **options)


BUILT = {  # by mmsegmentation 1.2.2 from its configs for Cityscapes, and for DRIVE: tensors, what `digest` says of them
    "fcn_r50-d8": (("fcn", 50), {}, 358, "fc723d46b8e6f55cae8ac7673fdd60fade5361b3ccc8978aef2fd33c56de8031"),
    "fcn_r50b-d8": (
        ("fcn", 50), {"deep_stem": False}, 346, "7f07af2567a00bde582c6c1d99e90680185104306c5fbc477ca0740a16b8fc02"
    ),
    "pspnet_r50-d8": (("pspnet", 50), {}, 370, "614ede6d2c4047415cecd0b9bbb554f8381a6af375fc8aa4bf483d5b322b3629"),
    "pspnet_r18-d8": (("pspnet", 18), {}, 172, "a3b4fe04c12faa418fc18d32b55d31727d8d0b8dc41ebc2568b6328e7e560f78"),
    "deeplabv3_r101-d8": (
        ("deeplabv3", 101), {}, 682, "43c25be8b032f92c52185a8b3202236f0916cbbf8b89706870d5a53d4c4228c8"
    ),
    "deeplabv3plus_r50-d8": (
        ("deeplabv3plus", 50), {}, 424, "05aee3130c42583c90cbe433f76c278ce2cc8cc38073408cca55966ea9824e5a"
    ),
    "deeplabv3plus_r18-d8": (
        ("deeplabv3plus", 18), {}, 226, "494393af5b1e20c1eb7d3b55a1bf6009f1ca05a63eb88e8db0baac2c2a1b614a"
    ),
    "unet-s5-d16_fcn": (
        ("unet",), {"classes": 2}, 148, "acf24cd9ae605a9e41bca770568ef0fb1f75eb03c8db36e983b35b1575998fea"
    ),
}  # fmt: skip


def digest(state: Mapping[str, Tensor]) -> tuple[int, str]:
    lines = sorted(f"{key} {tuple(value.shape)}" for key, value in state.items())
    return len(lines), hashlib.sha256("\n".join(lines).encode()).hexdigest()


@pytest.mark.parametrize("name", BUILT)
def test_the_peers_have_the_tensors_of_mmsegmentation(kit: SimpleNamespace, name: str) -> None:
    args, options, *found = BUILT[name]
    state = on_meta(*args, **options, few=False).state_dict()
    assert digest(state) == tuple(found)
    kit.place("mmseg", state)


PUBLIC = [  # names of public configs, "" where the weights alone are enough
    ("", ("fcn",), {}),
    ("pspnet_r50-d8", ("pspnet",), {}),
    ("", ("unet",), {"classes": 2}),
    ("fcn-d6_r50-d16_4xb2-40k_cityscapes-769x769", ("fcn",), {"layers": D16, "dilation": 6, "align": True}),
    ("pspnet_r50b-d32", ("pspnet",), {"layers": D32, "deep_stem": False}),
    ("pspnet_r18-d8_769x769_80k_cityscapes", ("pspnet", 18), {"align": True}),
    ("deeplabv3_r101-d16-mg124", ("deeplabv3", 101), {"layers": D16, "grid": (1, 2, 4), "rates": (6, 12, 18)}),
    ("deeplabv3plus_r50-d8_4xb2-40k_cityscapes-769x769", ("deeplabv3plus",), {"align": True}),
    ("", ("deeplabv3plus", 18), {}),
]


@pytest.mark.parametrize(("name", "args", "options"), PUBLIC)
@torch.no_grad()
def test_scores_and_labels_are_the_peers(kit: SimpleNamespace, name: str, args: tuple, options: dict) -> None:
    peer = kit.used(on_meta(*args, **options))
    ours = kit.build("mmseg", peer.state_dict(), arch=name)
    for image in kit.images((32, 32), (32, 64), (48, 32)):
        want = peer(kit.normalized(image))[0]
        got = ours.scores(image)
        kit.assert_equal(got, want)
        assert (got.argmax(0) == want.argmax(0)).float().mean() > 0.9999
    auxiliary = {key for key in peer.state_dict() if key.startswith("auxiliary_head.")}
    unread = auxiliary if args[0] in ("deeplabv3plus", "unet") else set()
    assert set(ours.imported.left_out) == unread
    assumed = not name and args[0] != "unet"
    assert ours.imported.title.endswith("assumed") == assumed


def config(head: str, *, backbone: str = "", more: str = "", pipeline: str = "", aux: str = "in_index=2") -> str:
    """Text as mmengine and mmcv write it."""
    return (
        f"model = dict(backbone=dict(type='ResNetV1c', norm_cfg=dict(type='SyncBN', requires_grad=True), {backbone}),\n"
        f"    decode_head=dict(in_index=3, {head}), auxiliary_head=dict({aux}), {more})\n{pipeline}\nnever = run(1)\n"
    )


OS8 = "contract_dilation=True, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4)"
D16_MG = "contract_dilation=True, strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2), multi_grid=(1, 2, 4)"
FIRST = config(  # of version 0.x
    "dilations=(1, 6, 12, 18), align_corners=False",
    backbone=D16_MG,
    more="test_cfg=dict(mode='slide', crop_size=(769, 769), stride=(513, 513))",
    pipeline="img_norm_cfg = dict(mean=[1.5, 2, 3], std=[4, 5, 6], to_rgb=False)\ntest_pipeline = [dict(type='Load'), "
    "dict(type='MultiScaleFlipAug', img_scale=(2048, 512), transforms=[dict(type='Resize', keep_ratio=True)])]",
)
SECOND = config(
    "dilations=(1, 6, 12, 18), align_corners=False",
    backbone=D16_MG,
    more="test_cfg=dict(mode='whole'), data_preprocessor=dict(bgr_to_rgb=True, mean=[1.5, 2, 3], std=[4, 5, 6])",
    pipeline="test_pipeline = [dict(type='Load'), dict(keep_ratio=True, scale=(2048, 512), type='Resize')]",
)


@pytest.mark.parametrize(("key", "text"), [("config", FIRST), ("cfg", SECOND)])
def test_the_config_in_a_checkpoint_says_what_a_name_says_and_what_images_it_takes(
    kit: SimpleNamespace, key: str, text: str
) -> None:
    state = on_meta("deeplabv3", layers=D16, rates=(6, 12, 18)).state_dict()
    found = kit.place("mmseg", state, meta={key: text})[0].config
    named = kit.place("mmseg", state, arch="deeplabv3_r50-d16-mg124")[0].config
    for node in ("RESNETS", "SEM_SEG_HEAD"):
        assert found["MODEL"][node] == named["MODEL"][node]
    assert named["MODEL"]["RESNETS"]["OUTPUT_STRIDE"] == 16
    assert (found["MODEL"]["PIXEL_MEAN"], found["MODEL"]["PIXEL_STD"]) == ([1.5, 2, 3], [4, 5, 6])
    assert found["INPUT"] | {"FORMAT": "", "MIN_SIZE_TEST": 512, "MAX_SIZE_TEST": 2048} == found["INPUT"] | {
        "FORMAT": ""
    }
    assert found["INPUT"]["FORMAT"] == ("BGR" if key == "config" else "RGB")
    windows = {"SIZE": [769, 769], "OVERLAP": 1 - 513 / 769, "BLEND": "scores"}
    assert found.get("TEST") == ({"SLIDING_WINDOW": windows} if key == "config" else None)


@pytest.mark.parametrize(
    ("hints", "stride"),
    [
        ({}, 8),
        ({"file": "pspnet_r50-d32_512x1024_80k_cityscapes_20220316-4643d6b6.pth"}, 32),
        ({"file": "deeplabv3_r50-d16-mg124_512x1024.pth"}, 8),  # of another network
        ({"file": "pspnet_r50-d32.pth", "meta": {"cfg": config("", backbone=OS8)}}, 8),
        ({"arch": "pspnet_r50-d32", "meta": {"cfg": config("", backbone=OS8)}}, 32),
    ],
)
def test_the_option_goes_before_the_config_and_the_config_before_the_files_name(
    kit: SimpleNamespace, hints: dict, stride: int
) -> None:
    imported, _ = kit.place("mmseg", on_meta("pspnet").state_dict(), **hints)
    assert imported.config["MODEL"]["RESNETS"]["OUTPUT_STRIDE"] == stride
    assert imported.title.endswith("assumed") == (stride == 8 and "meta" not in hints)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("a = dict(b=(1, -2), c={'d': [True, 'e']})", {"a": {"b": [1, -2], "c": {"d": [True, "e"]}}}),
        ("a = open('x')\nimport os\nb = 1", {"a": None, "b": 1}),
        ("a = (", {}),
        ("a = {[]: 1}", {}),
        ("(" * 5000, {}),
    ],
)
def test_a_config_is_read_and_not_run(text: str, read: dict[str, Any]) -> None:
    assert read_config(text) == read


REFUSED: list[tuple[tuple, dict, dict, str]] = [
    (("fcn",), {}, {"arch": "fcn"}, "--arch fcn: takes the name of a public config of mmsegmentation, such as"),
    (("fcn",), {}, {"arch": "fcn_r50-d16"}, "--arch fcn_r50-d16: takes the name of a public config"),
    (("fcn",), {}, {"arch": "pspnet_r50-d8"}, "--arch pspnet_r50-d8: the weights are of fcn on ResNet-50"),
    (("unet",), {"classes": 2}, {"arch": "fcn_r50-d8"}, "--arch fcn_r50-d8: the weights are of a U-Net"),
    (("fcn",), {}, {"arch": "fcn_r101-d8"}, "--arch fcn_r101-d8: the weights are of fcn on ResNet-50"),
    (("fcn",), {}, config("", backbone=f"{OS8}, dcn=1"), "backbone.dcn 1 in its config: takes None"),
    (("fcn",), {}, config("act_cfg=dict(type='GELU')", backbone=OS8), "decode_head.act_cfg.type 'GELU' in its config"),
    (("fcn",), {}, config("", backbone="strides=(1, 1, 2, 2)"), r"strides \(1, 1, 2, 2\) of its backbone: takes"),
    (("fcn",), {}, config("", backbone="strides='x'"), "strides 'x' in its config: takes whole numbers >= 1"),
    (
        ("fcn",), {}, config("", backbone="contract_dilation=True, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 2)"),
        r"dilations \(1, 1, 2, 2\) of its backbone: takes such as \(1, 1, 2, 4\)",
    ),
    (("deeplabv3",), {}, config("dilations=(6, 12, 18)", backbone=OS8), r"dilations \(6, 12, 18\) of its decode_head"),
    (("fcn",), {"classes": 1}, {}, "one score a pixel, whose probability counts above 0.3: takes 0.5"),
]  # fmt: skip


@pytest.mark.parametrize(("args", "options", "hints", "text"), REFUSED)
def test_what_is_not_here_is_refused(
    kit: SimpleNamespace, args: tuple, options: dict, hints: dict | str, text: str
) -> None:
    hints = {"meta": {"cfg": hints}} if isinstance(hints, str) else hints
    with pytest.raises(ValueError, match=text):
        kit.place("mmseg", on_meta(*args, **options).state_dict(), **hints)


@pytest.mark.parametrize(
    ("theirs", "other", "text"),
    [
        ("decode_head.convs", "decode_head.query", "a decode_head of mmsegmentation other than those of fcn, pspnet"),
        ("decode_head.conv_seg", "decode_head.0.conv_seg", "a decode_head of mmsegmentation other than those of fcn"),
        ("downsample.1", "downsample.2", r"averages in its shortcuts \(ResNetV1d, ResNeSt\): takes"),
    ],
)
def test_another_network_is_refused(kit: SimpleNamespace, theirs: str, other: str, text: str) -> None:
    state = {key.replace(theirs, other): value for key, value in on_meta("fcn").state_dict().items()}
    with pytest.raises(ValueError, match=text):
        kit.place("mmseg", state)


@pytest.mark.parametrize(
    ("aux", "options", "kept"),
    [
        ("in_index=2, dilation=6", {"dilation": 6}, True),
        ("in_index=1, dilation=6", {"dilation": 6}, False),
        ("in_index=2", {"dilation": 6}, False),
    ],
)
def test_an_auxiliary_head_that_differs_from_ours_is_left_out(
    kit: SimpleNamespace, aux: str, options: dict, kept: bool
) -> None:
    text = config("dilation=6", backbone=OS8, aux=aux)
    imported, _ = kit.place("mmseg", on_meta("fcn", **options).state_dict(), meta={"cfg": text})
    assert imported.config["MODEL"]["SEM_SEG_HEAD"]["DECODER"]["ARGS"]["aux"] == ("res4" if kept else False)
    assert bool(imported.left_out) != kept


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> object:
    """A HistoryBuffer as mmengine pickles it, whose class is not there when it is read."""
    module = ModuleType("mmengine.logging.history_buffer")
    methods: dict[str, Any] = {"__module__": module.__name__, "mean": classmethod(lambda cls: 0)}
    module.HistoryBuffer = type("HistoryBuffer", (), methods)  # type: ignore[attr-defined]
    for name in ("mmengine", "mmengine.logging", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    buffer = module.HistoryBuffer()  # type: ignore[attr-defined]
    buffer.methods = {"mean": module.HistoryBuffer.mean}  # type: ignore[attr-defined]
    return buffer


@pytest.mark.parametrize("version", ["0.x", "1.x"])
def test_a_checkpoint_keeps_its_class_names_and_its_log_is_not_needed(
    kit: SimpleNamespace, tmp_path: Path, log: object, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    names, colours = ("vessel", "ground"), [[0, 0, 0], [9, 9, 9]]
    meta = {"CLASSES": names, "PALETTE": colours, "iter": 4}
    if version == "1.x":
        meta = {"dataset_meta": {"classes": names, "palette": colours}, "iter": 4}
    state = kit.used(on_meta("unet", classes=2)).state_dict()
    content = {"meta": meta, "state_dict": state, "message_hub": {"log_scalars": {"loss": log}}, "optimizer": {}}
    torch.save(content, tmp_path / "theirs.pth")
    for name in ("mmengine", "mmengine.logging", "mmengine.logging.history_buffer"):
        monkeypatch.delitem(sys.modules, name)
    assert main(["import-weights", "--from", "mmseg", str(tmp_path / "theirs.pth"), "-o", str(tmp_path / "out")]) == 0
    sidecar = read_checkpoint(tmp_path / "out" / "model.safetensors")["sidecar"]
    assert sidecar["metadata"]["stuff_classes"] == ["vessel", "ground"]


@pytest.mark.parametrize(
    "name",
    [
        "fcn-d6_r50-d16_4xb2-40k_cityscapes-769x769",
        "pspnet_r50-d32_4xb2-80k_cityscapes-512x1024",
        "deeplabv3_r101-d16-mg124_4xb2-40k_cityscapes-512x1024",
        "deeplabv3plus_r18-d8_4xb2-80k_cityscapes-769x769",
        "unet-s5-d16_fcn_4xb4-40k_drive-64x64",
    ],
)
@pytest.mark.filterwarnings("ignore")  # theirs
@torch.no_grad()
def test_scores_are_those_of_mmsegmentation_itself(kit: SimpleNamespace, name: str) -> None:
    mmseg = pytest.importorskip("mmseg.models", reason="mmsegmentation is not installed", exc_type=ImportError)
    from mmengine.config import Config

    [file] = (Path(mmseg.__file__).parents[1] / ".mim" / "configs").glob(f"*/{name}.py")
    text = Config.fromfile(file).pretty_text.replace("SyncBN", "BN")
    model = Config.fromstring(text, ".py").model
    model.update(pretrained=None, _scope_="mmseg")
    model.decode_head.pop("sampler", None)  # of losses
    with torch.device("meta"):
        peer = mmseg.build_segmentor(model)
    peer = kit.used(peer)
    for hints in ({"arch": name if "unet" not in name else ""}, {"meta": {"cfg": text}}):
        ours = kit.build("mmseg", peer.state_dict(), **hints)
        for image in kit.images((64, 64), (64, 96), (96, 64)):
            size = {"img_shape": image.shape[1:], "ori_shape": image.shape[1:]}
            kit.assert_equal(ours.scores(image), peer.encode_decode(kit.normalized(image), [size])[0])
