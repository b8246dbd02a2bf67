"""Sliding windows: layout and weights, semantic maps and instances in parts against the whole image."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, Instances
from scipy import ndimage

from seg_ext.errors import UserError
from seg_ext.inference.sliding_window import SlidingWindow
from seg_ext.inference.tiled_instances import cut_tile, merge_tiles
from seg_ext.inference.windows import BLENDS, lay_windows
from seg_ext.postprocess import group_pixels


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("overlap", [0, 1 / 3, 0.5, 0.8])
@pytest.mark.parametrize(("length", "size"), [(7, 7), (8, 7), (100, 7), (50, 16), (5, 16), (1, 4)])
def test_windows_cover_a_side_with_their_overlap_and_weights_of_one(
    length: int, size: int, overlap: float, blend: str
) -> None:
    axis = lay_windows(length, size, overlap=overlap, blend=blend)
    total, starts = np.zeros(length), np.array(axis.starts)
    for i in range(len(starts)):
        image, window = axis.inside(i)
        total[image] += axis.weights[i, window].numpy()
    assert np.abs(total - 1).max() < 1e-6
    if length > size:
        assert starts[0] == 0 and starts[-1] + size == length
        step = size - math.ceil(overlap * size - 1e-6)
        assert (np.diff(starts) <= step).all()
        assert (len(starts) - 2) * step < length - size, "one window less would do"


@pytest.mark.parametrize(
    ("length", "size", "overlap", "count"), [(473, 473, 1 / 3, 1), (713, 473, 1 / 3, 2), (1024, 473, 1 / 3, 3)]
)
def test_as_many_crops_as_the_pspnet_protocol_has(length: int, size: int, overlap: float, count: int) -> None:
    """Its code takes ceil((length - crop) / ceil(crop * 2/3)) + 1."""
    assert len(lay_windows(length, size, overlap=overlap, blend="uniform").starts) == count


@pytest.mark.parametrize(("height", "width", "crop", "step"), [(20, 37, 12, 8), (12, 30, 12, 5), (40, 29, 12, 12)])
def test_scores_in_windows_at_full_steps_are_mmsegmentations(height: int, width: int, crop: int, step: int) -> None:
    """Its slide_inference, by its definition: sums and counts of scores, each window pushed back into the image."""
    generator = torch.Generator().manual_seed(0)
    kernel = torch.randn(4, 3, 5, 5, generator=generator)

    def model(batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"sem_seg": 3 * F.conv2d(x["image"][None], kernel, padding=2)[0]} for x in batch]

    image = torch.randn(3, height, width, generator=generator)
    sums, counts = torch.zeros(4, height, width), torch.zeros(1, height, width)
    for row in range(max(height - crop + step - 1, 0) // step + 1):
        for column in range(max(width - crop + step - 1, 0) // step + 1):
            bottom, right = min(row * step + crop, height), min(column * step + crop, width)
            place = slice(max(bottom - crop, 0), bottom), slice(max(right - crop, 0), right)
            sums[(slice(None), *place)] += model([{"image": image[(slice(None), *place)]}])[0]["sem_seg"]
            counts[(slice(None), *place)] += 1
    found = SlidingWindow(model, [crop, crop], overlap=1 - step / crop, blend="scores")([{"image": image}])[0][
        "sem_seg"
    ]
    torch.testing.assert_close(found.softmax(0), (sums / counts).softmax(0))
    assert torch.equal(found.argmax(0), (sums / counts).argmax(0))


def image_of(kind: str, height: int, width: int) -> torch.Tensor:
    if kind == "constant":
        return torch.full((3, height, width), 37.0)
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([rows, columns, rows + columns]).float()


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("kind", ["constant", "ramp"])
@pytest.mark.parametrize(("height", "width"), [(61, 53), (24, 32), (20, 70), (3, 5)])
def test_a_model_of_single_pixels_gives_the_whole_image_s_probabilities(
    pointwise, kind: str, height: int, width: int, blend: str
) -> None:
    inputs = {"image": image_of(kind, height, width), "height": height, "width": width}
    whole = pointwise([inputs])[0]["sem_seg"].softmax(0)
    tiled = SlidingWindow(pointwise, [24, 32], blend=blend, batch=2)([inputs])[0]["sem_seg"]
    assert tiled.shape == whole.shape and tiled.dtype == torch.float32
    assert (tiled.softmax(0) - whole).abs().max() < 1e-6
    assert (tiled.exp().sum(0) - 1).abs().max() < 1e-5  # they are logs of probabilities


def test_tapers_leave_a_smaller_seam_than_uniform_weights() -> None:
    def biased(batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Surer of class 1 the further right in a window."""
        ramps = [torch.linspace(-1, 1, x["image"].shape[2]).expand(x["image"].shape[1:]) for x in batch]
        return [{"sem_seg": torch.stack([torch.zeros_like(ramp), ramp])} for ramp in ramps]

    inputs = {"image": torch.zeros(3, 16, 64)}
    seams = {}
    for blend in ("uniform", "hann"):
        found = SlidingWindow(biased, [16, 24], blend=blend)([inputs])[0]["sem_seg"].softmax(0)[1, 0]
        seams[blend] = found.diff().abs().max()
    assert seams["hann"] < 0.5 * seams["uniform"], seams


def test_the_borders_of_an_image_smaller_than_a_window_are_mirrored() -> None:
    seen = []

    def predict(batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        seen.extend(x["image"] for x in batch)
        return [{"sem_seg": x["image"].float()} for x in batch]

    image = torch.randint(0, 255, (3, 5, 7), dtype=torch.uint8)
    SlidingWindow(predict, [16, 8])([{"image": image}])
    wanted = np.pad(image.numpy(), ((0, 0), (6, 5), (1, 0)), mode="symmetric")
    assert len(seen) == 1 and np.array_equal(seen[0].numpy(), wanted)


def test_the_prediction_has_the_size_that_is_asked_for(pointwise) -> None:
    inputs = {"image": image_of("ramp", 40, 30), "height": 80, "width": 45}
    tiled = SlidingWindow(pointwise, [16, 16])([inputs])[0]["sem_seg"]
    assert tiled.shape == (3, 80, 45)
    whole = pointwise([inputs])[0]["sem_seg"].softmax(0)
    assert (tiled.softmax(0) - whole).abs().max() < 0.01  # probabilities are resized, not scores


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"size": [8]}, r"TEST.SLIDING_WINDOW.SIZE \[8\]: takes \[height, width\]"),
        ({"size": [8, 0]}, "SIZE"),
        ({"size": [8.5, 8]}, "SIZE"),
        ({"overlap": 1.0}, "OVERLAP 1.0: takes a share"),
        ({"overlap": float("nan")}, "OVERLAP nan"),
        ({"blend": "gauss"}, "BLEND 'gauss': takes hann, uniform, scores"),
        ({"batch": 0}, "BATCH 0: takes"),
    ],
)
def test_values_out_of_range_are_refused(arguments: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line):
        SlidingWindow(lambda batch: batch, **({"size": [8, 8]} | arguments))


def scene() -> torch.Tensor:
    """(3, 64, 64): ids 1 to 5; the first lies over four windows of 40, two touch, one is at the border."""
    ids = torch.zeros(64, 64)
    ids[14:50, 10:52] = 1
    ids[2:12, 2:20] = 2  # of class 0, as is 4, which touches it
    ids[2:12, 20:36] = 4
    ids[52:64, 30:64] = 5
    ids[3:6, 60:63] = 3
    return ids.expand(3, 64, 64)


@pytest.mark.parametrize(("side", "overlap", "batch"), [(40, 1 / 3, 1), (24, 0.5, 3), (30, 0.75, 4)])
def test_an_object_over_several_windows_is_one_instance(detector, side: int, overlap: float, batch: int) -> None:
    inputs = {"image": scene()}
    whole = detector([inputs])[0]["instances"]
    found = SlidingWindow(detector, [side, side], overlap=overlap, batch=batch)([inputs])[0]["instances"]
    assert found.image_size == (64, 64) and torch.equal(found.pred_masks, whole.pred_masks)
    assert torch.equal(found.pred_boxes.tensor, whole.pred_boxes.tensor)
    assert torch.equal(found.pred_classes, whole.pred_classes)
    assert torch.allclose(found.scores, whole.scores)


def test_keypoints_lie_where_their_object_does(detector) -> None:
    def predict(batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        outputs = detector(batch)
        for found in (output["instances"] for output in outputs):
            centres = found.pred_boxes.get_centers()
            found.pred_keypoints = torch.cat([centres, torch.full((len(found), 1), 0.5)], 1)[:, None]
        return outputs

    ids = torch.zeros(3, 64, 64)
    ids[:, 30:44, 40:50] = 1
    found = SlidingWindow(predict, [40, 40])([{"image": ids, "height": 128, "width": 192}])[0]["instances"]
    assert found.pred_keypoints.tolist() == [[[3 * 45, 2 * 37, 0.5]]]


def test_instances_of_a_mirrored_border_are_dropped(detector) -> None:
    ids = torch.zeros(3, 20, 30)
    ids[:, 4:9, 3:12] = 1

    def parts(batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """What is connected is an object, its mirror image another."""
        pieces = [torch.from_numpy(ndimage.label(x["image"][0].numpy())[0]).expand(3, -1, -1) for x in batch]
        assert all(piece.max() > 1 for piece in pieces)
        return detector([x | {"image": piece} for x, piece in zip(batch, pieces, strict=True)])

    found = SlidingWindow(parts, [48, 48])([{"image": ids, "height": 40, "width": 60}])[0]["instances"]
    assert len(found) == 1 and found.pred_boxes.tensor.tolist() == [[6, 8, 24, 18]]
    assert int(found.pred_masks.sum()) == 4 * 45 and found.pred_masks[0, 8:18, 6:24].all()


def tiles_of(*parts: tuple[torch.Tensor, list[int], list[float]]) -> list[Any]:
    """Tiles of 10 columns over 16, 4 rows high, from (n, 4, 10) masks, classes and scores of each."""
    rows, columns = (lay_windows(n, m, overlap=0.4, blend="uniform") for n, m in ((4, 4), (16, 10)))
    assert columns.starts == (0, 6)
    tiles = []
    for index, (masks, classes, scores) in enumerate(parts):
        found = Instances((4, 10), pred_masks=masks, pred_classes=torch.tensor(classes), scores=torch.tensor(scores))
        extent = [[m.any(0).nonzero().min(), m.any(1).nonzero().min(), m.any(0).nonzero().max() + 1,
                   m.any(1).nonzero().max() + 1] for m in masks]  # fmt: skip
        found.pred_boxes = Boxes(torch.tensor(extent, dtype=torch.float32).reshape(-1, 4))
        tiles.append(cut_tile(found, rows, columns, (0, index)))
    return tiles


def bar(first: int, last: int, height: int = 4) -> torch.Tensor:
    """(4, 10) mask of the columns from first to before last."""
    mask = torch.zeros(4, 10, dtype=torch.bool)
    mask[:height, first:last] = True
    return mask


@pytest.mark.parametrize("boxes_alone", [False, True])
def test_pairs_are_one_object_where_they_agree_or_one_is_cut_and_covered(boxes_alone: bool) -> None:
    def count(a: torch.Tensor, b: torch.Tensor, classes: tuple[int, int] = (0, 0)) -> int:
        tiles = tiles_of((a[None], [classes[0]], [0.9]), (b[None], [classes[1]], [0.6]))
        tiles = [t._replace(masks=None) for t in tiles] if boxes_alone else tiles
        found = merge_tiles(tiles, (4, 16))
        assert found.has("pred_masks") != boxes_alone
        return len(found)

    assert count(bar(4, 10), bar(0, 5)) == 1  # columns 4 to 10 and 6 to 11: the same in the overlap of 6 to 10
    assert count(bar(4, 10), bar(0, 5), classes=(0, 1)) == 2
    assert count(bar(4, 8), bar(3, 8)) == 2  # 6 to 7 and 9 to 10 of the overlap
    assert count(bar(1, 4), bar(5, 9)) == 2  # nothing in the overlap
    assert count(bar(1, 8), bar(0, 4, height=2)) == 1  # a fragment at the second tile's edge, half of it covered
    assert count(bar(1, 9), bar(2, 10)) == 2  # 6 to 9 and 8 to 16: one column of the overlap's four


def test_an_object_has_the_union_of_its_masks_and_their_mean_score_by_area() -> None:
    found = merge_tiles(tiles_of((bar(4, 10)[None], [3], [0.9]), (bar(0, 7)[None], [3], [0.6])), (4, 16))
    assert len(found) == 1 and found.pred_classes.tolist() == [3]
    assert found.pred_masks[0, :, 4:13].all() and int(found.pred_masks.sum()) == 36
    assert found.pred_boxes.tensor.tolist() == [[4, 0, 13, 4]]
    assert found.scores.item() == pytest.approx((0.9 * 24 + 0.6 * 28) / 52)


def test_tiles_without_instances_give_none() -> None:
    nothing = (torch.zeros(0, 4, 10, dtype=torch.bool), [], [])
    found = merge_tiles(tiles_of(nothing, nothing), (4, 16))
    assert len(found) == 0 and found.pred_masks.shape == (0, 4, 16)


@pytest.mark.parametrize("scale", [1, 2])
def test_centres_and_offsets_blend_before_pixels_are_grouped(scale: int) -> None:
    """An object that lies in all windows, its centre seen by some alone, is one segment."""
    ids = scene()[0].long()
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    heat, offset = torch.zeros(1, 64, 64), torch.zeros(2, 64, 64)
    for i in range(1, 6):
        inside = ids == i
        centre = rows[inside].mean().round(), columns[inside].mean().round()
        heat[0, int(centre[0]), int(centre[1])] = 1
        offset[:, inside] = torch.stack([centre[0] - rows[inside], centre[1] - columns[inside]])

    def predict(batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"center_heat": x["image"][:1], "center_offset": x["image"][1:]} for x in batch]

    inputs = {"image": torch.cat([heat, offset]), "height": 64 * scale, "width": 64 * scale}
    found = SlidingWindow(predict, [30, 30])([inputs])[0]
    labels = (ids > 0).long().repeat_interleave(scale, 0).repeat_interleave(scale, 1)
    if scale == 1:
        assert torch.allclose(found["center_heat"], heat, atol=1e-6)
        assert torch.allclose(found["center_offset"], offset, atol=1e-5)
    segments, info = group_pixels(labels, found["center_heat"][0], found["center_offset"], thing_ids=[1])
    assert len([s for s in info if s["isthing"]]) == 5
    inner = labels.bool()
    if scale == 2:  # offsets across the borders of objects are blurred by the resizing
        inner = -torch.nn.functional.max_pool2d(-labels[None].float(), 5, 1, 2)[0] > 0
    large = ids.repeat_interleave(scale, 0).repeat_interleave(scale, 1)
    for i in range(1, 6):
        assert len(segments[(large == i) & inner].unique()) <= 1
