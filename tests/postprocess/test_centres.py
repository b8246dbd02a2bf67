"""Centres and offsets against loops over instances and pixels, and from ground truth back to it."""

import math

import numpy as np
import pytest
import torch

from seg_ext.metrics import panoptic_quality, pq_scores
from seg_ext.postprocess import centre_targets, find_centres, group_pixels


def scene(seed: int, size: tuple[int, int] = (60, 72)) -> torch.Tensor:
    """Ids: void 0, stuff 1, rectangles from 5 on that do not touch."""
    draw = np.random.default_rng(seed)
    ids = np.ones(size, np.int64)
    ids[:4] = 0
    for number, (top, left) in enumerate([(6, 2), (8, 40), (34, 6), (30, 44)], start=5):
        h, w = draw.integers(9, 20, 2)
        ids[top : top + h, left : left + w] = number
    return torch.from_numpy(ids)


@pytest.mark.parametrize("sigma", [2.0, 8.0])
def test_targets_are_what_loops_over_instances_and_pixels_give(sigma: float) -> None:
    ids = scene(0)
    heat, offset, area = centre_targets(ids, sigma=sigma)
    want_heat, want_offset, want_area = np.zeros(ids.shape), np.zeros((2, *ids.shape)), np.zeros(ids.shape)
    for number in (5, 6, 7, 8):
        rows, columns = np.nonzero(ids.numpy() == number)
        y, x = rows.mean(), columns.mean()
        want_area[rows, columns] = len(rows)
        want_offset[:, rows, columns] = y - rows, x - columns
        for i, j in np.ndindex(*ids.shape):
            dy, dx = i - round(y), j - round(x)
            if max(abs(dy), abs(dx)) <= 3 * sigma + 1:
                want_heat[i, j] = max(want_heat[i, j], math.exp(-(dy**2 + dx**2) / (2 * sigma**2)))
    assert np.abs(heat.numpy() - want_heat).max() < 1e-6 and heat.max() == 1
    assert np.abs(offset.numpy() - want_offset).max() < 1e-4
    assert np.array_equal(area.numpy(), want_area)


@pytest.mark.parametrize(
    "ids", [torch.zeros(5, 6), torch.ones(5, 6), torch.full((5, 6), 7)], ids=["void", "stuff", "one"]
)
def test_maps_of_one_kind_have_targets(ids: torch.Tensor) -> None:
    heat, offset, area = centre_targets(ids.long(), sigma=2.0)
    one = bool((ids == 7).all())
    assert heat.max().item() == one and (area == 30 * one).all()
    assert offset.abs().amax(dim=(1, 2)).tolist() == ([2.0, 2.5] if one else [0.0, 0.0])


def test_centres_are_peaks_of_their_square_the_hottest_first() -> None:
    heat = torch.zeros(20, 30)
    for (y, x), value in {(3, 4): 0.5, (3, 7): 0.4, (10, 20): 0.9, (15, 5): 0.05, (18, 29): 0.3}.items():
        heat[y, x] = value
    assert find_centres(heat, threshold=0.1, kernel=7).tolist() == [[10, 20], [3, 4], [18, 29]]
    assert find_centres(heat, threshold=0.1, kernel=5).tolist() == [[10, 20], [3, 4], [3, 7], [18, 29]]
    assert find_centres(heat, threshold=0.01, kernel=7, most=2).tolist() == [[10, 20], [3, 4]]
    assert find_centres(torch.zeros(4, 4)).shape == (0, 2)


def test_a_plateau_is_one_centre() -> None:
    heat = torch.zeros(12, 12)
    heat[4:6, 7:9] = 0.5
    assert find_centres(heat).tolist() == [[4, 7]]


@pytest.mark.parametrize("seed", range(4))
def test_ground_truth_comes_back_from_its_targets(seed: int) -> None:
    ids = scene(seed)
    semantic = torch.where(
        ids > 1, 2 + ids % 2, torch.where(ids == 1, 1, 0)
    )  # void is class 0 here; 2 and 3 are things
    heat, offset, _ = centre_targets(ids, sigma=8.0)
    got, info = group_pixels(semantic, heat, offset, thing_ids=(2, 3), stuff_area=1)
    truth = {int(i): int(semantic[ids == i][0]) for i in ids.unique() if i}
    stat = panoptic_quality(
        got.numpy(), ids.numpy(), pred_classes={s["id"]: s["category_id"] for s in info}, target_classes=truth,
        num_classes=4,
    )  # fmt: skip
    scores = pq_scores(stat, np.array([False, False, True, True]))
    assert scores.things == (1.0, 1.0, 1.0) and scores.pq[1] == 1.0
    assert sorted(s["area"] for s in info if s["isthing"]) == sorted(int((ids == i).sum()) for i in (5, 6, 7, 8))


def test_an_instance_takes_the_class_of_most_of_its_pixels_and_small_stuff_goes() -> None:
    labels = torch.zeros(8, 16, dtype=torch.long)
    labels[2:6, 2:6], labels[2, 2:4], labels[7, 15] = 1, 2, 3
    heat, offset = torch.zeros(8, 16), torch.zeros(2, 8, 16)
    heat[4, 4] = 0.8
    got, info = group_pixels(labels, heat, offset, thing_ids=(1, 2), stuff_area=2)
    assert [(s["category_id"], s["area"], s["isthing"]) for s in info] == [(1, 16, True), (0, 111, False)]
    assert (got[2:6, 2:6] == 1).all() and got[7, 15] == 0 and info[0]["score"] == pytest.approx(0.8)


def test_without_a_centre_things_are_void() -> None:
    labels = torch.tensor([[0, 0, 1, 1]])
    got, info = group_pixels(labels, torch.zeros(1, 4), torch.zeros(2, 1, 4), thing_ids=(1,), stuff_area=1)
    assert got.tolist() == [[1, 1, 0, 0]] and [s["category_id"] for s in info] == [0]


def test_without_things_all_is_stuff() -> None:
    labels = torch.tensor([[0, 0, 1, 1]])
    got, info = group_pixels(labels, torch.ones(1, 4), torch.zeros(2, 1, 4), thing_ids=(), stuff_area=1)
    assert got.tolist() == [[1, 1, 2, 2]] and not any(s["isthing"] for s in info)
