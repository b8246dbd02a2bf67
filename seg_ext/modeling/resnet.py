"""ResNet-18 to -152 (He et al., 2016) in detectron2's keys; output strides, multi-grid, cascade (Chen et al., 2017)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch.nn.functional as F
from detectron2.layers import CNNBlockBase, Conv2d
from detectron2.modeling import Backbone
from detectron2.modeling.backbone.resnet import BasicBlock, BottleneckBlock
from fvcore.nn.weight_init import c2_msra_fill
from torch import Tensor, nn

from seg_ext.errors import UserError
from seg_ext.layers import FeatureSpec

Norm = Callable[[int], nn.Module] | None

UNITS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
OUTPUT_STRIDES = (8, 16, 32)
MAX_CASCADE = 3  # res6, res7, res8


class Stem(CNNBlockBase):
    """A 7x7 convolution of stride 2, or three 3x3 ones (``deep``), then a 3x3 max pool of stride 2."""

    def __init__(self, in_channels: int, out_channels: int, *, norm: Norm, deep: bool = False) -> None:
        super().__init__(in_channels, out_channels, 4)
        half = out_channels // 2
        plan = [(half, 3, 2), (half, 3, 1), (out_channels, 3, 1)] if deep else [(out_channels, 7, 2)]
        self.depth = len(plan)
        for index, (channels, kernel, stride) in enumerate(plan, start=1):
            conv = Conv2d(
                in_channels,
                channels,
                kernel,
                stride=stride,
                padding=kernel // 2,
                bias=norm is None,
                norm=norm(channels) if norm else None,
                activation=F.relu_,
            )
            c2_msra_fill(conv)
            self.add_module(f"conv{index}", conv)
            in_channels = channels

    def convolve(self, x: Tensor) -> Tensor:
        """The convolutions alone: (N, 3, H, W) to (N, C, H/2, W/2)."""
        for index in range(1, self.depth + 1):
            x = getattr(self, f"conv{index}")(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, C, H/4, W/4)."""
        return F.max_pool2d(self.convolve(x), kernel_size=3, stride=2, padding=1)


class ResNet(Backbone):
    """Maps by name: ``image`` (the input, stride 1) and, on request, ``conv1`` (stride 2), ``stem``, ``res2``, ..."""

    stem: Stem

    def __init__(
        self, stem: Stem, stages: Sequence[Sequence[CNNBlockBase]], *, out_features: Sequence[str], freeze_at: int
    ) -> None:
        """Stack the stages up to the deepest feature asked for.

        Args:
            stem: makes stride 4.
            stages: units of res2, res3, ...
            out_features: names of the maps to return.
            freeze_at: 1 freezes the stem, 2 res2 as well, and so on: no gradient, FrozenBN.

        Raises:
            UserError: no feature, or one that these stages do not give.
        """
        super().__init__()
        known = ["conv1", "stem", *(f"res{number}" for number in range(2, 2 + len(stages)))]
        if not out_features or any(name not in known for name in out_features):
            raise UserError(f"MODEL.RESNETS.OUT_FEATURES {list(out_features)}: takes some of {', '.join(known)} here")
        self.stem = stem
        deepest = max(known.index(name) for name in out_features)
        self._stages = tuple(known[2 : deepest + 1])
        self._shapes = {"conv1": FeatureSpec(stem.out_channels, 2), "stem": FeatureSpec(stem.out_channels, stem.stride)}
        stride = stem.stride
        for name, blocks in zip(self._stages, stages, strict=False):
            self.add_module(name, nn.Sequential(*blocks))
            stride *= math.prod(block.stride for block in blocks)
            self._shapes[name] = FeatureSpec(blocks[-1].out_channels, stride)
        self._shapes = {name: spec for name, spec in self._shapes.items() if name in out_features}
        for frozen in ([stem], *stages)[: max(freeze_at, 0)]:
            for block in frozen:
                block.freeze()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, C, H, W) to the named maps, shallow to deep."""
        return {"image": x, **{name: features for name, features in self._walk(x) if name in self._shapes}}

    def _walk(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        x = self.stem.convolve(x)
        yield "conv1", x
        x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
        yield "stem", x
        for name in self._stages:
            x = self.get_submodule(name)(x)
            yield name, x

    def output_shape(self) -> dict[str, FeatureSpec]:
        """Channels and stride of every returned map."""
        return {"image": FeatureSpec(self.stem.in_channels, 1), **self._shapes}


def build_stages(
    depth: int,
    in_channels: int,
    *,
    norm: Norm,
    res2_channels: int,
    output_stride: int = 32,
    multi_grid: Sequence[int] = (1, 1, 1),
    first_dilation: str = "own",
    dilations: Sequence[int] = (),
    basic_dilation: str = "both",
    cascade: int = 0,
    stride_in_1x1: bool = False,
    groups: int = 1,
    width_per_group: int = 64,
) -> list[list[CNNBlockBase]]:
    """The units of res2..res5 and of the cascade's res6..; the state dict does not depend on stride and dilation.

    A stage of natural stride s (4 for res2, twice that for each later one) has stride min(s, output_stride) and
    dilation s / min(s, output_stride): at output stride 16, res5..res8 dilate by 2, 4, 8 and 16, at 32 by 1, 2, 4, 8.
    A stage strides in its first unit, as detectron2's and torchvision's do; DeepLab's released network (TensorFlow,
    resnet_v1_beta) strides in the last unit of the stage before, with up to 3 % fewer multiply-adds.

    Args:
        depth: one of UNITS.
        in_channels: channels of the stem.
        norm: normalisation from channels.
        res2_channels: width of res2; each later stage up to res5 doubles it (64 for depth 18 and 34, else 256).
        output_stride: one of OUTPUT_STRIDES; a stage that would pass it dilates instead. Larger ones would need
            copies of res5 that stride, which their identity shortcuts cannot.
        multi_grid: factors on the dilations of the units of res5 and of its copies, as many as they have units
            (cycled for deeper stages).
        first_dilation: "own", or "previous": a dilated stage's first unit keeps the rate before it (torchvision).
        dilations: of res2, res3, ..., one a stage, in place of those above.
        basic_dilation: of units of two 3x3 convolutions: of "both", or of the "first" alone (mmsegmentation).
        cascade: copies of res5 to append, from 0 to MAX_CASCADE (arXiv 1706.05587, section 3.2).
        stride_in_1x1: the stride of a bottleneck sits in its first 1x1 (MSRA's weights) rather than its 3x3.
        groups, width_per_group: ResNeXt's cardinality and width.
    """
    units = (*UNITS[depth], *[UNITS[depth][-1]] * cascade)
    natural = [4 * 2**index for index in range(len(units))]
    strides = [4, *(min(stride, output_stride) for stride in natural)]  # of the stem, res2, res3, ...
    rates = [1, *(dilations or [stride // min(stride, output_stride) for stride in natural])]
    stages = []
    for index, count in enumerate(units):
        factor = 2 ** min(index, 3)
        blocks: list[CNNBlockBase] = []
        for unit in range(count):
            common = {"stride": strides[index + 1] // strides[index] if unit == 0 else 1, "norm": norm or ""}
            if depth >= 50:
                block = BottleneckBlock(
                    in_channels,
                    res2_channels * factor,
                    bottleneck_channels=groups * width_per_group * factor,
                    num_groups=groups,
                    stride_in_1x1=stride_in_1x1,
                    **common,
                )
            else:
                block = BasicBlock(in_channels, res2_channels * factor, **common)
            in_channels = block.out_channels
            rate = rates[index if unit == 0 and first_dilation == "previous" else index + 1]
            rate *= multi_grid[unit % len(multi_grid)] if index >= 3 else 1
            _dilate(block, rate, first_alone=basic_dilation == "first")
            blocks.append(block)
        stages.append(blocks)
    return stages


def _dilate(block: CNNBlockBase, rate: int, *, first_alone: bool) -> None:
    """Give every 3x3 convolution of a unit, or the first, this dilation, and the padding that keeps the size."""
    convs = [conv for conv in block.children() if conv.kernel_size == (3, 3)]
    for conv in convs[:1] if first_alone else convs:
        conv.dilation = conv.padding = (rate, rate)
