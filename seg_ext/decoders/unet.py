"""U-Net: encoder-decoder with concatenated skips (Ronneberger et al., 2015), padded or not, on any encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise, zip_longest

import torch
from torch import Tensor, nn

from seg_ext.layers import ConvNormAct, FeatureSpec, Norm, he_fan_in, resize_to, score_layer

from .contract import check_features, check_sizes

UPS = ("transpose", "bilinear", "nearest", "bilinear_conv")
PADDINGS = ("same", "valid")


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
        dropout: float = 0.0,
        crop: int | None = None,
    ) -> None:
        """Build the upsampling and the convolutions.

        Args:
            in_channels: C.
            out_channels: C'.
            skip_channels: S, 0 for a block without skip.
            factor: stride of the input over that of the output.
            up: "transpose" (kernel and stride `factor`, to C' channels), "bilinear" or "nearest" (to the skip's size),
                or "bilinear_conv" (then a 1x1 convolution to C' channels, with norm and activation: mmsegmentation).
            convs: 3x3 convolutions after the join.
            skip_first: order of the join.
            norm: from channels to a layer, or None.
            dropout: probability after each convolution.
            crop: None for padded convolutions. A number makes them valid and is where the upsampled map begins in the
                skip, in cells: the output has h' = factor * h - 2 * convs, less where the skip ends before.
        """
        super().__init__()
        self.factor = factor
        self.crop = crop
        self.skip_first = skip_first
        self.mode = "nearest" if up == "nearest" else "bilinear"
        self.up = nn.ConvTranspose2d(in_channels, out_channels, factor, stride=factor) if up == "transpose" else None
        self.reduce = None
        if up == "bilinear_conv":
            self.reduce = ConvNormAct(in_channels, out_channels, kernel_size=1, norm=norm)
        joined = skip_channels + (out_channels if up in ("transpose", "bilinear_conv") else in_channels)
        widths = [joined, *[out_channels] * convs]
        padding = None if crop is None else 0
        blocks = [ConvNormAct(a, b, norm=norm, padding=padding) for a, b in pairwise(widths)]
        for block in blocks:
            he_fan_in(block.conv, dropout=dropout)
        self.convs = nn.ModuleList(blocks)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        """(N, C, h, w), (N, S, h', w') -> (N, C', h', w'); without skip h' = factor * h.

        Raises:
            ValueError: a map too small for valid convolutions.
        """
        size = [self.factor * side for side in x.shape[-2:]]
        x = x if self.up is None else self.up(x)
        if self.crop is None:
            x = resize_to(x, size if skip is None else skip.shape[-2:], mode=self.mode)
        else:
            x, skip = self._crop(resize_to(x, size, mode=self.mode), skip)
        x = x if self.reduce is None else self.reduce(x)
        if skip is not None:
            x = torch.cat((skip, x) if self.skip_first else (x, skip), dim=1)
        for conv in self.convs:
            x = self.dropout(conv(x))
        return x

    def _crop(self, x: Tensor, skip: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The part that both maps cover."""
        if skip is not None:
            skip = skip[..., self.crop :, self.crop :]
            height, width = (min(a, b) for a, b in zip(x.shape[-2:], skip.shape[-2:], strict=True))
            x, skip = x[..., :height, :width], skip[..., :height, :width]
        if min(x.shape[-2:]) <= 2 * len(self.convs):
            raise ValueError(
                f"UNet with valid padding takes a larger image: a map of {tuple(x.shape[-2:])} cells is left for "
                f"{len(self.convs)} convolutions (four levels of two take 188 pixels)"
            )
        return x, skip


class UNet(nn.Module):
    """From the deepest feature up: upsample, join the next shallower feature, convolve; then the classifier.

    On features of 64, 128, 256, 512, 1024 channels at strides 1 to 16 the defaults are the original's expanding path
    with padded convolutions; `padding="valid"` on features of valid convolutions (offsets 2, 6, 14, 30, 62) is the
    original: an image of 572 pixels a side gives logits of 388, which begin at its pixel 92.

    Attributes:
        out_stride: of the logits.
        out_offset: only with `padding="valid"`: place of the image's first pixel in the logits, both ways, as in FCN.
            Negative (-92 in the original) where the logits begin inside the image, so that the image's pixel (i, j) is
            logits[..., i + out_offset, j + out_offset]; 0 where the encoder had its input mirrored that far outwards.
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
        padding: str = "same",
        centre_convs: int = 0,
        head_conv: bool = False,
        score_kernel_size: int = 1,
    ) -> None:
        """Build one block a joined feature and one a further level.

        Args:
            in_features: two or more, or one with `extra_ups`.
            num_classes: K.
            norm: from channels to a layer, or None.
            up: how a level is upsampled: "transpose" (bias, to the level's width), "bilinear", "nearest" or
                "bilinear_conv" (and a 1x1 convolution with norm and activation, to the level's width).
            channels: width of each level that joins a feature, deep to shallow; None takes that feature's own width.
            extra_ups: width of each further level, which doubles the size and joins nothing.
            convs: 3x3 convolutions a level.
            skip_first: the encoder's feature comes first in the concatenation.
            padding: "same", or "valid" for unpadded convolutions and centre-cropped skips: features may then have any
                offsets that meet on whole cells, and the logits must come to stride 1.
            centre_convs: 3x3 convolutions of the deepest feature before it is upsampled
                (segmentation_models_pytorch on VGG: 2).
            head_conv: a 3x3 convolution, as wide as its input, before the classifier (mmsegmentation).
            score_kernel_size: of the classifier, odd; 3 in segmentation_models_pytorch.

        Raises:
            ValueError: an argument outside what is said here; in forward, an image too small for valid convolutions.
        """
        super().__init__()
        valid = padding == "valid"
        check_features("UNet", in_features, num_classes, at_least=1 if extra_ups else 2, offsets=valid)
        (self.deepest, spec), *skips = reversed(in_features.items())
        widths = [skip.channels for _, skip in skips] if channels is None else list(channels)
        if len(widths) != len(skips):
            raise ValueError(f"UNet takes one of channels for each of {len(skips)} joined features, not {widths}")
        sizes = (*widths, *extra_ups, convs, score_kernel_size)
        check_sizes("UNet", "channels, extra_ups, convs and score_kernel_size", sizes)
        shallowest = skips[-1][1].stride if skips else spec.stride
        if up not in UPS or shallowest % 2 ** len(extra_ups):
            raise ValueError(
                f"UNet takes up of {list(UPS)} and extra_ups that divide stride {shallowest} to 1 or more, "
                f"not {up!r} and {list(extra_ups)}"
            )
        self.out_stride = shallowest // 2 ** len(extra_ups)
        padded = centre_convs or head_conv or score_kernel_size > 1 or up == "bilinear_conv"
        if centre_convs < 0 or score_kernel_size % 2 == 0 or (valid and padded):
            raise ValueError(
                "UNet takes centre_convs >= 0 and an odd score_kernel_size; centre_convs, head_conv, larger scores and "
                f"up 'bilinear_conv' only with padding 'same', not {centre_convs}, {score_kernel_size}, {padding!r}"
            )
        if padding not in PADDINGS or (valid and self.out_stride > 1):
            raise ValueError(
                f"UNet takes padding of {list(PADDINGS)}, valid only for logits of stride 1, "
                f"not {padding!r} at stride {self.out_stride}"
            )
        self.skips = [name for name, _ in skips]
        strides = [spec.stride, *(skip.stride for _, skip in skips)]
        plan = [
            (skip.channels, width, deep // shallow)
            for (_, skip), width, (deep, shallow) in zip(skips, widths, pairwise(strides), strict=True)
        ] + [(0, width, 2) for width in extra_ups]
        crops: list[int | None] = [None] * len(plan)
        if valid:
            crops, self.out_offset = self._place(list(in_features.values()), len(extra_ups), convs)
        self.blocks = nn.ModuleList()
        width = spec.channels
        for (skip_channels, out_channels, factor), crop in zip(plan, crops, strict=True):
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
                    crop=crop,
                )
            )
            width = out_channels
        centre = [ConvNormAct(spec.channels, spec.channels, norm=norm) for _ in range(centre_convs)]
        self.centre = nn.Sequential(*centre)
        self.refine = ConvNormAct(width, width, norm=norm) if head_conv else nn.Identity()
        self.score = score_layer(width, num_classes, kernel_size=score_kernel_size)

    @staticmethod
    def _place(specs: Sequence[FeatureSpec], extra: int, convs: int) -> tuple[list[int | None], int]:
        """Where each block's upsampled map begins in its skip (shallow to deep `specs`), in cells; and `out_offset`."""
        *skips, deepest = specs
        stride, offset = deepest.stride, deepest.offset
        crops: list[int | None] = []
        for skip in reversed(skips):
            stride = skip.stride
            crop, rest = divmod(offset - skip.offset, stride)
            if rest or crop < 0:
                raise ValueError(
                    f"UNet with valid padding takes features that begin a whole number of cells inside the shallower "
                    f"one, not at {[spec.offset for spec in specs]} with {convs} convolutions a level"
                )
            crops.append(crop)
            offset += convs * stride
        for _ in range(extra):
            stride //= 2
            crops.append(0)
            offset += convs * stride
        return crops, -offset

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{name: (N, C, H/s, W/s)} -> {"logits": (N, K, H/out_stride, W/out_stride)}."""
        x = self.centre(features[self.deepest])
        for block, name in zip_longest(self.blocks, self.skips):
            x = block(x, features[name] if name is not None else None)
        return {"logits": self.score(self.refine(x))}
