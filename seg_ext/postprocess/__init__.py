"""Post-processing: pure functions on scores, labels and masks."""

from seg_ext.postprocess.centres import centre_targets, find_centres, group_pixels
from seg_ext.postprocess.panoptic_fusion import fuse_panoptic

__all__ = ["centre_targets", "find_centres", "fuse_panoptic", "group_pixels"]
