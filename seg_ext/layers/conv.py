"""Convolution, normalisation, activation in one; its depthwise-separable form; and the score layer after them."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt

from torch import Tensor, nn

from .norm import Norm, refuse_single_value

Act = Callable[[], nn.Module]


def relu() -> nn.Module:
    """ReLU that overwrites its input, which nothing else holds here."""
    return nn.ReLU(inplace=True)


class ConvNormAct(nn.Module):
    """Convolution (with bias where no norm follows, unless said), norm, activation: (N, C, H, W) -> (N, C', h, w).

    Weights are normal with std sqrt(2 / fan_out) (He et al. 2015, detectron2's c2_msra_fill), fan_out counted within a
    group; biases are 0.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 3,
        stride: int = 1,
        dilation: int = 1,
        padding: int | None = None,
        groups: int = 1,
        bias: bool | None = None,
        norm: Norm | None,
        act: Act | None = relu,
    ) -> None:
        """Build and initialise.

        Args:
            in_channels: C.
            out_channels: C'.
            kernel_size: 3 unless said.
            stride: of the convolution.
            dilation: of the convolution.
            padding: cells on every side; None keeps the size at stride 1.
            groups: of the convolution.
            bias: of the convolution; None has one where no norm follows.
            norm: from channels to a layer, or None.
            act: makes the activation, or None.

        Raises:
            ValueError: in forward, where a training BatchNorm would see one value per channel.
        """
        super().__init__()
        pad = dilation * (kernel_size // 2) if padding is None else padding
        bias = norm is None if bias is None else bias
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, pad, dilation, groups=groups, bias=bias)
        self.norm = norm(out_channels) if norm is not None else None
        self.act = act() if act is not None else None
        nn.init.normal_(self.conv.weight, std=sqrt(2 * groups / (out_channels * kernel_size**2)))
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', h, w)."""
        x = self.conv(x)
        if self.norm is not None:
            refuse_single_value(self.norm, x)
            x = self.norm(x)
        return x if self.act is None else self.act(x)


def he_fan_in(conv: nn.Conv2d, *, dropout: float = 0.0) -> None:
    """Draw the weights anew, normal with std sqrt(2 (1 - dropout) / fan_in): He et al. 2015, eq. 10.

    Behind a ReLU and a dropout of that probability, which divides what it keeps, maps then keep their second moment.
    """
    nn.init.normal_(conv.weight, std=sqrt(2 * (1 - dropout) / conv.weight[0].numel()))


class SeparableConv(nn.Module):
    """Depthwise convolution, norm, activation, then 1x1 convolution, norm, activation (DeepLabv3+ section 3.1)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 3,
        stride: int = 1,
        dilation: int = 1,
        norm: Norm | None,
        act: Act | None = relu,
        bare_depthwise: bool = False,
    ) -> None:
        """Build both convolutions.

        Args:
            in_channels: C.
            out_channels: C'.
            kernel_size: of the depthwise convolution.
            stride: of the depthwise convolution.
            dilation: of the depthwise convolution.
            norm: from channels to a layer, or None.
            act: makes the activation after both convolutions; None where it comes before them (Xception).
            bare_depthwise: nothing follows the depthwise convolution (no norm, no activation, no bias).
        """
        super().__init__()
        self.depthwise = ConvNormAct(
            in_channels,
            in_channels,
            kernel_size=kernel_size,
            stride=stride,
            dilation=dilation,
            groups=in_channels,
            bias=False if bare_depthwise else None,
            norm=None if bare_depthwise else norm,
            act=None if bare_depthwise else act,
        )
        self.pointwise = ConvNormAct(in_channels, out_channels, kernel_size=1, norm=norm, act=act)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', h, w)."""
        return self.pointwise(self.depthwise(x))


def score_layer(in_channels: int, num_classes: int, *, kernel_size: int = 1, std: float | None = None) -> nn.Conv2d:
    """Convolution to class scores, 1x1 unless said, bias 0, weights normal with `std` (0: all zero, FCN).

    It is 0.01 unless said, and sqrt(2 / fan_in) (He et al. 2015) for one or two classes: beside a majority of
    background the weights that tell them apart, over a ReLU's outputs, which are never negative, soon had one sign
    under Adam, and no score could rise above the bias.
    """
    layer = nn.Conv2d(in_channels, num_classes, kernel_size, padding=kernel_size // 2)
    if std is None and num_classes <= 2:
        he_fan_in(layer)
    else:
        nn.init.normal_(layer.weight, std=0.01 if std is None else std)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


def conv_head(
    in_channels: int, num_classes: int, *, channels: int, norm: Norm | None, dropout: float = 0.1, dilation: int = 1
) -> nn.Sequential:
    """3x3 convolution to `channels`, norm, ReLU, dropout, 1x1 to class scores (torchvision's FCN head, PSPNet)."""
    return nn.Sequential(
        ConvNormAct(in_channels, channels, dilation=dilation, norm=norm),
        nn.Dropout(dropout),
        score_layer(channels, num_classes),
    )
