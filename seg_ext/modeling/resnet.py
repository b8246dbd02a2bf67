"""ResNet-18 to -152 (He et al., 2016) in detectron2's key layout, with output strides 8, 16 and 32 and multi-grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from detectron2.layers import CNNBlockBase, Conv2d
from detectron2.modeling.backbone.resnet import BasicBlock, BottleneckBlock
from detectron2.modeling.backbone.resnet import ResNet as DetectronResNet
from fvcore.nn.weight_init import c2_msra_fill
from torch import Tensor, nn

from seg_ext.errors import UserError
from seg_ext.layers import FeatureSpec

Norm = Callable[[int], nn.Module] | None

UNITS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
DILATIONS = {8: (1, 1, 2, 4), 16: (1, 1, 1, 2), 32: (1, 1, 1, 1)}  # of res2..res5, by output stride


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


class ResNet(DetectronResNet):
    """detectron2's ResNet that also returns ``image`` (its input, stride 1) and, on request, ``conv1`` (stride 2)."""

    def __init__(self, stem: Stem, stages: list[list[CNNBlockBase]], *, out_features: Sequence[str], freeze_at: int):
        known = ["conv1", "stem", "res2", "res3", "res4", "res5"]
        unknown = [name for name in out_features if name not in known]
        if unknown or not set(out_features) - {"conv1"}:
            raise UserError(f"MODEL.RESNETS.OUT_FEATURES {list(out_features)}: takes some of {known}, not conv1 alone")
        inner = [name for name in out_features if name != "conv1"]
        super().__init__(stem, stages, out_features=inner, freeze_at=freeze_at)
        self._taps_conv1 = "conv1" in out_features

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, C, H, W) to the named maps, shallow to deep."""
        outputs = {"image": x}
        x = self.stem.convolve(x)
        if self._taps_conv1:
            outputs["conv1"] = x
        x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
        if "stem" in self._out_features:
            outputs["stem"] = x
        for name, stage in zip(self.stage_names, self.stages, strict=True):
            x = stage(x)
            if name in self._out_features:
                outputs[name] = x
        return outputs

    def output_shape(self) -> dict[str, FeatureSpec]:
        """Channels and stride of every returned map."""
        shapes = {"image": FeatureSpec(self.stem.in_channels, 1)}
        if self._taps_conv1:
            shapes["conv1"] = FeatureSpec(self.stem.out_channels, 2)
        for name in ("stem", *self.stage_names):
            if name in self._out_features:
                shapes[name] = FeatureSpec(self._out_feature_channels[name], self._out_feature_strides[name])
        return shapes


def build_stages(
    depth: int,
    in_channels: int,
    *,
    norm: Norm,
    res2_channels: int,
    output_stride: int = 32,
    multi_grid: Sequence[int] = (1, 1, 1),
    first_dilation: str = "own",
    stride_in_1x1: bool = False,
    groups: int = 1,
    width_per_group: int = 64,
) -> list[list[CNNBlockBase]]:
    """The units of res2..res5; the state dict does not depend on stride and dilation.

    Args:
        depth: one of UNITS.
        in_channels: channels of the stem.
        norm: normalisation from channels.
        res2_channels: width of res2; each later stage doubles it (64 for depth 18 and 34, else 256).
        output_stride: 8, 16 or 32; a stage that would pass it dilates instead.
        multi_grid: factors on the dilations of res5's units, as many as it has units (cycled for deeper stages).
        first_dilation: "own", or "previous": a dilated stage's first unit keeps the rate before it (torchvision).
        stride_in_1x1: the stride of a bottleneck sits in its first 1x1 (MSRA's weights) rather than its 3x3.
        groups, width_per_group: ResNeXt's cardinality and width.
    """
    bottleneck = depth >= 50
    width = groups * width_per_group
    rates = DILATIONS[output_stride]
    stages = []
    for index, units in enumerate(UNITS[depth]):
        previous = rates[index - 1] if index else 1
        stride = 1 if index == 0 or rates[index] > previous else 2
        channels = res2_channels * 2**index
        blocks: list[CNNBlockBase] = []
        for unit in range(units):
            first = unit == 0
            common = {"stride": stride if first else 1, "norm": norm or ""}
            if bottleneck:
                block = BottleneckBlock(
                    in_channels,
                    channels,
                    bottleneck_channels=width * 2**index,
                    num_groups=groups,
                    stride_in_1x1=stride_in_1x1,
                    **common,
                )
            else:
                block = BasicBlock(in_channels, channels, **common)
            grid = multi_grid[unit % len(multi_grid)] if index == 3 else 1
            rate = previous if first and first_dilation == "previous" else rates[index]
            _dilate(block, rate * grid)
            blocks.append(block)
            in_channels = channels
        stages.append(blocks)
    return stages


def _dilate(block: CNNBlockBase, rate: int) -> None:
    """Give every 3x3 convolution of a unit this dilation, and the padding that keeps the size."""
    for conv in block.children():
        if conv.kernel_size == (3, 3):
            conv.dilation = conv.padding = (rate, rate)
