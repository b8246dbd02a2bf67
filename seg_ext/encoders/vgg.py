"""VGG-16 (Simonyan and Zisserman, 2015) as FCN, SegNet, DeepLab v1 and v2 and the dilated front end changed it.

Details of the released nets: FCN and SegNet pool with Caffe's ceiling; DeepLab v1 averages 3x3 after pool5. DeepLab's
own 3x3 pools round as Caffe's do at their sizes of 8k + 1 pixels; elsewhere every map here has ceil(H / stride) rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from seg_ext.layers import FeatureSpec, Norm
from seg_ext.layers.norm import refuse_single_value

from .contract import Encoder, mirror_pad, smallest_side

STAGES = ((1, 1), (2, 2), (4, 4, 4), (8, 8, 8), (8, 8, 8))
SEGNET = {"indices": True, "ceil_mode": True}
SEGNET_BASIC = {**SEGNET, "stages": ((1,),) * 4, "kernel_size": 7, "bias": False, "response_norm": True}
DEEPLAB = {"pool_kernel": 3, "pools": (2, 2, 2, 1, 1), "dilations": (1, 1, 1, 1, 2)}
DEEPLAB_V1 = {**DEEPLAB, "average": True}
VGG_VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "segnet": SEGNET,
    "segnet_basic": SEGNET_BASIC,
    "bayesian_segnet": {**SEGNET, "dropout_after": (3, 4, 5)},
    "bayesian_segnet_basic": {**SEGNET_BASIC, "dropout_after": (3, 4)},
    "fcn": {"first_padding": 100, "ceil_mode": True, "fc_channels": 64, "fc_padding": 0},
    "deeplab": DEEPLAB,  # v2's ASPP reads pool5
    "deeplab_largefov": {**DEEPLAB_V1, "fc_channels": 16, "fc_kernel": 3, "fc_dilation": 12},
    "deeplab_7x7": {**DEEPLAB_V1, "fc_channels": 64, "fc_kernel": 7, "fc_dilation": 4},
    "deeplab_4x4": {**DEEPLAB_V1, "fc_channels": 64, "fc_kernel": 4, "fc_dilation": 4},
    "deeplab_4x4_dilation8": {**DEEPLAB_V1, "fc_channels": 64, "fc_kernel": 4, "fc_dilation": 8},
    "dilated": {
        "pools": (2, 2, 2, 0, 0),
        "dilations": (1, 1, 1, 1, 2),
        "valid": True,
        "mirror": True,
        "fc_channels": 64,
        "fc_dilation": 4,
        "fc_padding": 0,
    },
}
"""Keyword arguments of `VGG` by name; widths are in units of `width`."""


class VGG(Encoder):
    """Convolutions conv1_1 to conv5_3, max pools between them and, with `fc_channels`, fc6 and fc7 as convolutions.

    Maps of stage i: "conv<i>" before its pool (its size is the one to unpool to), "pool<i>" and, with `indices`,
    "pool<i>_indices" (int64, flat positions in conv<i> for `max_unpool2d`); then "fc7" (after its dropout). The state
    dict has Caffe's names: conv1_1.weight, norm1_1.weight, fc6.weight.

    Offsets are exact with 2x2 pools. 3x3 pools of stride 2 put cell i on pixel i * stride instead of half a stride
    further; like any map padded by half a kernel it has offset 0.
    """

    fc6: nn.Conv2d
    fc7: nn.Conv2d

    def __init__(
        self,
        in_channels: int = 3,
        *,
        norm: Norm | None,
        width: int = 64,
        stages: Sequence[Sequence[int]] = STAGES,
        kernel_size: int = 3,
        bias: bool = True,
        first_padding: int | None = None,
        valid: bool = False,
        mirror: bool = False,
        pools: Sequence[int] = (2, 2, 2, 2, 2),
        pool_kernel: int = 2,
        ceil_mode: bool = False,
        dilations: Sequence[int] = (1, 1, 1, 1, 1),
        indices: bool = False,
        response_norm: bool = False,
        dropout: float = 0.5,
        dropout_after: Sequence[int] = (),
        average: bool = False,
        fc_channels: int = 0,
        fc_kernel: int = 7,
        fc_dilation: int = 1,
        fc_padding: int | None = None,
    ) -> None:
        """Build one of VGG_VARIANTS, or another combination.

        Args:
            in_channels: C of the image.
            norm: from channels to a layer after every convolution but fc6 and fc7, or None.
            width: channels of conv1_1.
            stages: channels of every convolution of every stage, in units of `width`.
            kernel_size: of the convolutions, odd.
            bias: of the convolutions; kept beside a norm, as in torchvision's vgg16_bn and SegNet.
            first_padding: of conv1_1; None as the others.
            valid: no padding in the convolutions.
            mirror: with `valid`, mirror the image's borders so that the deepest map covers the image from offset 0.
            pools: stride of the pool after every stage; 0 removes it.
            pool_kernel: 2, or 3 with padding 1.
            ceil_mode: pools keep a last incomplete window.
            dilations: of every stage's convolutions.
            indices: give the places of the maxima.
            response_norm: local response normalisation of the image (size 5), without parameters.
            dropout: probability after fc6, fc7 and the pools of `dropout_after`.
            dropout_after: numbers of the stages whose pool is followed by dropout (Bayesian SegNet).
            average: 3x3 mean of stride 1 before fc6.
            fc_channels: channels of fc6 and fc7 in units of `width`; 0 for neither.
            fc_kernel: of fc6.
            fc_dilation: of fc6.
            fc_padding: of fc6; None keeps the size.

        Raises:
            ValueError: an argument outside what is said here.
        """
        super().__init__()
        if kernel_size % 2 == 0 or pool_kernel not in (2, 3) or not set(pools) <= {0, 1, 2}:
            raise ValueError(
                "VGG takes an odd kernel_size, pool_kernel 2 or 3 and pools of 0, 1 or 2, "
                f"not {kernel_size}, {pool_kernel} and {list(pools)}"
            )
        if min(len(pools), len(dilations)) < len(stages):
            raise ValueError(f"VGG takes pools and dilations for {len(stages)} stages, not {pools} and {dilations}")
        if mirror and not valid:
            raise ValueError("VGG takes mirror only with valid convolutions")
        if not 0 <= dropout < 1:
            raise ValueError(f"VGG takes 0 <= dropout < 1, not {dropout}")
        if width < 1:
            raise ValueError(f"VGG takes width >= 1, not {width}")
        self.in_channels = in_channels
        self.pools, self.pool_kernel, self.ceil_mode = tuple(pools[: len(stages)]), pool_kernel, ceil_mode
        self.indices, self.average, self.dropout_after = indices, average, tuple(dropout_after)
        self.response_norm = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75) if response_norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.specs = {}
        self._grid = (1, 0)  # stride and offset of the map so far
        self._steps: list[tuple[int, int]] = []
        self._depths = [len(widths) for widths in stages]
        channels = in_channels
        for stage, (widths, dilation) in enumerate(zip(stages, dilations, strict=False), start=1):
            for unit, factor in enumerate(widths, start=1):
                padding = 0 if valid else dilation * (kernel_size // 2)
                if first_padding is not None and (stage, unit) == (1, 1):
                    padding = first_padding
                conv = nn.Conv2d(channels, factor * width, kernel_size, 1, padding, dilation, bias=bias)
                channels = factor * width
                self._add(f"conv{stage}_{unit}", conv)
                self.add_module(f"norm{stage}_{unit}", norm(channels) if norm is not None else nn.Identity())
            self._name(f"conv{stage}", channels)
            self._add_pool(stage, channels)
        if fc_channels:
            out = fc_channels * width
            padding = fc_dilation * (fc_kernel - 1) // 2 if fc_padding is None else fc_padding
            self._add("fc6", nn.Conv2d(channels, out, fc_kernel, 1, padding, fc_dilation))
            self._add("fc7", nn.Conv2d(out, out, 1))
            self._name("fc7", out)
        self.margin = self._grid[1] if mirror else 0
        self.specs = {name: replace(spec, offset=spec.offset - self.margin) for name, spec in self.specs.items()}
        self.smallest = 1 if mirror else smallest_side(self._steps)

    def _add(self, name: str, conv: nn.Conv2d) -> None:
        """Add a convolution, initialised as torchvision's, and follow what it does to the grid."""
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)
        self.add_module(name, conv)
        lost = conv.dilation[0] * (conv.kernel_size[0] - 1) - 2 * int(conv.padding[0])
        stride, offset = self._grid
        self._grid = (stride, offset + stride * lost // 2)
        self._steps.append((1, lost))

    def _add_pool(self, stage: int, channels: int) -> None:
        """Follow what the pool after a stage does to the grid, if there is one."""
        pool = self.pools[stage - 1]
        if not pool:
            return
        stride, offset = self._grid
        self._grid = (stride * pool, offset)
        if pool > 1:
            self._steps.append((2, 0 if self.pool_kernel == 2 and not self.ceil_mode else -1))
        self._name(f"pool{stage}", channels)
        if self.indices:
            self._name(f"pool{stage}_indices", channels)

    def _name(self, name: str, channels: int) -> None:
        self.specs[name] = FeatureSpec(channels, *self._grid)

    def walk(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield every map of the image x (N, C, H, W) with its name."""
        if self.margin:
            stride = self._grid[0]
            x = mirror_pad(x, self.margin, more=[-side % stride for side in x.shape[-2:]])
        x = self.response_norm(x)
        for stage, (depth, pool) in enumerate(zip(self._depths, self.pools, strict=True), start=1):
            for unit in range(1, depth + 1):
                x = self.get_submodule(f"conv{stage}_{unit}")(x)
                norm = self.get_submodule(f"norm{stage}_{unit}")
                refuse_single_value(norm, x)
                x = F.relu_(norm(x))
            yield f"conv{stage}", x
            if pool:
                x, indices = self._pool(x, pool)
                if stage in self.dropout_after:
                    x = self.dropout(x)
                yield f"pool{stage}", x
                if indices is not None:
                    yield f"pool{stage}_indices", indices
        if "fc7" in self.specs:
            x = F.avg_pool2d(x, 3, 1, 1) if self.average else x
            x = self.dropout(F.relu_(self.fc6(x)))
            yield "fc7", self.dropout(F.relu_(self.fc7(x)))

    def _pool(self, x: Tensor, stride: int) -> tuple[Tensor, Tensor | None]:
        """(N, C, h, w) -> its maxima and, where asked for, their places."""
        padding = self.pool_kernel // 3
        ceil = self.ceil_mode and stride > 1
        if self.indices:
            return F.max_pool2d(x, self.pool_kernel, stride, padding, ceil_mode=ceil, return_indices=True)
        return F.max_pool2d(x, self.pool_kernel, stride, padding, ceil_mode=ceil), None


def from_torchvision(state_dict: Mapping[str, Tensor], *, fc: bool) -> dict[str, Tensor]:
    """Rename the weights of torchvision's vgg16 or vgg16_bn to those of `VGG`; the tensors are shared.

    Args:
        state_dict: torchvision's; images are RGB in [0, 1], normalised.
        fc: include fc6 and fc7 (4096 channels, 7x7 and 1x1, as "fcn" and "dilated" have them).

    Raises:
        ValueError: not 13 convolutions in "features", or no classifier where `fc` asks for it.
    """
    numbers = sorted({int(key.split(".")[1]) for key in state_dict if key.startswith("features.")})
    convs = [number for number in numbers if state_dict[f"features.{number}.weight"].dim() == 4]
    names = [f"{stage}_{unit}" for stage, widths in enumerate(STAGES, 1) for unit in range(1, len(widths) + 1)]
    if len(convs) != len(names) or (fc and "classifier.3.weight" not in state_dict):
        raise ValueError(f"from_torchvision takes the weights of vgg16 or vgg16_bn, not {len(convs)} convolutions")
    targets = {f"features.{number}": f"conv{name}" for number, name in zip(convs, names, strict=True)}
    targets |= {f"features.{n + 1}": f"norm{name}" for n, name in zip(convs, names, strict=True) if n + 1 in numbers}
    shapes: dict[str, tuple[int, ...]] = {}
    if fc:
        targets |= {"classifier.0": "fc6", "classifier.3": "fc7"}
        shapes = {"fc6.weight": (4096, 512, 7, 7), "fc7.weight": (4096, 4096, 1, 1)}
    renamed = {}
    for key, value in state_dict.items():
        layer, _, kind = key.rpartition(".")
        if layer in targets:
            name = f"{targets[layer]}.{kind}"
            renamed[name] = value.reshape(shapes.get(name, value.shape))
    return renamed
