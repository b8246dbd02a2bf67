"""Label maps of many classes or large images: scores resized and reduced to their best class some rows at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_CPU_CHUNK, _CHUNK = 1 << 20, 1 << 25  # elements of resized scores: on the CPU what its caches hold
_Taps = tuple[Tensor, Tensor, Tensor]  # of each row its two source rows, and the share of the second


def resized_labels(
    scores: Tensor,
    size: Sequence[int],
    *,
    image_size: Sequence[int] | None = None,
    output_size: Sequence[int] | None = None,
    align_corners: bool = False,
) -> Tensor:
    """(H, W) int64 classes of the highest scores, bilinearly resized, without all of these in memory at once.

    The scores are resized to ``size``, that of a padded image; of this the image is cut out and resized to
    ``output_size``. Of equal scores any of the classes may be given.

    Args:
        scores: (K, h, w).
        size: height and width.
        image_size: height and width of the image within it, from its first pixel; None for all of it.
        output_size: height and width of the labels; None for ``image_size``.
        align_corners: of the first resizing; the second has none, as detectron2's.
    """
    image_size = tuple(image_size or size)
    height, width = output_size or image_size
    first = None if scores.shape[1] == size[0] else _taps(scores.shape[1], size[0], scores.device, align_corners)
    second = None if height == image_size[0] else _taps(image_size[0], height, scores.device)
    labels = torch.empty(height, width, dtype=torch.int64, device=scores.device)
    chunk = _CPU_CHUNK if scores.device.type == "cpu" else _CHUNK
    step = max(1, chunk // (scores.shape[0] * max(width, size[1])))
    for top in range(0, height, step):
        rows = torch.arange(top, min(top + step, height), device=scores.device)
        strip = _rows(scores, rows, first) if second is None else _between(scores, rows, first, second)
        if strip.shape[2] != size[1]:
            strip = F.interpolate(strip, size[1], mode="linear", align_corners=align_corners)
        if image_size[1] != width:
            strip = F.interpolate(strip[..., : image_size[1]], width, mode="linear", align_corners=False)
        labels[top : top + step] = strip[..., :width].max(0).indices
    return labels


def _taps(source: int, target: int, device: torch.device, align_corners: bool = False) -> _Taps:
    """Of ``target`` rows resized from ``source``; in single precision, as ``interpolate`` reckons."""
    places = torch.arange(target, dtype=torch.float32, device=device)
    if align_corners:
        places = places * (torch.tensor(source - 1.0) / max(target - 1, 1)).to(device)
    else:
        places = ((places + 0.5) * (torch.tensor(float(source)) / target).to(device) - 0.5).clamp(min=0)
    low = places.floor().long().clamp(max=source - 1)
    return low, (low + 1).clamp(max=source - 1), places - low


def _rows(scores: Tensor, rows: Tensor, taps: _Taps | None) -> Tensor:
    """(K, n, w) rows of the resized scores, their columns as they are."""
    if taps is None:
        return scores.index_select(1, rows).float()
    low, high, share = (x[rows] for x in taps)
    return _lerp(scores.index_select(1, low).float(), scores.index_select(1, high).float(), share)


def _between(scores: Tensor, rows: Tensor, first: _Taps | None, second: _Taps) -> Tensor:
    """(K, n, w) rows of scores resized twice."""
    low, high, share = (x[rows] for x in second)
    return _lerp(_rows(scores, low, first), _rows(scores, high, first), share)


def _lerp(low: Tensor, high: Tensor, share: Tensor) -> Tensor:
    return torch.lerp(low, high, share[None, :, None])
