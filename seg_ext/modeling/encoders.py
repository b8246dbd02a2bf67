"""seg_ext's encoders as detectron2 backbones: VGG, Xception, U-Net's and timm's, each from its config node."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor

from seg_ext.encoders import VGG, VGG_VARIANTS, Encoder, TimmEncoder, UNetEncoder, Xception
from seg_ext.errors import UserError
from seg_ext.layers import FeatureSpec
from seg_ext.modeling.norm import norm_layer


class EncoderBackbone(Backbone):
    """Some maps of an encoder by name, after ``image`` (its input, stride 1)."""

    def __init__(self, encoder: Encoder, out_features: Sequence[str], *, key: str = "OUT_FEATURES") -> None:
        """Hold the encoder; ``key`` names ``out_features`` in the refusal of a map that it does not give."""
        super().__init__()
        if not out_features or any(name not in list(encoder.specs) for name in out_features):
            raise UserError(f"{key} {list(out_features)}: takes some of {', '.join(encoder.specs)}")
        self.encoder = encoder
        self._names = tuple(name for name in encoder.specs if name in out_features)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, C, H, W) to ``image`` and the named maps, shallow to deep."""
        try:
            return {"image": x, **self.encoder(x, self._names)}
        except ValueError as error:  # the encoder's own refusal, such as of an image too small for it
            raise UserError(f"MODEL.BACKBONE: {error}") from error

    def output_shape(self) -> dict[str, FeatureSpec]:
        """Channels, stride and offset of every returned map."""
        specs = self.encoder.specs
        return {"image": FeatureSpec(self.encoder.in_channels, 1), **{name: specs[name] for name in self._names}}


def _build(make: Callable[[], Encoder], node: str, *, out_features: Sequence[str], freeze_at: int) -> EncoderBackbone:
    if freeze_at:
        raise UserError(f"MODEL.BACKBONE.FREEZE_AT {freeze_at}: takes 0 with {node}")
    try:
        encoder = make()
    except ValueError as error:
        raise UserError(f"{node}: {error}") from error
    return EncoderBackbone(encoder, out_features, key=f"{node}.OUT_FEATURES")


@BACKBONE_REGISTRY.register()
def build_seg_ext_vgg_backbone(cfg, input_shape: ShapeSpec) -> EncoderBackbone:
    """VGG-16 from MODEL.VGG: plain, or as FCN, SegNet, DeepLab or the dilated front end changed it."""
    keys = cfg.MODEL.VGG
    if keys.VARIANT not in VGG_VARIANTS:
        raise UserError(f"MODEL.VGG.VARIANT {keys.VARIANT!r}: takes one of {', '.join(VGG_VARIANTS)}")
    norm = norm_layer(keys.NORM, "MODEL.VGG.NORM")
    return _build(
        lambda: VGG(
            input_shape.channels,
            norm=norm,
            width=keys.WIDTH,
            dropout=keys.DROPOUT,
            **VGG_VARIANTS[keys.VARIANT],
        ),
        "MODEL.VGG",
        out_features=keys.OUT_FEATURES,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )


@BACKBONE_REGISTRY.register()
def build_seg_ext_xception_backbone(cfg, input_shape: ShapeSpec) -> EncoderBackbone:
    """Aligned Xception from MODEL.XCEPTION."""
    keys = cfg.MODEL.XCEPTION
    norm = norm_layer(keys.NORM, "MODEL.XCEPTION.NORM")
    return _build(
        lambda: Xception(input_shape.channels, norm=norm, depth=keys.DEPTH, output_stride=keys.OUTPUT_STRIDE),
        "MODEL.XCEPTION",
        out_features=keys.OUT_FEATURES,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )


@BACKBONE_REGISTRY.register()
def build_seg_ext_unet_backbone(cfg, input_shape: ShapeSpec) -> EncoderBackbone:
    """U-Net's contracting path from MODEL.UNET."""
    keys = cfg.MODEL.UNET
    norm = norm_layer(keys.NORM, "MODEL.UNET.NORM")
    return _build(
        lambda: UNetEncoder(
            input_shape.channels,
            norm=norm,
            width=keys.WIDTH,
            depth=keys.DEPTH,
            valid=keys.VALID,
            mirror=keys.MIRROR,
            bias=keys.BIAS,
            dropout=keys.DROPOUT,
            dropout_after=keys.DROPOUT_AFTER,
        ),
        "MODEL.UNET",
        out_features=keys.OUT_FEATURES,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )


@BACKBONE_REGISTRY.register()
def build_seg_ext_timm_backbone(cfg, input_shape: ShapeSpec) -> EncoderBackbone:
    """A model of timm from MODEL.TIMM."""
    keys = cfg.MODEL.TIMM
    return _build(
        lambda: TimmEncoder(
            input_shape.channels,
            name=keys.NAME,
            pretrained=keys.PRETRAINED,
            output_stride=keys.OUTPUT_STRIDE or None,
        ),
        "MODEL.TIMM",
        out_features=keys.OUT_FEATURES,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )
