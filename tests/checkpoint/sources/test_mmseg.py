"""mmsegmentation's state dicts against its networks as its public sources describe them, built here from torch."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet

CLASSES, WIDTH = 5, 16


class Module(nn.Sequential):
    """mmcv's ConvModule: conv, bn, ReLU."""

    def __init__(self, inside: int, out: int, kernel: int, dilation: int = 1, groups: int = 1) -> None:
        super().__init__()
        pad = dilation * (kernel // 2)
        self.conv = nn.Conv2d(inside, out, kernel, padding=pad, dilation=dilation, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out)
        self.act = nn.ReLU()


class Separable(nn.Sequential):
    def __init__(self, inside: int, out: int, dilation: int = 1) -> None:
        super().__init__()
        self.depthwise_conv = Module(inside, inside, 3, dilation, groups=inside)
        self.pointwise_conv = Module(inside, out, 1)


class ResNetV1c(nn.Module):
    """Output stride 8; bottlenecks of an eighth of the width, the maps as wide as ever."""

    def __init__(self) -> None:
        super().__init__()
        net = ResNet(Bottleneck, [3, 4, 6, 3], width_per_group=8, replace_stride_with_dilation=[False, True, True])
        convs = [
            nn.Conv2d(a, b, 3, stride=s, padding=1, bias=False) for a, b, s in ((3, 32, 2), (32, 32, 1), (32, 64, 1))
        ]
        self.stem = nn.Sequential(*(layer for c in convs for layer in (c, nn.BatchNorm2d(c.out_channels), nn.ReLU())))
        self.layer1, self.layer2, self.layer3, self.layer4 = net.layer1, net.layer2, net.layer3, net.layer4

    def forward(self, x: Tensor) -> list[Tensor]:
        x = F.max_pool2d(self.stem(x), 3, 2, 1)
        maps = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            maps.append(x := layer(x))
        return maps


def resized(x: Tensor, size: torch.Size) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


class Head(nn.Module):
    """decode_head of fcn, pspnet, deeplabv3 and deeplabv3plus."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, deep = kind, 2048
        width = 512 if kind == "pspnet" else WIDTH
        if kind == "fcn":
            self.convs = nn.Sequential(Module(deep, width, 3), Module(width, width, 3))
            self.conv_cat = Module(deep + width, width, 3)
        elif kind == "pspnet":
            self.psp_modules = nn.ModuleList(
                nn.Sequential(nn.AdaptiveAvgPool2d(bins), Module(deep, width, 1)) for bins in (1, 2, 3, 6)
            )
            width = WIDTH
            self.bottleneck = Module(2 * deep, width, 3)
        else:
            plus = kind == "deeplabv3plus"
            self.image_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), Module(deep, width, 1))
            branch = Separable if plus else lambda a, b, rate: Module(a, b, 3, rate)
            self.aspp_modules = nn.ModuleList([Module(deep, width, 1), *(branch(deep, width, r) for r in (12, 24, 36))])
            self.bottleneck = Module(5 * width, width, 3)
            if plus:
                self.c1_bottleneck = Module(256, 8, 1)
                self.sep_bottleneck = nn.Sequential(Separable(width + 8, width), Separable(width, width))
        self.conv_seg = nn.Conv2d(width, CLASSES, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        x = maps[-1]
        if self.kind == "fcn":
            return self.conv_seg(self.conv_cat(torch.cat([x, self.convs(x)], 1)))
        if self.kind == "pspnet":
            pooled = [resized(module(x), x.shape[2:]) for module in self.psp_modules]
            return self.conv_seg(self.bottleneck(torch.cat([x, *pooled], 1)))
        found = [resized(self.image_pool(x), x.shape[2:]), *(module(x) for module in self.aspp_modules)]
        x = self.bottleneck(torch.cat(found, 1))
        if self.kind == "deeplabv3plus":
            low = self.c1_bottleneck(maps[0])
            x = self.sep_bottleneck(torch.cat([resized(x, low.shape[2:]), low], 1))
        return self.conv_seg(x)


class Auxiliary(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(Module(channels, channels // 4, 3))
        self.conv_seg = nn.Conv2d(channels // 4, CLASSES, 1)


class UNet(nn.Module):
    """backbone: levels of two convolutions, bilinear doubling with a 1x1 convolution; all maps, deep to shallow."""

    def __init__(self, width: int, levels: int = 4) -> None:
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


class UNetHead(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(Module(width, width, 3))
        self.conv_seg = nn.Conv2d(width, CLASSES, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        return self.conv_seg(self.convs(maps[-1]))


class Segmentor(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        unet = kind == "unet"
        self.backbone = UNet(8) if unet else ResNetV1c()
        self.decode_head = UNetHead(8) if unet else Head(kind)
        self.auxiliary_head = Auxiliary(16 if unet else 1024)

    def forward(self, x: Tensor) -> Tensor:
        return resized(self.decode_head(self.backbone(x)), x.shape[2:])


@pytest.mark.parametrize("kind", ["fcn", "pspnet", "deeplabv3", "deeplabv3plus", "unet"])
@torch.no_grad()
def test_scores_and_labels_are_the_peers(kit: SimpleNamespace, kind: str) -> None:
    with torch.device("meta"):
        peer = Segmentor(kind)
    peer = kit.used(peer)
    ours = kit.build("mmseg", peer.state_dict())
    for image in kit.images((32, 32), (32, 64), (48, 32)):
        want = peer(kit.normalized(image))[0]
        got = ours.scores(image)
        kit.assert_equal(got, want)
        assert (got.argmax(0) == want.argmax(0)).float().mean() > 0.9999
    auxiliary = {key for key in peer.state_dict() if key.startswith("auxiliary_head.")}
    unread = auxiliary if kind in ("deeplabv3plus", "unet") else set()
    assert set(ours.imported.left_out) == unread


def test_a_head_that_is_not_here_is_refused(kit: SimpleNamespace) -> None:
    with torch.device("meta"):
        state = Segmentor("fcn").state_dict()
    state = {key.replace("decode_head.convs", "decode_head.query"): value for key, value in state.items()}
    with pytest.raises(ValueError, match="a decode_head of mmsegmentation other than those of fcn, pspnet"):
        kit.place("mmseg", state)
