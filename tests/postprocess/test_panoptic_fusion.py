"""Panoptic fusion against detectron2's, and its rules one by one."""

import pytest
import torch
from detectron2.modeling.meta_arch.panoptic_fpn import combine_semantic_and_instance_outputs
from detectron2.structures import Instances

from seg_ext.postprocess import fuse_panoptic


def blobs(count: int, size: int, generator: torch.Generator) -> torch.Tensor:
    """Random overlapping rectangles."""
    masks = torch.zeros(count, size, size, dtype=torch.bool)
    corners = torch.randint(0, size, (count, 4), generator=generator)
    for mask, (y0, y1, x0, x1) in zip(masks, corners.tolist(), strict=True):
        mask[min(y0, y1) : max(y0, y1), min(x0, x1) : max(x0, x1)] = True
    return masks


@pytest.mark.parametrize("seed", range(40))
def test_equals_detectron2_when_class_0_is_things(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    count, size = int(torch.randint(0, 12, (1,), generator=generator)), 40
    masks = blobs(count, size, generator)
    scores = torch.rand(count, generator=generator)
    classes = torch.randint(0, 5, (count,), generator=generator)
    labels = torch.randint(0, 4, (size // 8, size // 8), generator=generator).repeat_interleave(8, 0)
    labels = labels.repeat_interleave(8, 1)
    overlap = [0.0, 0.3, 0.5, 1.0][seed % 4]
    instances = Instances((size, size), scores=scores, pred_classes=classes, pred_masks=masks)
    want_map, want_info = combine_semantic_and_instance_outputs(instances, labels, overlap, 100, 0.3)
    got_map, got_info = fuse_panoptic(
        labels, masks, scores=scores, classes=classes, thing_ids=(0,),
        overlap_threshold=overlap, stuff_area=100, score_threshold=0.3,
    )  # fmt: skip
    assert torch.equal(got_map, want_map) and got_map.dtype == torch.int32
    assert got_info == want_info


def fuse(labels, masks, scores, **kwargs):
    classes = torch.zeros(len(masks), dtype=torch.long)
    return fuse_panoptic(labels, masks, scores=torch.tensor(scores), classes=classes, **kwargs)


def test_no_instances_leaves_the_stuff_map() -> None:
    labels = torch.tensor([[1, 1, 2], [1, 1, 2]])
    ids, info = fuse(labels, torch.zeros(0, 2, 3, dtype=torch.bool), [], thing_ids=(), stuff_area=0)
    assert ids.tolist() == [[1, 1, 2], [1, 1, 2]]
    assert [segment["category_id"] for segment in info] == [1, 2]


def test_thing_ids_are_never_stuff_wherever_they_stand() -> None:
    labels = torch.tensor([[0, 0, 1, 1]])
    ids, info = fuse(labels, torch.zeros(0, 1, 4, dtype=torch.bool), [], thing_ids=(1,), stuff_area=1)
    assert ids.tolist() == [[1, 1, 0, 0]] and info == [{"id": 1, "isthing": False, "category_id": 0, "area": 2}]


def test_better_score_keeps_the_shared_pixels() -> None:
    masks = torch.tensor([[[1, 1, 1, 1, 0, 0]], [[0, 0, 0, 1, 1, 1]]], dtype=torch.bool)
    ids, info = fuse(torch.zeros(1, 6, dtype=torch.long), masks, [0.6, 0.9], thing_ids=(0,))
    assert ids.tolist() == [[2, 2, 2, 1, 1, 1]]
    assert [segment["instance_id"] for segment in info] == [1, 0]


def test_a_dropped_instance_does_not_shadow_a_later_one() -> None:
    # B is dropped for its overlap with A, so C, which only B covers, keeps all of its pixels.
    a, b, c = [1, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0, 0, 0, 1, 1]
    masks = torch.tensor([[a], [b], [c]], dtype=torch.bool)
    ids, _ = fuse(torch.zeros(1, 5, dtype=torch.long), masks, [0.9, 0.8, 0.7], thing_ids=(0,), overlap_threshold=0.4)
    assert ids.tolist() == [[1, 1, 1, 2, 2]]
