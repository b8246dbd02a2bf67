"""Decoders: backbone features to class logits, one file per family.

`Decoder(in_features: dict[str, FeatureSpec], num_classes, *, norm, ...)`, features shallow to deep;
`forward(dict[str, Tensor]) -> dict[str, Tensor]`: "logits" (N, K, h, w) at `decoder.out_stride` and, in training only,
"aux_<name>". A decoder whose logits do not begin at the image's first pixel has `out_offset`, the place of that pixel.
"""

from torch import nn

from .deeplabv3plus import DeepLabV3Plus
from .fcn import FCN, FCNHead
from .pspnet import PSPNet
from .unet import UNet

DECODERS: dict[str, type[nn.Module]] = {
    "fcn": FCN,
    "fcn_head": FCNHead,
    "unet": UNet,
    "deeplabv3plus": DeepLabV3Plus,
    "pspnet": PSPNet,
}

__all__ = ["DECODERS", "FCN", "DeepLabV3Plus", "FCNHead", "PSPNet", "UNet"]
