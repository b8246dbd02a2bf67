"""Context module of dilated convolutions on a front end's scores (Yu and Koltun, 2016), padded as in released nets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from seg_ext.layers import ConvNormAct, FeatureSpec, Norm, score_layer

from .contract import check_features, check_sizes

DILATIONS = (1, 1, 2, 4, 8, 16, 1)
LARGE = (2, 2, 4, 8, 16, 32, 32)  # widths over C


def identity_init(conv: nn.Conv2d, classes: int, std: float) -> None:
    """Equation 5: the centre tap is C / out_channels between channels of one class, all else normal with `std`.

    Input a and output b are of one class where floor(a C / in_channels) = floor(b C / out_channels).
    """
    nn.init.normal_(conv.weight, std=std)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    inputs = torch.arange(conv.in_channels) * classes // conv.in_channels
    outputs = torch.arange(conv.out_channels) * classes // conv.out_channels
    centre = conv.weight.data[..., conv.kernel_size[0] // 2, conv.kernel_size[1] // 2]
    centre.masked_fill_((outputs[:, None] == inputs).to(centre.device), classes / conv.out_channels)


class ContextModule(nn.Sequential):
    """Dilated 3x3 convolutions with ReLU, then 1x1 (table 1): (N, C, h, w) -> (N, C, h, w), at first the ReLU of it."""

    def __init__(
        self,
        classes: int,
        *,
        large: bool = False,
        dilations: Sequence[int] = DILATIONS,
        pad_layers: bool = False,
        std: float = 0.01,
    ) -> None:
        """Build and initialise as the identity on what is positive.

        Args:
            classes: C.
            large: widths 2C, 2C, 4C, 8C, 16C, 32C, 32C instead of C throughout.
            dilations: one a 3x3 layer; Dilation10's are (1, 1, 2, 4, 8, 16, 32, 64, 1), Dilation7's (1, 1, 2, 4, 8, 1).
            pad_layers: every layer pads its input with zeros, as in the released Dilation10 and training code; False
                pads the scores once by the sum of the dilations (33), as in the paper and the released VOC net.
            std: of the large module's other weights, over the layer's out_channels / C; the basic one's are 0.

        Raises:
            ValueError: an argument outside what is said here.
        """
        check_sizes("ContextModule", "classes and dilations", (classes, *dilations))
        if not dilations or (large and len(dilations) != len(LARGE)):
            raise ValueError(
                f"ContextModule takes {f'{len(LARGE)} dilations where it is large' if large else 'some dilations'}, "
                f"not {list(dilations)}"
            )
        factors = LARGE if large else [1] * len(dilations)
        layers: list[nn.Module] = []
        width = classes
        for index, (dilation, factor) in enumerate(zip(dilations, factors, strict=True)):
            once = 0 if index else sum(dilations)
            padding = dilation if pad_layers else once
            layer = ConvNormAct(width, factor * classes, dilation=dilation, padding=padding, norm=None)
            identity_init(layer.conv, classes, std / factor if large else 0)
            layers.append(layer)
            width = factor * classes
        last = nn.Conv2d(width, classes, 1)
        identity_init(last, classes, std if large else 0)
        super().__init__(*layers, last)


class DilatedContext(nn.Module):
    """Score the front end's deepest feature (1x1, std 0.001), then the context module on the scores."""

    def __init__(
        self,
        in_features: dict[str, FeatureSpec],
        num_classes: int,
        *,
        norm: Norm | None = None,
        large: bool = False,
        dilations: Sequence[int] = DILATIONS,
        pad_layers: bool = False,
    ) -> None:
        """Build the score layer and the module.

        Args:
            in_features: one or more; only the deepest is read: fc7 (4096 channels, stride 8) in the paper.
            num_classes: K.
            norm: not used, no part of this decoder is normalised.
            large: see `ContextModule`, as `dilations` and `pad_layers`.
            dilations: of the module.
            pad_layers: of the module.

        Raises:
            ValueError: an argument outside what is said here.
        """
        super().__init__()
        check_features("DilatedContext", in_features, num_classes)
        self.name, spec = list(in_features.items())[-1]
        self.out_stride = spec.stride
        self.score = score_layer(spec.channels, num_classes, std=0.001)
        self.context = ContextModule(num_classes, large=large, dilations=dilations, pad_layers=pad_layers)

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{name: (N, C, h, w)} -> {"logits": (N, K, h, w)}."""
        return {"logits": self.context(self.score(features[self.name]))}
