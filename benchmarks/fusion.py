"""Panoptic fusion of seg_ext and of detectron2 on the same outputs: equal results first, then the clock, taking turns.

python benchmarks/fusion.py [--side 1024] [--rounds 9] [--threads 1]

The scenes are generated: ellipses of 12 to 135 pixels' radius with random scores and classes over blocks of semantic
classes, which overlap more than detections after non-maximum suppression do.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from detectron2.modeling.meta_arch.panoptic_fpn import combine_semantic_and_instance_outputs
from detectron2.structures import Instances
from torch import Tensor

from seg_ext.postprocess import fuse_panoptic

THRESHOLDS = {"overlap_threshold": 0.5, "stuff_area": 4096, "score_threshold": 0.5}
BLOCK = 64  # pixels of one semantic class
Fused = tuple[Tensor, list[dict[str, Any]]]


def scene(count: int, side: int, seed: int) -> tuple[Tensor, Instances]:
    """A label map (side, side), class 0 being things, and ``count`` instances."""
    draw = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, 54, (-(-side // BLOCK),) * 2, generator=draw)
    labels = blocks.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)[:side, :side].contiguous()
    rows, columns = torch.arange(side)[:, None], torch.arange(side)
    masks = torch.zeros(count, side, side, dtype=torch.bool)
    for mask in masks:
        centre, radius = torch.rand(2, generator=draw) * side, 12 + torch.rand(2, generator=draw) * 0.12 * side
        mask |= ((rows - centre[0]) / radius[0]) ** 2 + ((columns - centre[1]) / radius[1]) ** 2 < 1
    scores = 0.4 + 0.6 * torch.rand(count, generator=draw)
    classes = torch.randint(0, 80, (count,), generator=draw)
    return labels, Instances((side, side), scores=scores, pred_classes=classes, pred_masks=masks)


def ours(labels: Tensor, instances: Instances) -> Fused:
    """seg_ext's."""
    scores, classes = instances.scores, instances.pred_classes
    return fuse_panoptic(labels, instances.pred_masks, scores=scores, classes=classes, thing_ids=(0,), **THRESHOLDS)


def theirs(labels: Tensor, instances: Instances) -> Fused:
    """detectron2's."""
    return combine_semantic_and_instance_outputs(instances, labels, *THRESHOLDS.values())


def seconds(function: Callable[[Tensor, Instances], Fused], scenes: list[tuple[Tensor, Instances]]) -> float:
    """An image."""
    start = time.perf_counter()
    for labels, instances in scenes:
        function(labels, instances)
    return (time.perf_counter() - start) / len(scenes)


def spread(values: list[float]) -> str:
    """Median and range."""
    return f"{np.median(values):7.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    """Compare, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for count in (0, 20, 100):
        scenes = [scene(count, args.side, seed) for seed in range(2)]
        for labels, instances in scenes:
            (mine, info), (other, other_info) = ours(labels, instances), theirs(labels, instances)
            if not torch.equal(mine, other) or info != other_info:
                raise SystemExit(f"{count} instances: the results differ")
        times = [(seconds(ours, scenes), seconds(theirs, scenes)) for _ in range(args.rounds)]
        print(
            f"{count:3} instances  seg_ext {spread([1e3 * a for a, _ in times])} ms"
            f"  detectron2 {spread([1e3 * b for _, b in times])} ms  ratio {spread([b / a for a, b in times])}"
        )


if __name__ == "__main__":
    main()
