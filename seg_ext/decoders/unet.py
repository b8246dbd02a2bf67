"""U-Net: encoder-decoder with concatenated skips (Ronneberger et al., 2015), on the features of any encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise, zip_longest

import torch
from torch import Tensor, nn

from seg_ext.layers import ConvNormAct, FeatureSpec, Norm, resize_to, score_layer

from .contract import check_features, check_sizes

UPS = ("transpose", "bilinear", "nearest")


class UpBlock(nn.Module):
    """Upsample, join the skip where there is one, convolve: (N, C, h, w), (N, S, h', w') -> (N, C', h', w')."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        skip_channels: int,
        factor: int,
        up: str,
        convs: int,
        skip_first: bool,
        norm: Norm | None,
    ) -> None:
        """Build the upsampling and the convolutions.

        Args:
            in_channels: C.
            out_channels: C'.
            skip_channels: S, 0 for a block without skip.
            factor: stride of the input over that of the output.
            up: "transpose" (kernel and stride `factor`, to C' channels), "bilinear" or "nearest" (to the skip's size).
            convs: 3x3 convolutions after the join.
            skip_first: order of the join.
            norm: from channels to a layer, or None.
        """
        super().__init__()
        self.factor = factor
        self.skip_first = skip_first
        self.mode = "bilinear" if up == "transpose" else up
        self.up = nn.ConvTranspose2d(in_channels, out_channels, factor, stride=factor) if up == "transpose" else None
        joined = skip_channels + (in_channels if self.up is None else out_channels)
        widths = [joined, *[out_channels] * convs]
        self.convs = nn.Sequential(*(ConvNormAct(a, b, norm=norm) for a, b in pairwise(widths)))

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        """(N, C, h, w), (N, S, h', w') -> (N, C', h', w'); without skip h' = factor * h."""
        size = [self.factor * side for side in x.shape[-2:]] if skip is None else skip.shape[-2:]
        x = resize_to(x if self.up is None else self.up(x), size, mode=self.mode)
        if skip is not None:
            x = torch.cat((skip, x) if self.skip_first else (x, skip), dim=1)
        return self.convs(x)


class UNet(nn.Module):
    """From the deepest feature up: upsample, join the next shallower feature, convolve; then the classifier.

    On features of 64, 128, 256, 512, 1024 channels at strides 1 to 16 the defaults are the original's expanding path,
    with padded instead of valid convolutions.
    """

    def __init__(
        self,
        in_features: dict[str, FeatureSpec],
        num_classes: int,
        *,
        norm: Norm | None,
        up: str = "transpose",
        channels: Sequence[int] | None = None,
        extra_ups: Sequence[int] = (),
        convs: int = 2,
        skip_first: bool = True,
    ) -> None:
        """Build one block a joined feature and one a further level.

        Args:
            in_features: two or more, or one with `extra_ups`.
            num_classes: K.
            norm: from channels to a layer, or None.
            up: how a level is upsampled: "transpose" (bias, to the level's width), "bilinear" or "nearest".
            channels: width of each level that joins a feature, deep to shallow; None takes that feature's own width.
            extra_ups: width of each further level, which doubles the size and joins nothing.
            convs: 3x3 convolutions a level.
            skip_first: the encoder's feature comes first in the concatenation.

        Raises:
            ValueError: an argument outside what is said here.
        """
        super().__init__()
        check_features("UNet", in_features, num_classes, at_least=1 if extra_ups else 2)
        (self.deepest, spec), *skips = reversed(in_features.items())
        widths = [skip.channels for _, skip in skips] if channels is None else list(channels)
        if len(widths) != len(skips):
            raise ValueError(f"UNet takes one of channels for each of {len(skips)} joined features, not {widths}")
        check_sizes("UNet", "channels, extra_ups and convs", (*widths, *extra_ups, convs))
        shallowest = skips[-1][1].stride if skips else spec.stride
        if up not in UPS or shallowest % 2 ** len(extra_ups):
            raise ValueError(
                f"UNet takes up of {list(UPS)} and extra_ups that divide stride {shallowest} to 1 or more, "
                f"not {up!r} and {list(extra_ups)}"
            )
        self.out_stride = shallowest // 2 ** len(extra_ups)
        self.skips = [name for name, _ in skips]
        strides = [spec.stride, *(skip.stride for _, skip in skips)]
        plan = [
            (skip.channels, width, deep // shallow)
            for (_, skip), width, (deep, shallow) in zip(skips, widths, pairwise(strides), strict=True)
        ] + [(0, width, 2) for width in extra_ups]
        self.blocks = nn.ModuleList()
        width = spec.channels
        for skip_channels, out_channels, factor in plan:
            self.blocks.append(
                UpBlock(
                    width,
                    out_channels,
                    skip_channels=skip_channels,
                    factor=factor,
                    up=up,
                    convs=convs,
                    skip_first=skip_first,
                    norm=norm,
                )
            )
            width = out_channels
        self.score = score_layer(width, num_classes)

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{name: (N, C, H/s, W/s)} -> {"logits": (N, K, H/out_stride, W/out_stride)}."""
        x = features[self.deepest]
        for block, name in zip_longest(self.blocks, self.skips):
            x = block(x, features[name] if name is not None else None)
        return {"logits": self.score(x)}
