"""Encoders that detectron2 lacks, as plain modules: VGG-16, aligned Xception, U-Net's contracting path, any of timm.

`encoder.specs` names every map it gives, shallow to deep, with its FeatureSpec; `encoder(image, names)` gives the maps.
"""

from .contract import Encoder
from .timm import TimmEncoder
from .unet import UNetEncoder
from .vgg import VGG, VGG_VARIANTS
from .xception import Xception

__all__ = ["VGG", "VGG_VARIANTS", "Encoder", "TimmEncoder", "UNetEncoder", "Xception"]
