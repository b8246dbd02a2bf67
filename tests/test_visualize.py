"""Pictures: what is tinted how, what is written where, and shapes that nobody plans for."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detectron2.data.catalog import Metadata
from detectron2.structures import Boxes, BoxMode, Instances
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as mask_util

from seg_ext.data.label_io import write_label
from seg_ext.errors import UserError
from seg_ext.visualize import (
    draw_ground_truth,
    draw_instances,
    draw_panoptic,
    draw_prediction,
    draw_semantic,
    scene_from_output,
    scene_from_record,
)

COLORS = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
NAMES = ["ground", "tree", "pole"]


def grey(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 100, np.uint8)


def thirds(height: int, width: int) -> np.ndarray:
    """Class 0, 1 and ignored, side by side."""
    labels = np.zeros((height, width), np.uint8)
    labels[:, width // 3 :] = 1
    labels[:, 2 * width // 3 :] = 255
    return labels


def metadata(**fields: Any) -> Metadata:
    return Metadata(name="toy", **fields)


def test_classes_are_tinted_bordered_and_the_ignored_left_alone() -> None:
    picture = draw_semantic(grey(400, 600), thirds(400, 600), COLORS, alpha=0.5)
    assert picture.shape == (400, 600, 3) and picture.dtype == np.uint8
    assert picture[200, 100].tolist() == [150, 50, 50]
    assert picture[200, 300].tolist() == [50, 150, 50]
    assert picture[200, 500].tolist() == [100, 100, 100]
    assert picture[200, 199].tolist() == [200, 0, 0]
    assert picture[200, 200].tolist() == [0, 200, 0]


def test_the_input_image_is_not_changed_and_may_be_a_view() -> None:
    image = np.random.default_rng(0).integers(0, 256, (330, 340, 3), dtype=np.uint8)
    before = image.copy()
    labels = np.full((330, 340), 255)
    assert (draw_semantic(image[..., ::-1], labels, COLORS) == image[..., ::-1]).all()
    draw_semantic(image, labels * 0, COLORS, names=NAMES)
    assert (image == before).all()


@pytest.mark.parametrize(
    ("size", "drawn"),
    [((64, 64), (320, 320)), ((128, 512), (384, 1536)), ((400, 500), (400, 500)), ((2100, 10), (2100, 10))],
)
def test_small_images_are_enlarged_by_an_integer_and_large_ones_kept(
    size: tuple[int, int], drawn: tuple[int, int]
) -> None:
    assert draw_semantic(grey(*size), np.full(size, 255), COLORS).shape[:2] == drawn


def test_names_stand_in_their_regions_and_only_those_without_room_in_the_legend() -> None:
    labels = thirds(400, 600)
    plain = draw_semantic(grey(400, 600), labels, COLORS)
    named = draw_semantic(grey(400, 600), labels, COLORS, names=NAMES)
    assert named.shape == plain.shape
    for columns in (np.s_[:200], np.s_[200:400]):
        changed = (named != plain)[:, columns].any(2)
        assert 100 < changed.sum() < 0.1 * changed.size
    assert (named == plain)[:, 400:].all()
    labels[:, 300:302] = 2
    narrow = draw_semantic(grey(400, 600), labels, COLORS, names=NAMES)
    strip = narrow[400:]
    assert len(strip) and (strip == COLORS[2]).all(2).sum() >= 100
    assert not (strip == COLORS[0]).all(2).any() and not (strip == COLORS[1]).all(2).any()
    assert (draw_semantic(grey(400, 600), labels, COLORS, names=NAMES, legend=False) == narrow[:400]).all()


@pytest.mark.parametrize(
    ("names", "columns"),
    [
        (["", "a name far too long for its stripe", ""], [(180, 210)]),
        (["", "mmm", "mmm"], [(170, 200), (200, 230)]),
    ],
)
def test_a_name_wider_than_its_region_or_upon_another_goes_to_the_legend(
    names: list[str], columns: list[tuple[int, int]]
) -> None:
    labels = np.zeros((400, 400), int)
    for label, (start, end) in enumerate(columns, start=1):
        labels[:, start:end] = label
    picture = draw_semantic(grey(400, 400), labels, COLORS, names=names)
    swatches = [(picture[400:] == color).all(2).sum() >= 100 for color in COLORS[1 : 1 + len(columns)]]
    assert sum(swatches) == 1, "one name in the legend"


@pytest.mark.parametrize("size", [(1, 1), (3, 2000), (2000, 3), (1, 1700), (17, 31)])
@pytest.mark.parametrize("names", [NAMES, ["a class with a very long name indeed" * 4] * 3, ["", "Straße", "道"]])
def test_pictures_of_any_shape_can_be_drawn(size: tuple[int, int], names: list[str]) -> None:
    labels = np.arange(size[0] * size[1]).reshape(size) % 3
    picture = draw_semantic(grey(*size), labels, COLORS, names=names)
    assert picture.shape[0] >= size[0] and picture.shape[1] >= size[1]
    masks = labels == np.arange(3)[:, None, None]
    boxes = [[0, 0, size[1], size[0]]] * 3
    drawn = draw_instances(grey(*size), masks, boxes=boxes, scores=[1, 0.5, 0], classes=[0, 1, 2], names=names)
    assert drawn.shape[0] >= size[0]


def test_many_classes_get_a_legend_of_as_many_swatches() -> None:
    colors = [(i, 255 - i, (7 * i) % 251) for i in range(150)]
    labels = np.arange(320 * 320).reshape(320, 320) % 150
    picture = draw_semantic(grey(320, 320), labels, colors, names=[f"class {i}" for i in range(150)])
    swatches = {tuple(pixel) for pixel in picture[320:].reshape(-1, 3).tolist()}
    assert swatches >= set(colors)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((grey(9, 9), np.full((9, 9), 3), COLORS), "labels 3..3: takes 0..2, or 255"),
        ((grey(9, 9), np.full((9, 9), -1), COLORS), "labels -1..-1"),
        ((grey(9, 9), np.zeros((9, 8), int), COLORS), r"\(9, 9\) pixels and a map of \(9, 8\)"),
        ((grey(9, 9).astype(float), np.zeros((9, 9), int), COLORS), "image is float64"),
        ((grey(9, 9)[..., 0], np.zeros((9, 9), int), COLORS), "image is uint8"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: tuple[Any, ...], text: str) -> None:
    with pytest.raises(UserError, match=text):
        draw_semantic(*arguments)


def test_names_and_colours_must_be_as_many() -> None:
    with pytest.raises(UserError, match="2 class names for 3 colours"):
        draw_semantic(grey(9, 9), np.zeros((9, 9), int), COLORS, names=NAMES[:2])
    with pytest.raises(UserError, match="1 scores for 2 masks"):
        draw_instances(grey(9, 9), np.ones((2, 9, 9), bool), scores=[0.5])


def test_smaller_instances_lie_in_front_whatever_their_order() -> None:
    masks = np.zeros((2, 400, 400), bool)
    masks[0, 180:220, 180:220] = True
    masks[1, 100:300, 100:300] = True
    for order in ([0, 1], [1, 0]):
        colors = np.array([(250, 0, 0), (0, 250, 0)])[order]
        picture = draw_instances(grey(400, 400), masks[order], colors=colors)
        assert picture[200, 200, 0] > 160 > picture[200, 200, 1]
        assert picture[120, 120, 1] > 160 > picture[120, 120, 0]
        assert picture[100, 200].tolist() == [0, 250, 0]
        assert (picture[50, 50] == 100).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 6), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_the_instance_map_equals_painting_from_large_to_small(count: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    masks = rng.random((count, 320, width)) < rng.random((count, 1, 1))
    colors = rng.permutation(255)[:count, None].repeat(3, 1)
    expected = np.full((320, width), -1)
    for index in sorted(range(count), key=lambda i: -masks[i].sum()):
        expected[masks[index]] = colors[index, 0]
    image = np.zeros((320, width, 3), np.uint8)
    picture = draw_instances(image, masks, colors=colors)
    expected = expected.repeat(len(picture) // 320, 0).repeat(len(picture) // 320, 1)
    edge = np.zeros(expected.shape, bool)
    padded = np.pad(expected, 1, mode="edge")
    for dy, dx in ((0, 1), (2, 1), (1, 0), (1, 2)):
        edge |= padded[dy:, dx:][: len(expected), : expected.shape[1]] != expected
    shown = np.where(expected < 0, 0, np.where(edge, expected, np.rint(0.45 * np.maximum(expected, 0))))
    assert np.abs(picture[..., 0] - shown.astype(int)).max() <= 1


def test_three_hundred_instances_of_a_megapixel_take_less_than_a_second_and_a_half() -> None:
    rng = np.random.default_rng(0)
    masks = np.zeros((300, 1024, 1024), bool)
    for mask, (y, x) in zip(masks, rng.integers(0, 970, (300, 2)), strict=True):
        mask[y : y + 50, x : x + 50] = True
    start = time.process_time()
    picture = draw_instances(grey(1024, 1024), masks, scores=rng.random(300), boxes=rng.random((300, 4)))
    assert time.process_time() - start < 1.5
    assert len({tuple(color) for color in picture[::7, ::7].reshape(-1, 3).tolist()}) > 100


def test_captions_and_boxes_are_drawn_only_where_there_is_room() -> None:
    masks = np.zeros((2, 400, 400), bool)
    masks[0, 20:24, 20:24] = True
    masks[1, 100:300, 100:300] = True
    boxes = np.array([[10, 10, 40, 40], [90, 90, 310, 310]])
    plain = draw_instances(grey(400, 400), masks)
    full = draw_instances(grey(400, 400), masks, scores=[0.9, 0.8], boxes=boxes, classes=[0, 1], names=NAMES)
    assert (full == plain)[:80, :80].all()
    assert (full != plain)[90, 90:310].any(1).all(), "the large one's box"
    assert (full != plain)[180:220, 180:220].any(), "the large one's caption"


def test_a_single_class_is_not_named() -> None:
    masks = np.zeros((1, 400, 400), bool)
    masks[:, 100:300, 100:300] = True
    plain = draw_instances(grey(400, 400), masks)
    assert (draw_instances(grey(400, 400), masks, classes=[0], names=["nucleus"]) == plain).all()
    assert (draw_instances(grey(400, 400), masks, classes=[0], names=["nucleus", "cell"]) != plain).any()


def test_no_instance_leaves_the_image() -> None:
    for masks in (np.zeros((0, 400, 400), bool), np.zeros((2, 400, 400), bool)):
        assert (draw_instances(grey(400, 400), masks, scores=np.ones(len(masks))) == 100).all()


def test_panoptic_stuff_has_its_colour_things_their_own_and_void_none() -> None:
    ids = np.full((400, 600), 70000, np.int32)
    ids[:, 200:300], ids[:, 300:400], ids[:, 400:500], ids[:, 500:] = 7, 9, 0, 12
    info = [
        {"id": 9, "isthing": True, "category_id": 0},
        {"id": 70000, "isthing": False, "category_id": 1},
        {"id": 7, "isthing": True, "category_id": 0},
    ]
    toy = metadata(stuff_classes=NAMES, stuff_colors=COLORS, thing_classes=["car"])
    picture = draw_panoptic(grey(400, 600), ids, info, toy)
    assert picture[10, 100].tolist() == [50, 150, 50]
    assert (picture[10, 410:490] == 100).all() and (picture[10, 510:] == 100).all()
    assert (picture[10, 250] != picture[10, 350]).any()
    assert picture[10, 299].tolist() != picture[10, 250].tolist(), "things are outlined"


def test_panoptic_without_a_segment_leaves_the_image() -> None:
    assert (draw_panoptic(grey(400, 400), np.zeros((400, 400), np.int32), [], metadata()) == 100).all()


def test_a_semantic_class_beyond_the_data_set_is_refused() -> None:
    with pytest.raises(UserError, match="semantic class 3 .*'toy' has 0..2"):
        info = [{"id": 1, "isthing": False, "category_id": 3}]
        draw_panoptic(grey(9, 9), np.ones((9, 9), np.int32), info, metadata(stuff_classes=NAMES))


def output_of(masks: np.ndarray, scores: list[float]) -> Instances:
    boxes = Boxes(torch.zeros(len(masks), 4))
    classes = torch.zeros(len(masks), dtype=torch.long)
    fields = {"pred_boxes": boxes, "scores": torch.tensor(scores), "pred_classes": classes}
    return Instances(masks.shape[1:], pred_masks=torch.from_numpy(masks), **fields)


def test_a_prediction_is_drawn_for_each_of_its_tasks() -> None:
    toy = metadata(stuff_classes=NAMES, stuff_colors=COLORS, thing_classes=["car"])
    masks = np.zeros((2, 400, 400), bool)
    masks[0, :100], masks[1, 300:] = True, True
    scores = torch.zeros(3, 400, 400)
    scores[1] = 1
    output = {
        "sem_seg": scores,
        "instances": output_of(masks, [0.9, 0.4]),
        "panoptic_seg": (torch.ones(400, 400, dtype=torch.int32), [{"id": 1, "isthing": False, "category_id": 2}]),
    }
    pictures = draw_prediction(grey(400, 400), output, toy)
    assert set(pictures) == {"semantic", "instance", "panoptic"}
    assert pictures["semantic"][10, 10].tolist() == [45, 155, 45]
    assert (pictures["instance"][10, 10] != 100).any() and (pictures["instance"][350, 10] == 100).all()
    assert pictures["panoptic"][10, 10].tolist() == [50, 50, 150]
    assert draw_prediction(grey(400, 400), {}, toy) == {}


def test_a_label_map_goes_before_scores() -> None:
    output = {"sem_seg": torch.zeros(3, 4, 4), "sem_seg_labels": torch.full((4, 4), 2)}
    labels = scene_from_output(output).semantic
    assert labels is not None and (labels == 2).all()


def test_boxes_without_masks_and_ids_without_segments_are_not_drawn() -> None:
    boxes = output_of(np.ones((1, 4, 4), bool), [1.0])
    boxes.remove("pred_masks")
    scene = scene_from_output({"instances": boxes, "panoptic_seg": (torch.zeros(4, 4), None)})
    assert scene.instance is None and scene.panoptic is None


def test_ground_truth_is_read_through_the_label_map(tmp_path: Path) -> None:
    raw = thirds(400, 600)
    raw[raw == 255] = 11
    write_label(tmp_path / "a.png", raw)
    toy = metadata(stuff_classes=NAMES, stuff_colors=COLORS, label_map={11: 255}, ignore_label=255)
    pictures = draw_ground_truth(grey(400, 600), {"sem_seg_file_name": str(tmp_path / "a.png")}, toy)
    assert list(pictures) == ["semantic"]
    assert (pictures["semantic"][10, 401:] == 100).all() and pictures["semantic"][10, 10].tolist() == [155, 45, 45]


def test_a_panoptic_png_is_drawn(tmp_path: Path) -> None:
    colored = np.zeros((400, 400, 3), np.uint8)
    colored[:, :200] = (1, 2, 3)
    cv2.imwrite(str(tmp_path / "p.png"), colored[..., ::-1])
    info = [{"id": 1 + 2 * 256 + 3 * 65536, "isthing": False, "category_id": 0, "iscrowd": 0}]
    record = {"pan_seg_file_name": str(tmp_path / "p.png"), "segments_info": info}
    toy = metadata(stuff_classes=NAMES, stuff_colors=COLORS)
    picture = draw_ground_truth(grey(400, 400), record, toy)["panoptic"]
    assert picture[10, 10].tolist() == [150, 50, 50] and (picture[10, 300] == 100).all()


def test_polygons_and_both_kinds_of_rle_are_the_same_mask_and_crowds_no_instances() -> None:
    mask = np.zeros((30, 40), np.uint8)
    mask[5:15, 10:30] = 1
    compressed = mask_util.encode(np.asfortranarray(mask))
    flat = mask.ravel(order="F")
    runs = np.diff(np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1], [True]]))).tolist()
    polygon = [[10, 5, 30, 5, 30, 15, 10, 15]]
    shapes = [polygon, compressed, {"size": [30, 40], "counts": runs}]
    common = {"bbox": [10, 5, 20, 10], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1}
    annotations = [{**common, "segmentation": s, "iscrowd": 0} for s in shapes]
    annotations.append({**common, "segmentation": compressed, "iscrowd": 1})
    objects = scene_from_record({"annotations": annotations, "height": 30, "width": 40}, metadata()).instance
    assert objects is not None and objects.masks.shape == (3, 30, 40)
    assert (objects.masks == mask.astype(bool)).all() and objects.classes.tolist() == [1, 1, 1]
    assert objects.boxes is not None and objects.boxes[0].tolist() == [10, 5, 30, 15]
    assert objects.crowd is not None and (objects.crowd == mask).all()


def test_a_mask_of_another_size_names_the_file() -> None:
    rle = mask_util.encode(np.asfortranarray(np.ones((5, 5), np.uint8)))
    annotation = {"bbox": [0, 0, 5, 5], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "segmentation": rle}
    record = {"file_name": "a.png", "annotations": [annotation], "height": 9, "width": 9}
    with pytest.raises(UserError, match=r"a.png: a mask of \(5, 5\) on an image of \(9, 9\)"):
        scene_from_record(record, metadata())
