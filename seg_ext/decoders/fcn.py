"""FCN: fully convolutional networks with skips (Long, Shelhamer and Darrell, 2015); a plain sum; torchvision's head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seg_ext.layers import ConvNormAct, FeatureSpec, Norm, bilinear_transposed_conv, conv_head, resize_to, score_layer

from .contract import auxiliary_feature, check_dropout, check_features, check_sizes


class FCN(nn.Module):
    """FCN-32s, -16s, -8s: score every feature, then from the deepest up: upsample, crop, add (2015, section 4.2).

    One, two and three features make FCN-32s, -16s and -8s. A map is placed by its FeatureSpec: upsampling by a
    transposed convolution without padding moves its grid half a cell outwards, and two maps meet on the cells that both
    have. With VGG's features (offsets -99, -99, -3) that gives the crops 5 and 9 and the out_offset 19, 27 or 31 of the
    released nets. Scores start at zero, kernels as bilinear interpolation.

    Attributes:
        out_stride: 1, or the shallowest feature's with `final_upsample=False`.
        out_offset: place of the image's first pixel in the logits, both ways: logits[..., o : o + H, o : o + W] is the
            image where every feature covers it (h * stride >= H - offset).
    """

    def __init__(
        self,
        in_features: dict[str, FeatureSpec],
        num_classes: int,
        *,
        norm: Norm | None = None,
        learn_upsample: bool = False,
        final_upsample: bool = True,
        skip_scale: Sequence[float] | None = None,
        replicate_border: bool = False,
    ) -> None:
        """Build for features on any grids that meet on whole cells.

        Args:
            in_features: one or more, shallow to deep, strides a power of 2 apart; offsets are welcome.
            num_classes: K.
            norm: not used, no part of this decoder is normalised.
            learn_upsample: train the kernels between the skips; the last one stays bilinear (section 4.3).
            final_upsample: upsample to stride 1.
            skip_scale: factor on each skip before it is scored, shallow to deep: (0.0001, 0.01) for FCN-8s-at-once.
            replicate_border: repeat the outermost cells before upsampling: with offset 0 that is exactly bilinear
                interpolation, where the original fades to 0 within half a cell of the border.

        Raises:
            ValueError: an argument outside what is said here, or grids that do not meet on whole cells.
        """
        super().__init__()
        check_features("FCN", in_features, num_classes, offsets=True)
        (self.deepest, spec), *skips = reversed(in_features.items())
        scales = [1.0] * len(skips) if skip_scale is None else [float(scale) for scale in skip_scale]
        if len(scales) != len(skips):
            raise ValueError(f"FCN takes one skip_scale for each of {len(skips)} skips, not {scales}")
        self.skip_scale = dict(zip((name for name, _ in skips), reversed(scales), strict=True))
        self.border = int(replicate_border)
        self.scores = nn.ModuleDict(
            {name: score_layer(feature.channels, num_classes, std=0) for name, feature in in_features.items()}
        )
        self.ups = nn.ModuleDict()
        self.crops: dict[str, tuple[int, int]] = {}
        stride, offset = spec.stride, spec.offset
        for name, skip in skips:
            offset = self._add_up(name, num_classes, stride, skip.stride, offset, learn=learn_upsample)
            stride = skip.stride
            shift, rest = divmod(offset - skip.offset, stride)
            if rest:
                raise ValueError(f"FCN takes features whose grids meet on whole cells, not {dict(in_features)}")
            self.crops[name] = (max(-shift, 0), max(shift, 0))
            offset = max(offset, skip.offset)
        if final_upsample:
            offset = self._add_up("final", num_classes, stride, 1, offset, learn=False)
        elif offset:
            raise ValueError(f"FCN takes final_upsample=False only where the logits have offset 0, not {offset}")
        if offset > 0:
            raise ValueError(f"FCN takes features that begin at the image's first pixel or before, not at {offset}")
        self.out_stride = 1 if final_upsample else stride
        self.out_offset = -offset

    def _add_up(self, name: str, channels: int, stride: int, to: int, offset: int, *, learn: bool) -> int:
        """Add the upsampling from `stride` to stride `to`, and give the offset of the grid behind it."""
        if stride == to:
            self.ups[name] = nn.Identity()
            return offset
        self.ups[name] = bilinear_transposed_conv(channels, stride // to, learn=learn)
        return offset - stride // 2 - self.border * stride

    def _up(self, name: str, x: Tensor) -> Tensor:
        """Upsample (N, K, h, w) by the step `name`, with replicated borders where those were asked for."""
        up = self.ups[name]
        if self.border and not isinstance(up, nn.Identity):
            x = F.pad(x, (1, 1, 1, 1), mode="replicate")
        return up(x)

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{name: (N, C, h, w)} -> {"logits": (N, K, H', W')}, the image at logits[..., o : o + H, o : o + W]."""
        x = self.scores[self.deepest](features[self.deepest])  # (N, K, h, w)
        for name, (crop, skip_crop) in self.crops.items():
            skip, scale = features[name][..., skip_crop:, skip_crop:], self.skip_scale[name]
            skip = self.scores[name](skip if scale == 1 else scale * skip)
            x = self._up(name, x)[..., crop:, crop:]
            height, width = (min(a, b) for a, b in zip(x.shape[-2:], skip.shape[-2:], strict=True))
            x = x[..., :height, :width] + skip[..., :height, :width]
        return {"logits": self._up("final", x) if "final" in self.ups else x}


class FCNSum(nn.Module):
    """Sum of 1x1 scores of every feature, each resized bilinearly to the shallowest: no learned kernels."""

    def __init__(
        self,
        in_features: dict[str, FeatureSpec],
        num_classes: int,
        *,
        norm: Norm | None = None,
        align_corners: bool = False,
    ) -> None:
        """Build one score layer a feature.

        Args:
            in_features: one or more.
            num_classes: K.
            norm: not used, no part of this decoder is normalised.
            align_corners: of the resizing.

        Raises:
            ValueError: an argument outside what is said here.
        """
        super().__init__()
        check_features("FCNSum", in_features, num_classes)
        self.align_corners = align_corners
        self.out_stride = next(iter(in_features.values())).stride
        self.scores = nn.ModuleDict(
            {name: score_layer(spec.channels, num_classes) for name, spec in in_features.items()}
        )

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{name: (N, C, h, w)} -> {"logits": (N, K, h, w)} at the shallowest feature's size."""
        first, *rest = (score(features[name]) for name, score in self.scores.items())
        for x in rest:
            first = first + resize_to(x, first.shape[-2:], align_corners=self.align_corners)
        return {"logits": first}


class _DeepHead(nn.Module):
    """mmsegmentation's FCN head: 3x3 convolutions, the input joined behind them and convolved, the classifier."""

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        channels: int,
        convs: int,
        join: bool,
        dilation: int,
        norm: Norm | None,
        dropout: float,
    ) -> None:
        super().__init__()
        widths = [in_channels, *[channels] * convs]
        self.convs = nn.Sequential(*(ConvNormAct(a, b, dilation=dilation, norm=norm) for a, b in pairwise(widths)))
        self.join = ConvNormAct(in_channels + channels, channels, norm=norm) if join else None
        self.dropout = nn.Dropout(dropout)
        self.score = score_layer(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, K, h, w)."""
        out = self.convs(x)
        if self.join is not None:
            out = self.join(torch.cat((x, out), dim=1))
        return self.score(self.dropout(out))


class FCNHead(nn.Module):
    """torchvision's FCN head: 3x3 convolution to a quarter of the channels, norm, ReLU, dropout, 1x1."""

    def __init__(
        self,
        in_features: dict[str, FeatureSpec],
        num_classes: int,
        *,
        norm: Norm | None,
        dropout: float = 0.1,
        aux: str | bool | None = None,
        channels: int | None = None,
        convs: int = 1,
        join_input: bool = False,
        dilation: int = 1,
    ) -> None:
        """Build one head, or two with `aux`.

        Args:
            in_features: one or more; only the deepest and the auxiliary one are read.
            num_classes: K.
            norm: from channels to a layer, or None.
            dropout: probability before the classifier.
            aux: feature under an auxiliary head, used in training; True means the second deepest.
            channels: width of the head; None for a quarter of its input's.
            convs: 3x3 convolutions in it; 2 in mmsegmentation.
            join_input: the input joins behind them, and a further 3x3 convolution follows (mmsegmentation).
            dilation: of the 3x3 convolutions of both heads, but for that further one; 6 in mmsegmentation's fcn-d6.

        Raises:
            ValueError: an argument outside what is said here.
        """
        super().__init__()
        check_features("FCNHead", in_features, num_classes)
        check_dropout("FCNHead", dropout)
        self.name, deep = list(in_features.items())[-1]
        self.aux_name = auxiliary_feature("FCNHead", in_features, aux)
        self.out_stride = deep.stride
        check_sizes("FCNHead", "convs and channels", (convs, 1 if channels is None else channels))
        check_sizes("FCNHead", "dilation", (dilation,))
        self.heads = nn.ModuleDict()
        for name in filter(None, (self.name, self.aux_name)):
            width = in_features[name].channels
            quarter = max(width // 4, 1)
            if name == self.name and (convs > 1 or join_input or channels):
                self.heads[name] = _DeepHead(
                    width,
                    num_classes,
                    channels=channels or quarter,
                    convs=convs,
                    join=join_input,
                    dilation=dilation,
                    norm=norm,
                    dropout=dropout,
                )
            else:
                self.heads[name] = conv_head(
                    width, num_classes, channels=quarter, norm=norm, dropout=dropout, dilation=dilation
                )

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{name: (N, C, h, w)} -> "logits" (N, K, h, w) and, in training, "aux_<name>", each at its feature's size."""
        out = {"logits": self.heads[self.name](features[self.name])}
        if self.training and self.aux_name is not None:
            out[f"aux_{self.aux_name}"] = self.heads[self.aux_name](features[self.aux_name])
        return out
