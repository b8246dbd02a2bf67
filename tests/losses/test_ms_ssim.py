"""MS-SSIM against windows cut out one by one in NumPy."""

import numpy as np
import pytest
import torch

from seg_ext.losses import ms_ssim

IGNORE = 255
EXPONENTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def window(size: int) -> np.ndarray:
    at = np.arange(size) - size // 2
    kernel = np.exp(-(at**2) / (2 * 1.5**2))
    return kernel / kernel.sum()


def similarity(x: np.ndarray, y: np.ndarray, share: np.ndarray, last: bool) -> float:
    sizes = [min(11, side if side % 2 else side - 1) for side in x.shape]
    kernel = np.outer(*(window(size) for size in sizes))
    views = [np.lib.stride_tricks.sliding_window_view(m, sizes) for m in (x, y, share)]
    a, b, weight = (view.reshape(-1, *sizes) for view in views)
    mean = lambda m: (m * kernel).sum((1, 2))  # noqa: E731
    mu_a, mu_b = mean(a), mean(b)
    var_a = mean((a - mu_a[:, None, None]) ** 2)
    var_b = mean((b - mu_b[:, None, None]) ** 2)
    covariance = mean((a - mu_a[:, None, None]) * (b - mu_b[:, None, None]))
    value = (2 * covariance + 0.03**2) / (var_a + var_b + 0.03**2)
    if last:
        value *= (2 * mu_a * mu_b + 0.01**2) / (mu_a**2 + mu_b**2 + 0.01**2)
    return float((value * mean(weight)).sum() / mean(weight).sum())


def halve(x: np.ndarray) -> np.ndarray:
    rows, columns = (min(2, side) for side in x.shape)
    h, w = x.shape[0] // rows, x.shape[1] // columns
    return x[: h * rows, : w * columns].reshape(h, rows, w, columns).mean((1, 3))


def blobs(classes: int, height: int, width: int) -> torch.Tensor:
    """Ids in patches of half a map, so that structure is left at every scale."""
    coarse = torch.randint(0, max(classes, 2), (1, 1, 3, 3), generator=torch.Generator().manual_seed(0)).float()
    return torch.nn.functional.interpolate(coarse, (height, width))[:, 0].long()


@pytest.mark.parametrize(("height", "width"), [(176, 180), (97, 64), (12, 7)])
@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("ignoring", [False, True])
def test_is_the_product_over_five_scales(height: int, width: int, classes: int, ignoring: bool) -> None:
    target = blobs(classes, height, width)
    hit = (target[:, None] == (torch.arange(classes) if classes > 1 else torch.ones(1)).view(-1, 1, 1)).double()
    noise = torch.randn(1, classes, height, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    logits = 4 * hit - 2 + noise
    if ignoring:
        target[:, height // 3 : height // 2] = IGNORE
    valid = (target != IGNORE)[0].numpy()
    p = (logits.sigmoid() if classes == 1 else logits.softmax(1))[0].numpy()
    each = []
    for c in range(classes):
        x, y, share, total = p[c] * valid, hit[0, c].numpy() * valid, valid.astype(float), 1.0
        for scale, exponent in enumerate(EXPONENTS):
            if scale:
                x, y, share = halve(x), halve(y), halve(share)
            total *= max(similarity(x, y, share, last=scale == 4), 2**-52) ** exponent
        each.append(1 - total)
    assert ms_ssim(logits, target, ignore=IGNORE).item() == pytest.approx(np.mean(each), rel=1e-6)


def test_more_noise_costs_more() -> None:
    target = blobs(2, 48, 48)
    hit = (target[:, None] == torch.arange(2).view(-1, 1, 1)).float()
    noise = torch.randn(1, 2, 48, 48, generator=torch.Generator().manual_seed(0))
    costs = [ms_ssim(8 * hit + strength * noise, target, ignore=IGNORE).item() for strength in (0.0, 1.0, 4.0, 16.0)]
    assert costs == sorted(costs) and costs[0] < 0.02 and costs[-1] > 0.2
