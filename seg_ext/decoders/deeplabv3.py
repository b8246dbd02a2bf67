"""DeepLabv3: atrous spatial pyramid with image-level features (Chen et al., 2017), and torchvision's form of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from seg_ext.layers import ASPP, ConvNormAct, FeatureSpec, Norm, conv_head, score_layer

from .contract import auxiliary_feature, check_dropout, check_features, check_sizes


class DeepLabV3(nn.Module):
    """ASPP on the deepest feature and a 1x1 classifier (section 3.3).

    torchvision's variant has rates (12, 24, 36) at stride 8, dropout 0.5, `head_conv` and `aux`.
    """

    def __init__(
        self,
        in_features: dict[str, FeatureSpec],
        num_classes: int,
        *,
        norm: Norm | None,
        rates: Sequence[int] | None = (6, 12, 18),
        channels: int = 256,
        image_pooling: bool = True,
        image_norm: bool = True,
        pool: Sequence[int] | None = None,
        project_kernel_size: int = 1,
        dropout: float = 0.1,
        head_conv: bool = False,
        aux: str | bool | None = None,
    ) -> None:
        """Build the pyramid, the classifier and, with `aux`, the auxiliary head.

        Args:
            in_features: one or more; only the deepest (stride 16 or 8) and the auxiliary one are read.
            num_classes: K.
            norm: from channels to a layer, or None.
            rates: dilations of the ASPP, in cells: the default at stride 16, twice that at 8; None has no ASPP and
                classifies the feature itself, the cascade of section 3.2, whose blocks belong to the encoder.
            channels: width of the ASPP.
            image_pooling: the ASPP's image-level branch.
            image_norm, pool, project_kernel_size: see :class:`seg_ext.layers.ASPP`.
            dropout: probability after the ASPP.
            head_conv: a 3x3 convolution, as wide as its input, with norm and ReLU before the classifier.
            aux: feature under an auxiliary head (3x3 to a quarter of the channels, 1x1), used in training; True means
                the second deepest.

        Raises:
            ValueError: an argument outside what is said here.
        """
        super().__init__()
        check_features("DeepLabV3", in_features, num_classes)
        check_sizes("DeepLabV3", "rates", rates or ())
        check_sizes("DeepLabV3", "channels", (channels,))
        check_dropout("DeepLabV3", dropout)
        self.name, deep = list(in_features.items())[-1]
        self.aux_name = auxiliary_feature("DeepLabV3", in_features, aux)
        self.out_stride = deep.stride
        self.aspp: nn.Module = nn.Identity()
        width = deep.channels
        if rates is not None:
            self.aspp = ASPP(
                width,
                channels,
                rates=rates,
                norm=norm,
                image_pooling=image_pooling,
                image_norm=image_norm,
                pool=pool,
                project_kernel_size=project_kernel_size,
                dropout=dropout,
            )
            width = channels
        self.refine = ConvNormAct(width, width, norm=norm) if head_conv else nn.Identity()
        self.score = score_layer(width, num_classes)
        if self.aux_name is not None:
            side = in_features[self.aux_name].channels
            self.aux_head = conv_head(side, num_classes, channels=max(side // 4, 1), norm=norm)

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{name: (N, C, h, w)} -> "logits" (N, K, h, w) and, in training, "aux_<name>", each at its feature's size."""
        out = {"logits": self.score(self.refine(self.aspp(features[self.name])))}
        if self.training and self.aux_name is not None:
            out[f"aux_{self.aux_name}"] = self.aux_head(features[self.aux_name])
        return out
