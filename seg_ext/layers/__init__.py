"""Blocks with two or more users, in plain torch: shapes, convolutions, normalisation, ASPP, bilinear upsampling."""

from .aspp import ASPP
from .conv import ConvNormAct, SeparableConv, conv_head, he_fan_in, score_layer
from .norm import Norm, group_norm
from .shape import FeatureSpec, resize_to
from .upsample import bilinear_kernel, bilinear_transposed_conv

__all__ = [
    "ASPP",
    "ConvNormAct",
    "FeatureSpec",
    "Norm",
    "SeparableConv",
    "bilinear_kernel",
    "bilinear_transposed_conv",
    "conv_head",
    "group_norm",
    "he_fan_in",
    "resize_to",
    "score_layer",
]
