"""Models: importing this package registers seg_ext's backbones, semantic head and meta-architecture with detectron2."""

from seg_ext.modeling import anchors, backbones, encoders, mask_head, meta_arch, seg_head

__all__ = ["anchors", "backbones", "encoders", "mask_head", "meta_arch", "seg_head"]
