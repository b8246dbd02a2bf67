"""Multi-scale structural similarity (Wang et al., 2003) of probabilities and labels, as UNet 3+ trains with (2020)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from seg_ext.losses.soft_counts import one_hot, probabilities

_EXPONENTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2


def ms_ssim(logits: Tensor, target: Tensor, *, ignore: int) -> Tensor:
    """1 - MS-SSIM of each class's probability and its 0/1 map, mean over classes and images.

    Five scales, Gaussian windows of 11 pixels and sigma 1.5 that stay inside the map; where a map is smaller, which
    at the last scale is below 176 pixels, its windows are as large as fit. Windows weigh by their share of pixels
    that are not ignored. Beyond the logits it takes about 18 times their memory, six times what cross-entropy takes.

    Args:
        logits: (N, K, H, W); K = 1 is a sigmoid channel, whose foreground alone counts.
        target: (N, H, W), integer ids below max(K, 2), or ``ignore``.
        ignore: the id whose pixels count for nothing.

    Returns:
        A scalar; 0, with gradient 0, where every pixel is ignored.
    """
    valid = (target != ignore)[:, None]
    p = probabilities(logits) * valid
    truth, share = one_hot(target, p.shape[1], ignore).to(p), valid.to(p)
    similarity = p.new_ones(p.shape[:2])
    for scale, exponent in enumerate(_EXPONENTS):
        if scale:
            p, truth, share = _halve(p), _halve(truth), _halve(share)
        factor = _similarity(p, truth, share, structure_only=scale < len(_EXPONENTS) - 1)
        similarity = similarity * factor.clamp(min=torch.finfo(p.dtype).eps) ** exponent
    counted = valid.flatten(1).any(1, keepdim=True).expand_as(similarity)
    return ((1 - similarity) * counted).sum() / counted.sum().clamp(min=1)


def _similarity(x: Tensor, y: Tensor, share: Tensor, *, structure_only: bool) -> Tensor:
    """(N, K) mean over windows of SSIM, or of its contrast and structure; of (N, K, H, W) maps, zero where ignored."""
    mean_x, mean_y = _blur(x), _blur(y)
    product = mean_x * mean_y
    squares = mean_x**2 + mean_y**2
    spread = _blur(x**2 + y**2) - squares
    each = (2 * (_blur(x * y) - product) + _C2) / (spread + _C2)
    if not structure_only:
        each = each * (2 * product + _C1) / (squares + _C1)
    weight = _blur(share)
    return (each * weight).sum((2, 3)) / weight.sum((2, 3)).clamp(min=torch.finfo(x.dtype).eps)


def _halve(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, [min(2, side) for side in x.shape[2:]])


def _blur(x: Tensor) -> Tensor:
    """Gaussian mean of every window that lies inside, along one axis after the other."""
    channels = x.shape[1]
    with torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False):  # half precision loses the variances
        for axis in (2, 3):
            kernel = _gaussian(x, min(_WINDOW, x.shape[axis] - 1 + x.shape[axis] % 2))
            shape = (-1, 1) if axis == 2 else (1, -1)
            x = F.conv2d(x, kernel.view(1, 1, *shape).expand(channels, -1, -1, -1), groups=channels)
    return x


def _gaussian(like: Tensor, size: int) -> Tensor:
    at = torch.arange(size, dtype=like.dtype, device=like.device) - size // 2
    kernel = (-(at**2) / (2 * _SIGMA**2)).exp()
    return kernel / kernel.sum()
