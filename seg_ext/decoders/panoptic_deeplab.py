"""Panoptic-DeepLab's decoders: class scores, and centres with offsets to them (Cheng et al., 2020, figure 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from seg_ext.layers import ASPP, ConvNormAct, FeatureSpec, Norm, SeparableConv, resize_to, score_layer

from .contract import check_dropout, check_features, check_sizes


def _pair(
    in_channels: int, channels: int, *, norm: Norm | None, separable: bool, width: int | None = None
) -> nn.Module:
    """Two 3x3 convolutions, the first to ``width``, or one separable 5x5, which sees as far."""
    if separable:
        return SeparableConv(in_channels, channels, kernel_size=5, norm=norm)
    width = channels if width is None else width
    return nn.Sequential(ConvNormAct(in_channels, width, norm=norm), ConvNormAct(width, channels, norm=norm))


class _Trunk(nn.Module):
    """ASPP on the deepest map; each shallower one is projected, joined with what lies below it, and convolved."""

    def __init__(
        self,
        name: str,
        in_features: dict[str, FeatureSpec],
        *,
        norm: Norm | None,
        channels: int,
        project_channels: Sequence[int],
        aspp_channels: int,
        rates: Sequence[int],
        pool: Sequence[int] | None,
        dropout: float,
        separable: bool,
    ) -> None:
        super().__init__()
        check_sizes(name, "rates and project_channels", (*rates, *project_channels))
        check_sizes(name, "channels and aspp_channels", (channels, aspp_channels))
        check_dropout(name, dropout)
        *shallow, self.deepest = in_features
        if len(project_channels) != len(shallow):
            raise ValueError(
                f"{name} takes one of project_channels for each of {shallow}, not {list(project_channels)}"
            )
        conv = SeparableConv if separable else ConvNormAct
        deep = in_features[self.deepest].channels
        self.aspp = ASPP(
            deep, aspp_channels, rates=rates, norm=norm, conv=conv, image_norm=False, pool=pool, dropout=dropout
        )
        self.projections, self.joins = nn.ModuleDict(), nn.ModuleDict()
        below = aspp_channels
        for feature, width in reversed(list(zip(shallow, project_channels, strict=True))):
            self.projections[feature] = ConvNormAct(in_features[feature].channels, width, kernel_size=1, norm=norm)
            self.joins[feature] = _pair(width + below, channels, norm=norm, separable=separable)
            below = channels

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """{name: (N, C, H/s, W/s)} -> (N, channels, h, w) of the shallowest map's size."""
        x = self.aspp(features[self.deepest])
        for name, project in self.projections.items():
            skip = project(features[name])
            x = self.joins[name](torch.cat((skip, resize_to(x, skip.shape[-2:])), dim=1))
        return x


class PanopticDeepLabSemantics(nn.Module):
    """The semantic branch: class scores."""

    def __init__(
        self,
        in_features: dict[str, FeatureSpec],
        num_classes: int,
        *,
        norm: Norm | None,
        channels: int = 256,
        head_channels: int = 256,
        project_channels: Sequence[int] = (32, 64),
        aspp_channels: int = 256,
        rates: Sequence[int] = (6, 12, 18),
        pool: Sequence[int] | None = None,
        dropout: float = 0.1,
        separable: bool = False,
    ) -> None:
        """Build for two features or more.

        Args:
            in_features: shallow to deep: ResNet's res2, res3 and res5 (stride 16).
            num_classes: K.
            norm: from channels to a layer, or None.
            channels: width of the decoder.
            head_channels: width of what is scored.
            project_channels: to which each map but the deepest is reduced, shallow to deep.
            aspp_channels: width of the ASPP.
            rates: its dilations, in cells.
            pool: see :class:`seg_ext.layers.ASPP`.
            dropout: probability after it.
            separable: depthwise separable convolutions, 5x5 in place of two 3x3 ones.

        Raises:
            ValueError: an argument outside what is said here.
        """
        super().__init__()
        name = "PanopticDeepLabSemantics"
        check_features(name, in_features, num_classes, at_least=2)
        check_sizes(name, "head_channels", (head_channels,))
        self.out_stride = next(iter(in_features.values())).stride
        self.trunk = _Trunk(
            name,
            in_features,
            norm=norm,
            channels=channels,
            project_channels=project_channels,
            aspp_channels=aspp_channels,
            rates=rates,
            pool=pool,
            dropout=dropout,
            separable=separable,
        )
        self.head = _pair(channels, head_channels, norm=norm, separable=separable, width=channels)
        self.score = score_layer(head_channels, num_classes, std=0.001)

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{name: (N, C, H/s, W/s)} -> {"logits": (N, K, H/out_stride, W/out_stride)}."""
        return {"logits": self.score(self.head(self.trunk(features)))}


class PanopticDeepLabInstances(nn.Module):
    """The instance branch: how likely a cell is an instance's centre, and the way from each cell to its centre."""

    def __init__(
        self,
        in_features: dict[str, FeatureSpec],
        *,
        norm: Norm | None,
        channels: int = 128,
        head_channels: int = 32,
        project_channels: Sequence[int] = (32, 64),
        aspp_channels: int = 256,
        rates: Sequence[int] = (6, 12, 18),
        pool: Sequence[int] | None = None,
        dropout: float = 0.1,
        separable: bool = False,
    ) -> None:
        """Build as the semantic branch is; the convolutions before the centres are always two full ones.

        Args:
            in_features: shallow to deep: ResNet's res2, res3 and res5 (stride 16).
            norm: from channels to a layer, or None.
            channels: width of the decoder.
            head_channels: width of what centres and offsets are read from.
            project_channels, aspp_channels, rates, pool, dropout, separable: as of the semantic branch.

        Raises:
            ValueError: an argument outside what is said here.
        """
        super().__init__()
        name = "PanopticDeepLabInstances"
        check_features(name, in_features, 1, at_least=2)
        check_sizes(name, "head_channels", (head_channels,))
        self.out_stride = next(iter(in_features.values())).stride
        self.trunk = _Trunk(
            name,
            in_features,
            norm=norm,
            channels=channels,
            project_channels=project_channels,
            aspp_channels=aspp_channels,
            rates=rates,
            pool=pool,
            dropout=dropout,
            separable=separable,
        )
        self.centre = nn.Sequential(
            _pair(channels, head_channels, norm=norm, separable=False, width=channels),
            score_layer(head_channels, 1, std=0.001),
        )
        self.offset = nn.Sequential(
            _pair(channels, head_channels, norm=norm, separable=separable, width=channels),
            score_layer(head_channels, 2, std=0.001),
        )

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{name: (N, C, H/s, W/s)} -> {"centre": (N, 1, h, w), "offset": (N, 2, h, w): rows, columns, in cells}."""
        x = self.trunk(features)
        return {"centre": self.centre(x), "offset": self.offset(x)}
