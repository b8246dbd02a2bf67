"""SegNet and SegNet-Basic (Badrinarayanan et al., 2017), Bayesian SegNet (Kendall et al., 2017), as released."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from seg_ext.layers import ConvNormAct, FeatureSpec, Norm, he_fan_in, score_layer

from .contract import INDICES, check_dropout, check_features, check_sizes

DROPOUT_FROM = 3  # stage of both released Bayesian nets, counted from the image, from which on dropout follows


def unpool(x: Tensor, indices: Tensor, size: Sequence[int]) -> Tensor:
    """Put every value of x (N, C, h, w) where its maximum was, 0 elsewhere: (N, C, *size).

    Args:
        x: floating point map.
        indices: (N, C, h, w) int64, places in the flattened (height, width) map, as `max_pool2d` returns them.
        size: (height, width) of the map that was pooled.
    """
    height, width = size
    flat = x.new_zeros(*x.shape[:2], height * width)
    return flat.scatter(2, indices.flatten(2), x.flatten(2)).unflatten(2, (height, width))


class Unpooling(nn.Module):
    """From the deepest map up: unpool with the encoder's own indices, then a stage of convolutions."""

    def __init__(self, in_features: dict[str, FeatureSpec], num_classes: int, *, dropout: float) -> None:
        """Find the maps; the stages are the subclass's, deepest first.

        Args:
            in_features: "<name>_indices" of every 2x2 max pooling, the deepest pooled map "<name>", and one map of the
                size before the first pooling ("image" or "conv1"), of which only the size is read.
            num_classes: K.
            dropout: probability after the stages from the third on, counted from the image; training only.

        Raises:
            ValueError: an argument outside what is said here, such as the features of an encoder without indices.
        """
        super().__init__()
        name = type(self).__name__
        check_features(name, in_features, num_classes, indices=True)
        check_dropout(name, dropout)
        self.indices = [feature for feature in in_features if feature.endswith(INDICES)]
        self.deepest = self.indices[-1].removesuffix(INDICES) if self.indices else ""
        first, deep = next(iter(in_features)), in_features.get(self.deepest)
        self.out_stride = in_features[first].stride
        strides = [in_features[feature].stride for feature in self.indices]
        if strides != [self.out_stride * 2**level for level in range(1, len(strides) + 1)] or (
            deep is None or deep != in_features[self.indices[-1]]
        ):
            raise ValueError(
                f"{name} takes conv1 or image, pool1_indices and so on at twice the stride each, and the deepest pool "
                f"(an encoder that returns its max-pooling indices), not {list(in_features)}"
            )
        self.sizes = [first, *self.indices[:-1]]
        self.widths = [in_features[feature].channels for feature in self.indices]
        self.dropout = dropout
        self.stages = nn.ModuleList()

    def add_stage(self, *layers: nn.Module) -> None:
        """Append the next shallower stage, with its dropout."""
        level = len(self.widths) - len(self.stages)
        drop = [nn.Dropout(self.dropout)] if level >= DROPOUT_FROM else []
        self.stages.append(nn.Sequential(*layers, *drop))

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{name: (N, C, h, w)} -> {"logits": (N, K, H/out_stride, W/out_stride)}."""
        x = features[self.deepest]
        for stage, indices, before in zip(self.stages, reversed(self.indices), reversed(self.sizes), strict=True):
            x = stage(unpool(x, features[indices], features[before].shape[-2:]))
        return {"logits": x}


class SegNet(Unpooling):
    """SegNet: the mirror of VGG's convolutions, with norm and ReLU; the last one scores (2017, section 3).

    With `dropout` 0.5 and as much after the encoder's pools 3, 4 and 5 it is Bayesian SegNet.
    """

    def __init__(
        self,
        in_features: dict[str, FeatureSpec],
        num_classes: int,
        *,
        norm: Norm | None,
        convs: Sequence[int] = (2, 2, 3, 3, 3),
        dropout: float = 0.0,
    ) -> None:
        """Build one stage a pooling.

        Args:
            in_features: see `Unpooling`: image or conv1, pool1_indices to pool5_indices, pool5.
            num_classes: K.
            norm: from channels to a layer, or None.
            convs: convolutions of every stage, shallow to deep; the default is VGG-16's.
            dropout: see `Unpooling`.

        Raises:
            ValueError: an argument outside what is said here.
        """
        super().__init__(in_features, num_classes, dropout=dropout)
        check_sizes("SegNet", "convs", convs)
        if len(convs) != len(self.widths):
            raise ValueError(f"SegNet takes one of convs for each of {len(self.widths)} poolings, not {list(convs)}")
        outs = [None, *self.widths]
        for width, out, count in reversed(list(zip(self.widths, outs, convs, strict=False))):
            layers: list[nn.Module] = [ConvNormAct(width, width, bias=True, norm=norm) for _ in range(count - 1)]
            if out is None:
                score = nn.Conv2d(width, num_classes, 3, padding=1)
                he_fan_in(score)
                nn.init.zeros_(score.bias)  # type: ignore[arg-type]
                layers.append(score)
            else:
                layers.append(ConvNormAct(width, out, bias=True, norm=norm))
            self.add_stage(*layers)


class SegNetBasic(Unpooling):
    """SegNet-Basic: a 7x7 convolution with norm after every unpooling, then a 1x1 classifier (section 3.1).

    On four poolings of 64 channels it is the paper's; its encoder has 7x7 convolutions with norm and ReLU.
    """

    def __init__(
        self,
        in_features: dict[str, FeatureSpec],
        num_classes: int,
        *,
        norm: Norm | None,
        kernel_size: int = 7,
        bias: bool = False,
        dropout: float = 0.0,
    ) -> None:
        """Build one stage a pooling and the classifier.

        Args:
            in_features: see `Unpooling`: image or conv1, pool1_indices to pool4_indices, pool4.
            num_classes: K.
            norm: from channels to a layer, or None.
            kernel_size: of every convolution, odd.
            bias: of the 7x7 convolutions: False in the paper, True in the released net.
            dropout: see `Unpooling`.

        Raises:
            ValueError: an argument outside what is said here.
        """
        super().__init__(in_features, num_classes, dropout=dropout)
        check_sizes("SegNetBasic", "kernel_size", (kernel_size,))
        if kernel_size % 2 == 0:
            raise ValueError(f"SegNetBasic takes an odd kernel_size, not {kernel_size}")
        for width, out in reversed(list(zip(self.widths, [self.widths[0], *self.widths], strict=False))):
            self.add_stage(ConvNormAct(width, out, kernel_size=kernel_size, bias=bias, norm=norm, act=None))
        self.score = score_layer(self.widths[0], num_classes)

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{name: (N, C, h, w)} -> {"logits": (N, K, H/out_stride, W/out_stride)}."""
        return {"logits": self.score(super().forward(features)["logits"])}
