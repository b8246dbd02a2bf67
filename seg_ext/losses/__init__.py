"""Losses: functions ``(logits (N,K,H,W), target (N,H,W), *, ignore, ...) -> scalar``, by name in LOSSES.

One that declares ``weight`` also takes (N,H,W) weights of the pixels. K = 1 is a binary problem with one sigmoid
channel everywhere. Those of IMAGE_LOSSES take a decoder's image-level output, ``logits (N,C,1,1)``, instead.
"""

from collections.abc import Callable

from torch import Tensor

from seg_ext.losses.boundary import boundary
from seg_ext.losses.cross_entropy import border_weighted_cross_entropy, cross_entropy
from seg_ext.losses.dice import dice, generalised_dice
from seg_ext.losses.focal import focal
from seg_ext.losses.hard_pixels import ohem, top_k
from seg_ext.losses.jaccard import jaccard
from seg_ext.losses.lovasz import lovasz_hinge, lovasz_softmax
from seg_ext.losses.ms_ssim import ms_ssim
from seg_ext.losses.multilabel import multilabel_cross_entropy, multilabel_dice
from seg_ext.losses.presence import presence
from seg_ext.losses.tversky import tversky

LOSSES: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": cross_entropy,
    "border_weighted_cross_entropy": border_weighted_cross_entropy,
    "focal": focal,
    "dice": dice,
    "generalised_dice": generalised_dice,
    "jaccard": jaccard,
    "tversky": tversky,
    "lovasz_softmax": lovasz_softmax,
    "lovasz_hinge": lovasz_hinge,
    "ohem": ohem,
    "top_k": top_k,
    "boundary": boundary,
    "ms_ssim": ms_ssim,
    "multilabel_cross_entropy": multilabel_cross_entropy,
    "multilabel_dice": multilabel_dice,
}
IMAGE_LOSSES: dict[str, Callable[..., Tensor]] = {
    "presence": presence,
}
