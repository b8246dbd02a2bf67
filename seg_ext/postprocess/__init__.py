"""Post-processing: pure functions on scores, labels and masks."""

from seg_ext.postprocess.panoptic_fusion import fuse_panoptic

__all__ = ["fuse_panoptic"]
