"""Objects of one training image pasted into another: Simple Copy-Paste (Ghiasi et al., 2021)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from detectron2.structures import BitMasks, Boxes, Instances
from numpy.typing import NDArray

from seg_ext.data.instances import tight_boxes

Array = NDArray[Any]


@dataclass(frozen=True)
class Sample:
    """An augmented record: image (h, w, C), and as far as they are there label map (h, w), instances and targets."""

    image: Array
    label: Array | None = None
    instances: Instances | None = None
    targets: dict[str, Array] = field(default_factory=dict)  # (h, w) each


@dataclass(frozen=True)
class CopyPaste:
    """Paste some of another sample's objects at their places over a sample (section 3).

    Both are augmented by the same list, such as large-scale jitter and flips. The pasted pixels take the other's
    image, labels and targets along. What they cover is cut out of the masks below, and of the boxes; an instance with
    too little left is dropped. Samples of unequal sizes share their upper left corner.

    Args:
        probability: of pasting at all.
        max_objects: as many at most; how many and which is drawn uniformly.
        min_visible: share of its pixels that an instance keeps, or is dropped.
        ignore: label of pasted pixels when the other has no label map.
    """

    probability: float = 0.5
    max_objects: int = 20
    min_visible: float = 0.1
    ignore: int = 255

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1 or not 0 <= self.min_visible <= 1 or self.max_objects < 1:
            raise ValueError(
                f"probability {self.probability}, min_visible {self.min_visible}, max_objects {self.max_objects}:"
                " they are in [0, 1], in [0, 1] and >= 1"
            )

    def __call__(self, sample: Sample, draw: Callable[[], Sample]) -> Sample:
        """The sample with objects of the one that ``draw`` gives, by numpy's global generator."""
        if np.random.uniform() >= self.probability or sample.instances is None:
            return sample
        other = draw()
        if other.instances is None or not len(other.instances):
            return sample
        count = np.random.randint(1, min(len(other.instances), self.max_objects) + 1)
        chosen = np.random.permutation(len(other.instances))[:count]
        return self._pasted(sample, other, chosen)

    def _pasted(self, sample: Sample, other: Sample, chosen: Array) -> Sample:
        size = sample.image.shape[:2]
        height, width = np.minimum(size, other.image.shape[:2])
        masks = np.zeros((len(chosen), *size), bool)
        masks[:, :height, :width] = _masks(other.instances)[chosen, :height, :width]
        cover: Any = masks.any(axis=0)

        def over(below: Array, above: Array | float) -> Array:
            out = below.astype(np.result_type(below, above) if isinstance(above, np.ndarray) else below.dtype)
            out[cover] = above[:height, :width][cover[:height, :width]] if isinstance(above, np.ndarray) else above
            return out

        label = sample.label
        return replace(
            sample,
            image=over(sample.image, other.image),
            label=None if label is None else over(label, self.ignore if other.label is None else other.label),
            instances=self._joined(sample.instances, other.instances, chosen, masks, cover),
            targets={key: over(target, other.targets.get(key, 0.0)) for key, target in sample.targets.items()},
        )

    def _joined(self, below: Instances, above: Instances, chosen: Array, pasted: Array, cover: Array) -> Instances:
        whole = _masks(below)
        cut = whole & ~cover
        before, after = whole.sum(axis=(1, 2)), cut.sum(axis=(1, 2))
        kept = (after > 0) & (after >= self.min_visible * before)
        seen = pasted.any(axis=(1, 2))
        masks = np.concatenate([cut[kept], pasted[seen]])
        joined = Instances(cover.shape)
        joined.gt_classes = torch.cat(
            [below.gt_classes[torch.from_numpy(kept)], above.gt_classes[torch.from_numpy(chosen[seen])]]
        )
        joined.gt_masks = BitMasks(torch.from_numpy(masks))
        joined.gt_boxes = Boxes(tight_boxes(masks))
        return joined


def _masks(instances: Any) -> Array:
    return instances.gt_masks.tensor.numpy()
