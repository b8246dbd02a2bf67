"""Feature pyramid network (Lin et al., 2017) that hands on its bottom-up maps beside p2..p6."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import torch.nn.functional as F
from detectron2.layers import Conv2d
from detectron2.modeling import Backbone
from fvcore.nn.weight_init import c2_xavier_fill
from torch import Tensor, nn

from seg_ext.errors import UserError
from seg_ext.layers import FeatureSpec
from seg_ext.modeling.regions import check_given, check_region_maps


class FPN(Backbone):
    """Lateral 1x1 and output 3x3 convolutions in detectron2's key layout; dilated bottom-ups are welcome.

    A decoder may read the bottom-up maps (res2..res5, image, ...) while ROI heads read the p-levels.
    """

    def __init__(
        self,
        bottom_up: Backbone,
        in_features: Sequence[str],
        *,
        out_channels: int,
        norm: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        shapes = bottom_up.output_shape()
        check_given("MODEL.FPN.IN_FEATURES", in_features, shapes)
        for name in in_features:
            check_region_maps("MODEL.FPN.IN_FEATURES", [name], shapes)
        self.bottom_up = bottom_up
        self.in_features = tuple(in_features)
        numbers = [re.search(r"\d+$", name) for name in in_features]  # res2 becomes p2
        self._levels = [int(number[0]) for number in numbers if number]
        if len(set(self._levels)) < len(in_features):
            raise UserError(f"MODEL.FPN.IN_FEATURES {list(in_features)}: takes names that end in different numbers")
        for level, name in zip(self._levels, in_features, strict=True):
            self._add_conv(f"fpn_lateral{level}", shapes[name].channels, out_channels, 1, norm)
            self._add_conv(f"fpn_output{level}", out_channels, out_channels, 3, norm)
        self._shapes = dict(shapes)
        for level, name in zip(self._levels, in_features, strict=True):
            self._shapes[f"p{level}"] = FeatureSpec(out_channels, shapes[name].stride)
        self._top = f"p{self._levels[-1] + 1}"
        self._shapes[self._top] = FeatureSpec(out_channels, 2 * shapes[in_features[-1]].stride)

    def _add_conv(
        self, name: str, channels: int, out: int, kernel: int, norm: Callable[[int], nn.Module] | None
    ) -> None:
        conv = Conv2d(channels, out, kernel, padding=kernel // 2, bias=norm is None, norm=norm(out) if norm else None)
        c2_xavier_fill(conv)
        self.add_module(name, conv)

    @property
    def size_divisibility(self) -> int:
        """The deepest stride, so that every level is exactly half of the one below it."""
        return self._shapes[self.in_features[-1]].stride

    def output_shape(self) -> dict[str, FeatureSpec]:
        """Channels and stride of the bottom-up maps and of the p-levels."""
        return self._shapes

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, C, H, W) to the bottom-up maps and p-levels by name."""
        outputs = self.bottom_up(x)
        above: Tensor | None = None
        levels: dict[str, Tensor] = {}
        for level, name in zip(reversed(self._levels), reversed(self.in_features), strict=True):
            lateral = getattr(self, f"fpn_lateral{level}")(outputs[name])
            if above is not None:
                lateral = lateral + F.interpolate(above, size=lateral.shape[-2:], mode="nearest")
            above = lateral
            levels[f"p{level}"] = getattr(self, f"fpn_output{level}")(lateral)
        top = F.max_pool2d(levels[f"p{self._levels[-1]}"], kernel_size=1, stride=2)
        return {**outputs, **{name: levels[name] for name in sorted(levels)}, self._top: top}
