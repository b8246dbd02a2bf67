"""Border weights against distances measured one instance at a time, and the paper's two constants."""

import time

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from seg_ext.data.border_weight import border_distances, border_weight

INSTANCES = hnp.arrays(
    np.int32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.sampled_from([0, 0, 0, 1, 2, 3, 9, 700])
)


def measured(instances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distances to every border pixel of every instance, without any transform."""
    height, width = instances.shape
    grid = np.stack(np.mgrid[:height, :width], -1).astype(float)
    every = [np.full((height, width), np.inf)] * 2
    for i in np.unique(instances[instances > 0]):
        mask = np.pad(instances == i, 1, mode="edge")
        inside = mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
        border = np.argwhere((instances == i) & ~inside)
        if len(border):
            every.append(np.sqrt(((grid[:, :, None] - border) ** 2).sum(-1)).min(-1))
    every = np.sort(np.stack(every), 0)
    return every[0], every[1]


@settings(deadline=None)
@given(instances=INSTANCES)
@example(instances=np.zeros((3, 4), np.int32))
@example(instances=np.full((3, 4), 5, np.int32))
@example(instances=np.array([[1, 0, 2]], np.uint16))
@example(instances=np.arange(1, 37, dtype=np.uint8).reshape(6, 6))
@example(instances=np.array([[-1, 0, 2], [7, -1, 2]], np.int64))
def test_distances_are_to_the_nearest_and_the_second_nearest_instance(instances: np.ndarray) -> None:
    for found, wanted in zip(border_distances(instances), measured(instances), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_a_gap_of_one_pixel_between_two_instances_weighs_nearly_w0_more() -> None:
    instances = np.zeros((20, 21), np.int32)
    instances[5:15, 2:10], instances[5:15, 11:19] = 1, 2
    weight = border_weight(instances)
    assert weight[10, 10] == pytest.approx(1 + 10 * np.exp(-4 / 50))  # d1 = d2 = 1
    assert weight.max() == weight[10, 10] and weight.dtype == np.float32
    assert border_weight(instances, w0=3, sigma=2)[10, 10] == pytest.approx(1 + 3 * np.exp(-4 / 8))


def test_a_lone_instance_has_the_weights_of_the_classes() -> None:
    instances = np.zeros((9, 9), np.int32)
    instances[3:6, 3:6] = 4
    balance = np.where(instances > 0, 2.0, 0.5)
    assert np.array_equal(border_weight(instances, balance=balance), balance.astype(np.float32))


@pytest.mark.parametrize(("w0", "sigma"), [(10.0, 0.0), (-1.0, 5.0), (10.0, float("nan"))])
def test_what_is_no_reach_or_emphasis_is_refused(w0: float, sigma: float) -> None:
    with pytest.raises(ValueError, match="takes w0 >= 0 and sigma > 0"):
        border_weight(np.zeros((2, 2), np.int32), w0=w0, sigma=sigma)


def test_many_instances_cost_little() -> None:
    instances = np.zeros((512, 512), np.int32)
    for i, (y, x) in enumerate(np.random.default_rng(0).integers(0, 490, (125, 2)), 1):
        instances[y : y + 22, x : x + 22] = i
    times = []
    for _ in range(3):
        start = time.process_time()
        border_weight(instances)
        times.append(time.process_time() - start)
    assert min(times) < 0.5
