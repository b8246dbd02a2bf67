"""DeepLabv3+: encoder-decoder with atrous separable convolution (Chen et al., 2018)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from seg_ext.layers import ASPP, ConvNormAct, FeatureSpec, Norm, SeparableConv, resize_to, score_layer

from .contract import check_dropout, check_features, check_sizes


class DeepLabV3Plus(nn.Module):
    """ASPP on the deepest feature, resized to the shallow one, joined with its projection, two 3x3 convolutions.

    Figure 2 of the paper; order of the concatenation and dropout of the released code.
    """

    def __init__(
        self,
        in_features: dict[str, FeatureSpec],
        num_classes: int,
        *,
        norm: Norm | None,
        rates: Sequence[int] = (6, 12, 18),
        channels: int = 256,
        low_level_channels: int = 48,
        separable: bool = False,
        aspp_separable: bool | None = None,
        bare_depthwise: bool = False,
        image_pooling: bool = True,
        image_norm: bool = True,
        pool: Sequence[int] | None = None,
        project_kernel_size: int = 1,
        aspp_conv: bool = False,
        refine_convs: int = 2,
        align_corners: bool = False,
        dropout: float = 0.1,
    ) -> None:
        """Build for two features.

        Args:
            in_features: two features, low level first: ResNet's res2 (stride 4) and res5 (stride 16 or 8).
            num_classes: K.
            norm: from channels to a layer, or None.
            rates: dilations of the ASPP, in cells of the deepest feature: the default at stride 16, twice that at 8.
            channels: width of the ASPP and of the 3x3 convolutions.
            low_level_channels: width to which the low level is reduced.
            separable: every 3x3 convolution becomes depthwise and pointwise.
            aspp_separable: those of the ASPP do; None means as `separable` (segmentation_models_pytorch has the choice,
                decoder_aspp_separable).
            bare_depthwise: where they do, no norm and activation between the two (segmentation_models_pytorch).
            image_pooling: the ASPP's image-level branch.
            image_norm, pool, project_kernel_size: see :class:`seg_ext.layers.ASPP`.
            aspp_conv: one more 3x3 convolution between the ASPP and the resizing (segmentation_models_pytorch).
            refine_convs: 3x3 convolutions after the join.
            align_corners: of the resizing.
            dropout: probability after the ASPP.

        Raises:
            ValueError: an argument outside what is said here.
        """
        super().__init__()
        check_features("DeepLabV3Plus", in_features, num_classes, at_least=2, at_most=2)
        check_sizes("DeepLabV3Plus", "rates", rates)
        sizes = (channels, low_level_channels, refine_convs)
        check_sizes("DeepLabV3Plus", "channels, low_level_channels and refine_convs", sizes)
        check_dropout("DeepLabV3Plus", dropout)
        self.low_name, self.deep_name = in_features
        low, deep = in_features.values()
        self.out_stride = low.stride
        self.align_corners = align_corners
        thin = partial(SeparableConv, bare_depthwise=bare_depthwise)
        conv = thin if separable else ConvNormAct
        self.aspp = ASPP(
            deep.channels,
            channels,
            rates=rates,
            norm=norm,
            conv=thin if (separable if aspp_separable is None else aspp_separable) else ConvNormAct,
            image_pooling=image_pooling,
            image_norm=image_norm,
            pool=pool,
            project_kernel_size=project_kernel_size,
            dropout=dropout,
        )
        self.aspp_conv = conv(channels, channels, norm=norm) if aspp_conv else nn.Identity()
        self.low_level = ConvNormAct(low.channels, low_level_channels, kernel_size=1, norm=norm)
        widths = [channels + low_level_channels, *[channels] * refine_convs]
        self.refine = nn.Sequential(*(conv(a, b, norm=norm) for a, b in pairwise(widths)))
        self.score = score_layer(channels, num_classes)

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{name: (N, C, H/s, W/s)} -> {"logits": (N, K, H/out_stride, W/out_stride)}."""
        low = self.low_level(features[self.low_name])  # (N, 48, H/4, W/4)
        deep = self.aspp_conv(self.aspp(features[self.deep_name]))  # (N, 256, h, w)
        deep = resize_to(deep, low.shape[-2:], align_corners=self.align_corners)  # (N, 256, H/4, W/4)
        return {"logits": self.score(self.refine(torch.cat((deep, low), dim=1)))}
