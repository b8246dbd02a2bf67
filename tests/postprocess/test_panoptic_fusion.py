"""Panoptic fusion against detectron2's, and its rules one by one."""

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.modeling.meta_arch.panoptic_fpn import combine_semantic_and_instance_outputs
from detectron2.structures import Instances

import seg_ext.modeling  # noqa: F401  registers models
from seg_ext.config import load_config
from seg_ext.metrics import panoptic_quality, pq_scores
from seg_ext.postprocess import fuse_panoptic


def blobs(count: int, size: int, generator: torch.Generator) -> torch.Tensor:
    """Random overlapping rectangles."""
    masks = torch.zeros(count, size, size, dtype=torch.bool)
    corners = torch.randint(0, size, (count, 4), generator=generator)
    for mask, (y0, y1, x0, x1) in zip(masks, corners.tolist(), strict=True):
        mask[min(y0, y1) : max(y0, y1), min(x0, x1) : max(x0, x1)] = True
    return masks


@pytest.mark.parametrize("seeds", [range(50 * i, 50 * i + 50) for i in range(4)], ids=lambda seeds: str(seeds[0]))
def test_equals_detectron2_when_class_0_is_things(seeds: range) -> None:
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        count, size = int(torch.randint(0, 12, (1,), generator=generator)), 40
        masks = blobs(count, size, generator)
        scores = torch.rand(count, generator=generator)
        classes = torch.randint(0, 5, (count,), generator=generator)
        labels = torch.randint(0, 4, (size // 8, size // 8), generator=generator).repeat_interleave(8, 0)
        labels = labels.repeat_interleave(8, 1)
        overlap, least = [0.0, 0.3, 0.5, 1.0][seed % 4], [0.0, 0.3, 0.7][seed % 3]
        if count and seed % 5 == 0:
            scores[0] = least  # exactly at the threshold, as far as single precision goes
        instances = Instances((size, size), scores=scores, pred_classes=classes, pred_masks=masks)
        want_map, want_info = combine_semantic_and_instance_outputs(instances, labels, overlap, 100, least)
        got_map, got_info = fuse_panoptic(
            labels, masks, scores=scores, classes=classes, thing_ids=(0,),
            overlap_threshold=overlap, stuff_area=100, score_threshold=least,
        )  # fmt: skip
        assert torch.equal(got_map, want_map) and got_map.dtype == torch.int32, seed
        assert got_info == want_info, seed


@torch.no_grad()
def test_equals_detectron2_on_a_models_outputs() -> None:
    torch.manual_seed(0)
    combine = "MODEL.PANOPTIC_FPN.COMBINE"
    cfg = load_config("coco/panoptic_fpn_R_50_1x.yaml", [
        *("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.RESNETS.NORM", "GN"),
        *("MODEL.FPN.OUT_CHANNELS", 32, "MODEL.ROI_BOX_HEAD.FC_DIM", 32, "MODEL.ROI_MASK_HEAD.CONV_DIM", 32),
        *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "MODEL.ROI_HEADS.NUM_CLASSES", 8, "MODEL.DEVICE", "cpu"),
        *("MODEL.SEM_SEG_HEAD.THING_IDS", [0], "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 6, f"{combine}.STUFF_AREA_LIMIT", 64),
        *(f"{combine}.INSTANCES_CONFIDENCE_THRESH", 0.0),
    ])  # fmt: skip
    model = build_model(cfg).eval()
    for layer in (model.roi_heads.box_predictor.cls_score, model.sem_seg_head.decoder.score):
        layer.weight.normal_(std=0.1)
    (output,) = model([{"image": torch.rand(3, 70, 100) * 255, "height": 90, "width": 130}])
    instances, labels = output["instances"], output["sem_seg"].argmax(0)
    want_map, want_info = combine_semantic_and_instance_outputs(instances, labels, 0.5, 64, 0.0)
    got_map, got_info = output["panoptic_seg"]
    assert torch.equal(got_map, want_map) and got_info == want_info
    things = [segment["isthing"] for segment in got_info]
    assert len(instances.scores.unique()) == len(instances) > things.count(True) > 3 and things.count(False)


@pytest.mark.parametrize(("covered", "kept"), [(3, True), (4, False)])
def test_an_overlap_of_exactly_the_threshold_stays(covered: int, kept: bool) -> None:
    masks = torch.zeros(2, 1, 20, dtype=torch.bool)
    masks[0, 0, :covered] = masks[1, 0, :10] = True
    labels = torch.zeros(1, 20, dtype=torch.long)
    ids, info = fuse(labels, masks, [0.9, 0.8], thing_ids=(0,), overlap_threshold=0.3)
    assert (len(info) == 2) == kept and int((ids == 2).sum()) == (10 - covered) * kept


@pytest.mark.parametrize("seed", range(5))
def test_ground_truth_passes_through_unharmed(seed: int) -> None:
    """Instances that do not overlap, and things in the label map wherever they stand, give a PQ of 100."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 9, (6, 6), generator=draw)
    ids = coarse.repeat_interleave(10, 0).repeat_interleave(10, 1)  # 0 to 4 are instances, 5 to 8 are stuff
    semantic = torch.tensor([4, 1, 1, 4, 4, 0, 2, 3, 5])[ids]  # classes 1 and 4 are things
    things = [i for i in range(5) if (ids == i).any()]
    masks = torch.stack([ids == i for i in things])
    classes = torch.tensor([{4: 1, 1: 0}[[4, 1, 1, 4, 4][i]] for i in things])
    got, info = fuse_panoptic(
        semantic, masks, scores=torch.ones(len(things)), classes=classes, thing_ids=(1, 4), stuff_area=1
    )
    stuff = {0: 2, 2: 3, 3: 4, 5: 5}  # semantic class -> class of the metric, after the two of things
    of = {s["id"]: s["category_id"] if s["isthing"] else stuff[s["category_id"]] for s in info}
    truth = {i + 1: int(classes[things.index(i)]) if i in things else stuff[int(semantic[ids == i][0])]
             for i in ids.unique().tolist()}  # fmt: skip
    stat = panoptic_quality(
        got.numpy(), ids.numpy() + 1, pred_classes=of, target_classes=truth, num_classes=6, crowd=frozenset()
    )
    scores = pq_scores(stat, np.arange(6) < 2)
    assert scores.all == (1.0, 1.0, 1.0) and not np.isnan(scores.pq[sorted(set(truth.values()))]).any()


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


def test_views_and_bytes_are_masks_too() -> None:
    masks = torch.zeros(3, 5, 7, dtype=torch.uint8)
    masks[1, 1:4, 2:5] = 1
    ids, info = fuse(torch.zeros(7, 5, dtype=torch.long), masks[1:].transpose(1, 2), [0.9, 0.8], thing_ids=(0,))
    assert len(info) == 1 and torch.equal(ids > 0, masks[1].T.bool())
