"""Decoders: backbone features to class logits, one file per family.

`Decoder(in_features: dict[str, FeatureSpec], num_classes, *, norm, ...)`, features shallow to deep;
`forward(dict[str, Tensor]) -> dict[str, Tensor]`: "logits" (N, K, h, w) at `decoder.out_stride` and, in training only,
spatial "aux_<name>" and image-level "image_<name>"; a decoder that gives the latter names them in `image_outputs`. One
whose logits of stride 1 do not begin at the image's first pixel has `out_offset`, the place of that pixel in them; a
negative one means that they begin inside the image.
"""

from torch import nn

from .context import DilatedContext
from .deeplab import DeepLabV1, DeepLabV2
from .deeplabv3 import DeepLabV3
from .deeplabv3plus import DeepLabV3Plus
from .fcn import FCN, FCNHead, FCNSum
from .gcn import GCN
from .linknet import LinkNet
from .pspnet import PSPNet
from .refinenet import RefineNet
from .segnet import SegNet, SegNetBasic
from .semantic_fpn import SemanticFPN
from .unet import UNet
from .unet3p import UNet3Plus
from .unetpp import UNetPP

DECODERS: dict[str, type[nn.Module]] = {
    "fcn": FCN,
    "fcn_head": FCNHead,
    "fcn_sum": FCNSum,
    "unet": UNet,
    "unetpp": UNetPP,
    "unet3p": UNet3Plus,
    "linknet": LinkNet,
    "semantic_fpn": SemanticFPN,
    "refinenet": RefineNet,
    "gcn": GCN,
    "deeplabv3plus": DeepLabV3Plus,
    "pspnet": PSPNet,
    "segnet": SegNet,
    "segnet_basic": SegNetBasic,
    "deeplabv1": DeepLabV1,
    "deeplabv2": DeepLabV2,
    "deeplabv3": DeepLabV3,
    "dilated_context": DilatedContext,
}

__all__ = [
    "DECODERS",
    "DeepLabV1",
    "DeepLabV2",
    "DeepLabV3",
    "DeepLabV3Plus",
    "DilatedContext",
    "FCN",
    "FCNHead",
    "FCNSum",
    "GCN",
    "LinkNet",
    "PSPNet",
    "RefineNet",
    "SegNet",
    "SegNetBasic",
    "SemanticFPN",
    "UNet",
    "UNet3Plus",
    "UNetPP",
]
