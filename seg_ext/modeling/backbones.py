"""Backbones by name for MODEL.BACKBONE.NAME: each turns config keys into an encoder detectron2 can use."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone

from seg_ext.errors import UserError
from seg_ext.modeling.encoders import build_seg_ext_timm_backbone, build_seg_ext_vgg_backbone
from seg_ext.modeling.fpn import FPN
from seg_ext.modeling.norm import norm_layer
from seg_ext.modeling.resnet import MAX_CASCADE, OUTPUT_STRIDES, UNITS, ResNet, Stem, build_stages


@BACKBONE_REGISTRY.register()
def build_seg_ext_resnet_backbone(cfg, input_shape: ShapeSpec) -> ResNet:
    """ResNet from MODEL.RESNETS: detectron2's keys, and those of seg_ext for strides, dilations, cascade and stem."""
    keys = cfg.MODEL.RESNETS
    norm = norm_layer(keys.NORM, "MODEL.RESNETS.NORM")
    for key, value, accepted in (
        ("DEPTH", keys.DEPTH, tuple(UNITS)),
        ("OUTPUT_STRIDE", keys.OUTPUT_STRIDE, OUTPUT_STRIDES),
        ("FIRST_DILATION", keys.FIRST_DILATION, ("own", "previous")),
        ("BASIC_DILATION", keys.BASIC_DILATION, ("both", "first")),
        ("CASCADE", keys.CASCADE, tuple(range(MAX_CASCADE + 1))),
        ("RES2_OUT_CHANNELS", keys.RES2_OUT_CHANNELS, (64,) if keys.DEPTH < 50 else (256,)),
        ("RES5_DILATION", keys.RES5_DILATION, (1,)),  # OUTPUT_STRIDE and DILATIONS take the place of it
        ("DEFORM_ON_PER_STAGE", any(keys.DEFORM_ON_PER_STAGE), (False,)),
    ):
        if value not in accepted:
            raise UserError(f"MODEL.RESNETS.{key} {value!r}: takes {' or '.join(map(repr, accepted))} here")
    if not keys.MULTI_GRID or not all(isinstance(rate, int) and rate > 0 for rate in keys.MULTI_GRID):
        raise UserError(f"MODEL.RESNETS.MULTI_GRID {keys.MULTI_GRID}: takes one or more whole numbers >= 1")
    count = 4 + keys.CASCADE
    if keys.DILATIONS and not (
        len(keys.DILATIONS) == count and all(isinstance(rate, int) and rate > 0 for rate in keys.DILATIONS)
    ):
        raise UserError(f"MODEL.RESNETS.DILATIONS {keys.DILATIONS}: takes none, or {count} whole numbers >= 1 here")
    for key, least in (("STEM_OUT_CHANNELS", 1 + keys.DEEP_STEM), ("NUM_GROUPS", 1), ("WIDTH_PER_GROUP", 1)):
        if keys[key] < least:
            raise UserError(f"MODEL.RESNETS.{key} {keys[key]}: takes a number >= {least} here")
    stem = Stem(input_shape.channels, keys.STEM_OUT_CHANNELS, norm=norm, deep=keys.DEEP_STEM)
    stages = build_stages(
        keys.DEPTH,
        keys.STEM_OUT_CHANNELS,
        norm=norm,
        res2_channels=keys.RES2_OUT_CHANNELS,
        output_stride=keys.OUTPUT_STRIDE,
        multi_grid=keys.MULTI_GRID,
        first_dilation=keys.FIRST_DILATION,
        dilations=keys.DILATIONS,
        basic_dilation=keys.BASIC_DILATION,
        cascade=keys.CASCADE,
        stride_in_1x1=keys.STRIDE_IN_1X1,
        groups=keys.NUM_GROUPS,
        width_per_group=keys.WIDTH_PER_GROUP,
    )
    return ResNet(stem, stages, out_features=keys.OUT_FEATURES, freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT)


@BACKBONE_REGISTRY.register()
def build_seg_ext_resnet_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """The ResNet above under a feature pyramid from MODEL.FPN."""
    return _pyramid(cfg.MODEL.FPN, build_seg_ext_resnet_backbone(cfg, input_shape))


@BACKBONE_REGISTRY.register()
def build_seg_ext_vgg_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """VGG-16 under a feature pyramid from MODEL.FPN: pool3 gives p3."""
    return _pyramid(cfg.MODEL.FPN, build_seg_ext_vgg_backbone(cfg, input_shape))


@BACKBONE_REGISTRY.register()
def build_seg_ext_timm_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """A model of timm under a feature pyramid from MODEL.FPN: stage3 gives p3."""
    return _pyramid(cfg.MODEL.FPN, build_seg_ext_timm_backbone(cfg, input_shape))


def _pyramid(keys: CfgNode, bottom_up: Backbone) -> FPN:
    norm = norm_layer(keys.NORM, "MODEL.FPN.NORM")
    if keys.OUT_CHANNELS < 1:
        raise UserError(f"MODEL.FPN.OUT_CHANNELS {keys.OUT_CHANNELS}: takes a number >= 1")
    return FPN(bottom_up, keys.IN_FEATURES, out_channels=keys.OUT_CHANNELS, norm=norm)
