"""UNet 3+: full-scale skips, deep supervision and classification guidance (Huang et al., 2020).

Where the paper multiplies an image's segmentation by its classification (present 1, absent 0), the released code
multiplies the scores before the sigmoid, which leaves probability 1/2 everywhere. Training here follows that code: an
image judged empty gives the segmentation no gradient. Inference follows the paper: the foreground gets the score -1e4,
so that its probability is 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seg_ext.layers import ConvNormAct, FeatureSpec, Norm, he_fan_in, resize_to

from .contract import check_dropout, check_features, check_sizes

ABSENT = -1e4
"""Score of every foreground class in an image judged empty: finite in half precision, softmax and sigmoid exactly 0."""


def conv(in_channels: int, out_channels: int, *, kernel_size: int = 3) -> nn.Conv2d:
    """Padded convolution with bias, weights normal with std sqrt(2 / fan_in): (N, C, h, w) -> (N, C', h, w)."""
    layer = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
    he_fan_in(layer)
    return layer


def conv_norm_relu(in_channels: int, out_channels: int, *, norm: Norm | None) -> ConvNormAct:
    """The same 3x3 convolution (bias before a norm too), norm, ReLU; BatchNorm's weights start normal (1, 0.02)."""
    block = ConvNormAct(in_channels, out_channels, bias=True, norm=norm)
    he_fan_in(block.conv)
    if isinstance(block.norm, nn.modules.batchnorm._BatchNorm):
        nn.init.normal_(block.norm.weight, 1, 0.02)
    return block


class FullScaleStage(nn.Module):
    """One decoder stage: every level's map brought to this level's size and to `width` channels, joined, convolved."""

    def __init__(
        self, channels: Sequence[int], strides: Sequence[int], level: int, *, width: int, norm: Norm | None
    ) -> None:
        """Build one convolution a level and the one after the join.

        Args:
            channels: of the levels' maps, shallow to deep.
            strides: of the levels.
            level: index of this stage's own level.
            width: channels that each level contributes.
            norm: from channels to a layer, or None.
        """
        super().__init__()
        self.level = level
        self.pools = [max(strides[level] // stride, 1) for stride in strides]
        self.reduce = nn.ModuleList(conv_norm_relu(c, width, norm=norm) for c in channels)
        self.fuse = conv_norm_relu(width * len(channels), width * len(channels), norm=norm)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps of all levels, shallow to deep -> (N, width * levels, h, w) at this level's size."""
        size = maps[self.level].shape[-2:]
        parts = []
        for reduce, pool, x in zip(self.reduce, self.pools, maps, strict=True):
            x = F.max_pool2d(x, pool, ceil_mode=True) if pool > 1 else x
            parts.append(reduce(resize_to(x, size)))  # (N, width, h, w)
        return self.fuse(torch.cat(parts, dim=1))


class UNet3Plus(nn.Module):
    """From the deepest level but one up: a stage that sees all shallower features and all deeper stages (figure 1).

    On features of 64, 128, 256, 512, 1024 channels at strides 1 to 16 the defaults, with BatchNorm, are the released
    network with deep supervision.
    """

    def __init__(
        self,
        in_features: dict[str, FeatureSpec],
        num_classes: int,
        *,
        norm: Norm | None,
        channels: int = 64,
        deep_supervision: bool = True,
        cgm: bool = False,
        dropout: float = 0.5,
    ) -> None:
        """Build one stage for each feature but the deepest.

        Args:
            in_features: two or more (five in the paper).
            num_classes: K; with `cgm`, class 0 of several is the background.
            norm: from channels to a layer, or None.
            channels: what each of the levels contributes to a stage, which is levels * channels wide.
            deep_supervision: a classifier on every stage and on the deepest feature, used in training.
            cgm: classification-guided module (section 2.3): the deepest feature says whether the image holds any
                foreground, and an image without is all background.
            dropout: probability before the module's classifier.

        Raises:
            ValueError: an argument outside what is said here.
        """
        super().__init__()
        check_features("UNet3Plus", in_features, num_classes, at_least=2)
        check_sizes("UNet3Plus", "channels", (channels,))
        check_dropout("UNet3Plus", dropout)
        self.names = list(in_features)
        specs = list(in_features.values())
        self.out_stride = specs[0].stride
        widths = [spec.channels for spec in specs]
        strides = [spec.stride for spec in specs]
        self.stages = nn.ModuleDict()
        for level in reversed(range(len(specs) - 1)):
            self.stages[self.names[level]] = FullScaleStage(widths, strides, level, width=channels, norm=norm)
            widths[level] = channels * len(specs)
        supervised = zip(self.names, widths if deep_supervision else widths[:1], strict=False)
        self.heads = nn.ModuleDict({name: conv(width, num_classes) for name, width in supervised})
        self.cgm = nn.Sequential(nn.Dropout(dropout), conv(widths[-1], 2, kernel_size=1)) if cgm else None
        self.image_outputs = ("image_cgm",) if cgm else ()
        self.background = int(num_classes > 1)  # channels before the foreground's

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{name: (N, C, h, w)} -> "logits" (N, K, h, w) at the shallowest's size.

        In training also "aux_<name>" at each deeper feature's size, and with `cgm` "image_cgm", the scores (N, 2, 1, 1)
        of no foreground and some.
        """
        maps = [features[name] for name in self.names]
        for name, stage in self.stages.items():
            maps[self.names.index(name)] = stage(maps)
        supervised = list(self.heads) if self.training else self.names[:1]
        logits, *aux = (self.heads[name](x) for name, x in zip(supervised, maps, strict=False))
        out = {"logits": logits, **{f"aux_{name}": x for name, x in zip(supervised[1:], aux, strict=True)}}
        if self.cgm is None:
            return out
        image = self.cgm(maps[-1]).amax((2, 3), keepdim=True)
        present = image.argmax(1, keepdim=True) == 1  # (N, 1, 1, 1)
        if self.training:
            return {**{name: x * present for name, x in out.items()}, "image_cgm": image}
        background, foreground = logits[:, : self.background], logits[:, self.background :]
        return {"logits": torch.cat((background, foreground.masked_fill(~present, ABSENT)), dim=1)}
