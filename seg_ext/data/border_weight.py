"""U-Net's weights of the pixels: more for those between close instances (Ronneberger et al., 2015, eq. 2)."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray


def border_weight(
    instances: NDArray[np.integer],
    *,
    balance: float | NDArray[np.floating[Any]] = 1.0,
    w0: float = 10.0,
    sigma: float = 5.0,
) -> NDArray[np.float32]:
    """``w_c + w0 exp(-(d1 + d2)^2 / (2 sigma^2))`` of every pixel.

    Args:
        instances: (H, W) ids, 0 and below being no instance; parts of one instance may lie apart.
        balance: w_c, the weight of each pixel's class: one number or (H, W).
        w0: emphasis where two borders meet.
        sigma: its reach in pixels.

    Returns:
        (H, W).

    Raises:
        ValueError: a sigma that is not positive, or a negative w0.
    """
    if not sigma > 0 or not w0 >= 0:
        raise ValueError(f"w0 {w0!r}, sigma {sigma!r}: takes w0 >= 0 and sigma > 0")
    nearest, second = border_distances(instances)
    weight = balance + w0 * np.exp(-((nearest + second) ** 2) / (2 * sigma**2))
    return weight.astype(np.float32)


def border_distances(instances: NDArray[np.integer]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Distances of every pixel, in pixels, to the borders of the nearest and the second nearest instance.

    A border is the pixels of an instance next to others, the image's edge making none. The ids, numbered 0 to M - 1,
    differ in some bit from any other: with the distances to all borders whose number has a bit set, and to those
    where it is not, the greater of the two belongs to instances other than the nearest, and the least of these over
    all bits is the second nearest. So 2 log2 M distance transforms do.

    Args:
        instances: (H, W) ids, 0 and below being no instance.

    Returns:
        Two (H, W) maps, infinite where there is no such instance.
    """
    ids, numbers = np.unique(instances, return_inverse=True)
    numbers = numbers.reshape(instances.shape) - np.count_nonzero(ids <= 0)
    border = _borders(instances)
    nearest = _distance(border)
    second = np.full_like(nearest, np.inf)
    for bit in range(int(numbers.max(initial=0)).bit_length()):
        high = (numbers >> bit & 1).astype(bool)
        second = np.minimum(second, np.maximum(_distance(border & high), _distance(border & ~high)))
    return nearest, second


def _borders(instances: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Pixels of instances of which one of four neighbours has another id."""
    border = np.zeros(instances.shape, bool)
    rows = instances[1:] != instances[:-1]
    columns = instances[:, 1:] != instances[:, :-1]
    border[1:] |= rows
    border[:-1] |= rows
    border[:, 1:] |= columns
    border[:, :-1] |= columns
    return border & (instances > 0)


def _distance(border: NDArray[np.bool_]) -> NDArray[np.float32]:
    if not border.any():
        return np.full(border.shape, np.inf, np.float32)
    distance = cv2.distanceTransform((~border).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    # Its last bit differs from call to call; squares of distances between pixels are whole numbers.
    return np.sqrt(np.rint(distance.astype(np.float64) ** 2)).astype(np.float32)
