"""Boundary loss against pooling written out in NumPy, and hand-made shapes."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from seg_ext.losses import boundary
from seg_ext.losses.boundary import _dilate

IGNORE = 255


def dilate(x: np.ndarray, size: int) -> np.ndarray:
    padded = np.pad(x, size // 2, constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size))
    return windows.max((2, 3))


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize(("width", "tolerance"), [(3, 5), (5, 3), (3, 1)])
def test_is_one_minus_f1_of_pooled_boundaries(k: int, width: int, tolerance: int) -> None:
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(2, k, 9, 8, generator=generator, dtype=torch.float64)
    target = torch.randint(0, max(k, 2), (2, 9, 8), generator=generator)
    target[0, :3] = IGNORE
    target[1] = 0
    target[1, 2:5, 2:5] = 1  # the third class has no boundary here
    p = (logits.sigmoid() if k == 1 else logits.softmax(1)).numpy()
    each = []
    for n in range(2):
        valid = target[n].numpy() != IGNORE
        for c in range(k):
            truth = target[n].numpy() == (c if k > 1 else 1)
            outside, missing = (1 - p[n, c]) * valid, (~truth & valid).astype(float)
            found = (dilate(outside, width) - outside) * valid
            true = (dilate(missing, width) - missing) * valid
            if true.sum():
                precision = (found * dilate(true, tolerance)).sum() / found.sum()
                recall = (dilate(found, tolerance) * true).sum() / true.sum()
                each.append(1 - 2 * precision * recall / (precision + recall))
    assert len(each) == (2 if k == 1 else 5)
    value = boundary(logits, target, ignore=IGNORE, width=width, tolerance=tolerance)
    assert value.item() == pytest.approx(np.mean(each))


@pytest.mark.parametrize("size", [1, 3, 5, 15])
def test_maxima_and_their_gradient_are_those_of_max_pooling(size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(2, 3, 11, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    x.requires_grad_()
    results = []
    for pooled in (_dilate(x, size), F.max_pool2d(F.pad(x, [size // 2] * 4, value=-torch.inf), size, 1)):
        results.append((pooled, *torch.autograd.grad((pooled * weight).sum(), x)))
    assert torch.equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1])
    assert torch.equal(_dilate(x > 1, size), results[1][0] > 1)


def square(at: int, side: int = 32) -> torch.Tensor:
    mask = torch.zeros(1, side, side, dtype=torch.long)
    mask[0, at : at + 10, 8:18] = 1
    return mask


@pytest.mark.parametrize(("shift", "cost"), [(0, 0.0), (2, 0.0), (12, 1.0)])
def test_shifts_within_the_tolerance_are_free(shift: int, cost: float) -> None:
    logits = 200.0 * square(8 + shift)[:, None] - 100
    assert boundary(logits, square(8), ignore=IGNORE, width=3, tolerance=5).item() == pytest.approx(cost, abs=0.1)


def test_the_cost_grows_with_the_shift() -> None:
    costs = [boundary(200.0 * square(8 + s)[:, None] - 100, square(8), ignore=IGNORE).item() for s in (0, 3, 5, 12)]
    assert costs == sorted(costs) and len(set(costs)) == 4


def test_the_images_edge_and_ignored_pixels_make_no_boundary() -> None:
    target = torch.zeros(1, 8, 8, dtype=torch.long)
    target[0, :, 4:] = IGNORE
    logits = torch.randn(1, 2, 8, 8, requires_grad=True)
    loss = boundary(logits, target, ignore=IGNORE)
    loss.backward()
    assert loss.item() == 0 and logits.grad.eq(0).all()
