"""Test-time augmentation: views against their mean by hand, equivariant predictors against none, merged instances."""

from typing import Any

import pytest
import torch
from detectron2.structures import Boxes, Instances

from seg_ext.errors import UserError
from seg_ext.inference.tta import ScalesAndFlips, merge_views


def scene() -> torch.Tensor:
    """(3, 40, 48): ids 1 to 3, two of which touch."""
    ids = torch.zeros(40, 48)
    ids[4:20, 6:26] = 1
    ids[4:20, 26:40] = 3
    ids[24:38, 10:44] = 2
    return ids.expand(3, 40, 48)


def test_flips_of_an_equivariant_predictor_change_nothing(pointwise, detector) -> None:
    inputs = {"image": torch.rand(3, 11, 14), "height": 20, "width": 17}
    plain, flipped = pointwise([inputs])[0], ScalesAndFlips(pointwise, [], flip=True)([inputs])[0]
    assert (flipped["sem_seg"].softmax(0) - plain["sem_seg"].softmax(0)).abs().max() < 1e-6
    inputs = {"image": scene(), "file_name": "a.png"}
    plain, flipped = detector([inputs])[0], ScalesAndFlips(detector, [1.0], flip=True)([inputs])[0]
    assert (flipped["sem_seg"].softmax(0) - plain["sem_seg"].softmax(0)).abs().max() < 1e-6
    for key in ("pred_masks", "pred_classes", "scores"):
        assert torch.equal(getattr(flipped["instances"], key), getattr(plain["instances"], key)), key
    assert torch.equal(flipped["instances"].pred_boxes.tensor, plain["instances"].pred_boxes.tensor)


def test_offsets_to_centres_turn_with_the_image() -> None:
    def predict(batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Every pixel points to the image's brightest column; its distance is the heat."""
        results = []
        for x in batch:
            bright = x["image"][0].sum(0).argmax()
            away = bright - torch.arange(x["image"].shape[2]).float().expand(x["image"].shape[1:])
            found = {"center_heat": away.abs()[None], "center_offset": torch.stack([torch.ones_like(away), away])}
            results.append(found | {"uncertainty": {"entropy": away.abs()}})
        return results

    image = torch.zeros(1, 5, 9)
    image[..., 2] = 1
    plain, flipped = predict([{"image": image}])[0], ScalesAndFlips(predict, [], flip=True)([{"image": image}])[0]
    assert torch.equal(flipped["center_offset"], plain["center_offset"])
    assert torch.equal(flipped["center_heat"], plain["center_heat"])
    assert torch.equal(flipped["uncertainty"]["entropy"], plain["uncertainty"]["entropy"])


def test_scores_are_the_log_of_the_mean_probability_of_all_views() -> None:
    sizes: list[tuple[int, int]] = []
    draw = torch.Generator().manual_seed(0)
    given: list[torch.Tensor] = []

    def predict(batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        x = batch[0]
        assert not x["fuse"] and (x["height"], x["width"], x["image_id"]) == (6, 8, 5)
        sizes.append(tuple(x["image"].shape[1:]))
        given.append(5 * torch.randn(4, 6, 8, generator=draw))
        return [{"sem_seg": given[-1].clone()}]

    inputs = {"image": torch.rand(3, 12, 10), "height": 6, "width": 8, "image_id": 5}
    found = ScalesAndFlips(predict, [0.5, 1, 1.75], flip=True)([inputs])[0]["sem_seg"]
    assert sizes == [(6, 5), (6, 5), (12, 10), (12, 10), (21, 18), (21, 18)]
    views = [x.softmax(0) if i % 2 == 0 else x.softmax(0).flip(2) for i, x in enumerate(given)]
    assert torch.allclose(found, torch.stack(views).mean(0).log(), atol=1e-5)


def test_the_second_view_is_the_mirror_image() -> None:
    seen = []

    def predict(batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        seen.append(batch[0]["image"])
        return [{"sem_seg": batch[0]["image"].float()}]

    image = torch.randint(0, 255, (3, 4, 6), dtype=torch.uint8)
    ScalesAndFlips(predict, [], flip=True)([{"image": image}])
    assert torch.equal(seen[0], image) and torch.equal(seen[1], image.flip(2))


def test_an_object_found_at_several_scales_is_one(detector) -> None:
    ids = torch.zeros(3, 80, 96)
    ids[:, 8:40, 12:52] = 1
    found = ScalesAndFlips(detector, [0.5, 1.0, 1.5], flip=True)([{"image": ids}])[0]["instances"]
    assert len(found) == 1 and found.pred_classes.tolist() == [1]
    truth = ids[0] == 1
    assert (found.pred_masks[0] & truth).sum() / (found.pred_masks[0] | truth).sum() > 0.97


def instances(*rows: tuple[tuple[int, int], int, float]) -> Instances:
    """Of (first and last column of a mask 4 rows high in 20 columns), class, score."""
    masks = torch.zeros(len(rows), 4, 20, dtype=torch.bool)
    for mask, ((first, last), _, _) in zip(masks, rows, strict=True):
        mask[:, first:last] = True
    boxes = torch.tensor([[first, 0, last, 4] for (first, last), _, _ in rows], dtype=torch.float32).reshape(-1, 4)
    return Instances(
        (4, 20),
        pred_masks=masks,
        pred_boxes=Boxes(boxes),
        pred_classes=torch.tensor([row[1] for row in rows], dtype=torch.long),
        scores=torch.tensor([row[2] for row in rows]),
    )


def test_a_merged_mask_is_what_half_of_the_weight_of_its_views_says() -> None:
    views = [instances(((0, 10), 0, 0.9)), instances(((1, 11), 0, 0.5)), instances(((2, 11), 0, 0.3))]
    found = merge_views(views)
    assert len(found) == 1 and found.scores.item() == pytest.approx(0.9)
    assert found.pred_masks[0, 0].nonzero().flatten().tolist() == list(range(10))  # 0 and 1: 0.9 of 1.7; 10: 0.8
    assert found.pred_boxes.tensor.tolist() == [[0, 0, 10, 4]]


def test_other_classes_and_boxes_apart_stay_and_the_best_are_kept() -> None:
    views = [instances(((0, 10), 0, 0.9), ((0, 10), 1, 0.2)), instances(((8, 18), 0, 0.7))]
    assert merge_views(views).scores.tolist() == pytest.approx([0.9, 0.7, 0.2])
    assert merge_views(views, most=2).scores.tolist() == pytest.approx([0.9, 0.7])
    assert len(merge_views(views, most=-1)) == 3 and not len(merge_views(views, most=0))
    assert len(merge_views(views, nms=0.1)) == 2
    assert merge_views([instances(), instances()]).pred_masks.shape == (0, 4, 20)


def test_masks_of_many_instances_are_merged_some_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    views = [instances(((0, 10), 0, 0.9), ((12, 20), 0, 0.4)), instances(((1, 11), 0, 0.8))]
    whole = merge_views(views)
    monkeypatch.setattr("seg_ext.inference.tta._CHUNK", 1)
    assert torch.equal(merge_views(views).pred_masks, whole.pred_masks)


def test_boxes_without_masks_and_keypoints() -> None:
    boxes = instances(((0, 10), 0, 0.9))
    boxes.remove("pred_masks")
    assert not merge_views([boxes, boxes]).has("pred_masks") and len(merge_views([boxes, boxes])) == 1
    boxes.pred_keypoints = torch.zeros(1, 2, 3)
    with pytest.raises(UserError, match="FLIP does not serve MODEL.KEYPOINT_ON"):
        ScalesAndFlips(lambda batch: [{"instances": boxes}], [], flip=True)([{"image": torch.zeros(3, 4, 20)}])


@pytest.mark.parametrize(
    ("scales", "nms", "line"),
    [
        ([1.0, 0], 0.5, "TEST.TTA.SCALES has 0: takes factors above 0"),
        (["big"], 0.5, "TEST.TTA.SCALES has 'big'"),
        ([1.0], 1.5, "TEST.TTA.NMS 1.5: takes an IoU"),
    ],
)
def test_values_out_of_range_are_refused(scales: list[Any], nms: float, line: str) -> None:
    with pytest.raises(UserError, match=line):
        ScalesAndFlips(lambda batch: batch, scales, nms=nms)
