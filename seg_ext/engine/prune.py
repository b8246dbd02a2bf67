"""U-Net++ pruned to one of its classifiers (Zhou et al., 2018): the smaller network inside a trained one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn

from seg_ext.decoders import UNetPP
from seg_ext.errors import UserError

KEY = "TEST.PRUNE"


def prune(cfg: CfgNode, model: nn.Module, level: str) -> tuple[CfgNode, nn.Module]:
    """The part of a U-Net++ that ends in the classifier X(0, level), on the levels of the encoder that it needs.

    Args:
        cfg: the config that ``model`` was built from.
        model: holds the weights, which the part shares.
        level: "L1", "L2", ... as deep as the network.

    Returns:
        The part's own config, for training or prediction, and the part in eval mode. Its scores are exactly those of
        that classifier in the whole network.

    Raises:
        UserError: a model without U-Net++, or a level it does not have or cannot be cut at.
    """
    head = getattr(model, "sem_seg_head", None)
    decoder = getattr(head, "decoder", None)
    if not isinstance(decoder, UNetPP):
        raise UserError(f"{KEY} {level!r}: takes a model with MODEL.SEM_SEG_HEAD.DECODER.NAME unetpp")
    levels = [f"L{name.removeprefix('x0')}" for name in decoder.heads]
    if level not in levels:
        one = "; without deep supervision it has one classifier alone" if len(levels) == 1 else ""
        raise UserError(f"{KEY} {level!r}: takes {', '.join(levels)} of this model, or '' for the whole{one}")
    small = pruned_config(cfg, decoder, int(level[1:]))
    with torch.random.fork_rng(devices=[]):
        part = build_model(small).eval()
    _share(part, model.state_dict(), level)
    return small, part


def pruned_config(cfg: CfgNode, decoder: UNetPP, depth: int) -> CfgNode:
    """The config of the part of depth 1 or more, without the levels of the backbone that nothing else reads."""
    small = cfg.clone()
    small.defrost()
    small.TEST.PRUNE = ""
    semantic = small.MODEL.SEM_SEG_HEAD
    semantic.IN_FEATURES = list(decoder.names[: depth + 1])
    semantic.DECODER.ARGS.pop("inference", None)
    if depth < decoder.depth:
        semantic.DECODER.ARGS.pop("channels", None)  # of nodes below the part
    semantic.DECODER.ARGS.update(depth=depth, deep_supervision=False)
    small.MODEL.TIMM.PRETRAINED = False
    if small.MODEL.ROI_HEADS.NAME or small.MODEL.INS_EMBED_HEAD.NAME or small.MODEL.PROPOSAL_GENERATOR.NAME:
        return small  # these heads read the deeper maps
    node = _NODES.get(small.MODEL.BACKBONE.NAME)
    if node is not None:
        small.MODEL[node].OUT_FEATURES = [x for x in semantic.IN_FEATURES if x != "image"]
    if node == "UNET":
        small.MODEL.UNET.DEPTH = depth + 1
    return small


_NODES = {
    "build_seg_ext_unet_backbone": "UNET",
    "build_seg_ext_vgg_backbone": "VGG",
    "build_seg_ext_xception_backbone": "XCEPTION",
    "build_seg_ext_timm_backbone": "TIMM",
    "build_seg_ext_resnet_backbone": "RESNETS",
    "build_resnet_backbone": "RESNETS",
}


def _share(part: nn.Module, state: Mapping[str, Tensor], level: str) -> None:
    """Make the whole network's tensors the part's."""
    wanted = part.state_dict()
    strange = [key for key, value in wanted.items() if key not in state or state[key].shape != value.shape]
    if strange:
        raise UserError(f"{KEY} {level!r}: the model is not that of its config, whose part has another {strange[0]}")
    part.load_state_dict({key: state[key] for key in wanted}, assign=True)
