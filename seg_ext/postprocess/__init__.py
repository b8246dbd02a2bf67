"""Post-processing: pure functions on scores, labels and masks."""

from seg_ext.postprocess.centres import centre_targets, find_centres, group_pixels
from seg_ext.postprocess.dense_crf import DenseCRF, Kernel, probabilities_to_scores
from seg_ext.postprocess.label_strips import resized_labels
from seg_ext.postprocess.morphology import OPERATIONS, MorphologyChain
from seg_ext.postprocess.panoptic_fusion import fuse_panoptic

__all__ = [
    "OPERATIONS",
    "DenseCRF",
    "Kernel",
    "MorphologyChain",
    "centre_targets",
    "find_centres",
    "fuse_panoptic",
    "group_pixels",
    "probabilities_to_scores",
    "resized_labels",
]
