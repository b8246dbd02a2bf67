"""Pictures of semantic, instance and panoptic segmentations over images, drawn with OpenCV and NumPy.

Images and pictures are RGB uint8, (H, W, 3) and (sH + legend, sW, 3): small images are enlarged by an integer factor s
so that text is legible. What does not belong together, in shape or number, raises UserError.
"""

from seg_ext.visualize.draw import (
    class_name,
    draw_ground_truth,
    draw_instances,
    draw_panoptic,
    draw_prediction,
    draw_scene,
    draw_semantic,
    stuff_colors,
)
from seg_ext.visualize.scene import Array, Objects, Scene, scene_from_output, scene_from_record

__all__ = [
    "Array",
    "Objects",
    "Scene",
    "class_name",
    "draw_ground_truth",
    "draw_instances",
    "draw_panoptic",
    "draw_prediction",
    "draw_scene",
    "draw_semantic",
    "scene_from_output",
    "scene_from_record",
    "stuff_colors",
]
