"""DeepLab v1 (Chen et al., 2015: LargeFOV, MSc) and v2 (Chen et al., 2018: atrous spatial pyramid of scores)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from seg_ext.layers import ConvNormAct, FeatureSpec, Norm, resize_to, score_layer

from .contract import check_dropout, check_features, check_sizes


def dilated_score(in_channels: int, num_classes: int, rate: int) -> nn.Conv2d:
    """3x3 convolution to class scores at a rate, weights normal with std 0.01, bias 0."""
    layer = nn.Conv2d(in_channels, num_classes, 3, padding=rate, dilation=rate)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


class DeepLabV1(nn.Module):
    """DeepLab v1: score the deepest feature, joined with two-layer heads on every shallower one (MSc, section 4.3).

    On fc7 alone it is LargeFOV, or the 7x7 and 4x4 variants: fc6, fc7 and their dropout belong to the encoder. On the
    image, pool1 to pool4 and fc7 it is MSc, whose concatenation and one score layer equal a sum of scores.
    """

    def __init__(
        self,
        in_features: dict[str, FeatureSpec],
        num_classes: int,
        *,
        norm: Norm | None,
        channels: int = 128,
        dropout: float = 0.5,
    ) -> None:
        """Build the heads and the score layer, which starts normal with std 0.01.

        Args:
            in_features: one or more; each but the deepest gets a head.
            num_classes: K.
            norm: of the heads, from channels to a layer; None in the paper.
            channels: width of both layers of a head.
            dropout: probability after both layers of a head.

        Raises:
            ValueError: an argument outside what is said here.
        """
        super().__init__()
        check_features("DeepLabV1", in_features, num_classes)
        check_sizes("DeepLabV1", "channels", (channels,))
        check_dropout("DeepLabV1", dropout)
        self.deepest, deep = list(in_features.items())[-1]
        self.out_stride = deep.stride
        self.heads = nn.ModuleDict(
            {
                name: nn.Sequential(
                    ConvNormAct(spec.channels, channels, stride=deep.stride // spec.stride, norm=norm),
                    nn.Dropout(dropout),
                    ConvNormAct(channels, channels, kernel_size=1, norm=norm),
                    nn.Dropout(dropout),
                )
                for name, spec in in_features.items()
                if name != self.deepest
            }
        )
        self.score = score_layer(deep.channels + channels * len(self.heads), num_classes)

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{name: (N, C, H/s, W/s)} -> {"logits": (N, K, H/out_stride, W/out_stride)}."""
        deep = features[self.deepest]
        maps = [resize_to(head(features[name]), deep.shape[-2:]) for name, head in self.heads.items()]
        return {"logits": self.score(torch.cat((deep, *maps), dim=1))}


class DeepLabV2(nn.Module):
    """DeepLab v2: sum of class scores over 3x3 convolutions at several rates on the deepest feature (section 3.2)."""

    def __init__(
        self,
        in_features: dict[str, FeatureSpec],
        num_classes: int,
        *,
        norm: Norm | None,
        rates: Sequence[int] = (6, 12, 18, 24),
        hidden: int | None = None,
        dropout: float = 0.5,
    ) -> None:
        """Build one branch a rate; score layers start normal with std 0.01.

        Args:
            in_features: one or more; only the deepest (stride 8 in the paper) is read.
            num_classes: K.
            norm: of hidden layers, from channels to a layer; None in the paper.
            rates: dilation of every branch: (6, 12, 18, 24) is ASPP-L, (2, 4, 8, 12) ASPP-S, (12,) LargeFOV.
            hidden: width of fc6 (3x3, dilated) and fc7 (1x1) before every branch's score, 1024 on VGG's pool5; None
                scores with the dilated 3x3 convolution itself, as on ResNet.
            dropout: probability after each hidden layer.

        Raises:
            ValueError: an argument outside what is said here.
        """
        super().__init__()
        check_features("DeepLabV2", in_features, num_classes)
        check_sizes("DeepLabV2", "rates", rates)
        check_sizes("DeepLabV2", "hidden", () if hidden is None else (hidden,))
        check_dropout("DeepLabV2", dropout)
        if not rates:
            raise ValueError("DeepLabV2 takes one or more rates, not []")
        self.name, spec = list(in_features.items())[-1]
        self.out_stride = spec.stride
        self.branches = nn.ModuleList(
            dilated_score(spec.channels, num_classes, rate)
            if hidden is None
            else nn.Sequential(
                ConvNormAct(spec.channels, hidden, dilation=rate, norm=norm),
                nn.Dropout(dropout),
                ConvNormAct(hidden, hidden, kernel_size=1, norm=norm),
                nn.Dropout(dropout),
                score_layer(hidden, num_classes),
            )
            for rate in rates
        )

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{name: (N, C, h, w)} -> {"logits": (N, K, h, w)}."""
        first, *others = (branch(features[self.name]) for branch in self.branches)
        return {"logits": sum(others, first)}
