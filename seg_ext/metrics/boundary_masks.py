"""The band along the contour of a mask that Boundary IoU compares (Cheng et al., 2021)."""

from __future__ import annotations

import cv2
import numpy as np

DILATION = 0.02  # of the image's diagonal, the width of the band


def boundary_width(height: int, width: int, *, ratio: float = DILATION) -> int:
    """Width of the band in pixels, at least 1: ``ratio`` of the image's diagonal."""
    return max(1, round(ratio * float(np.hypot(height, width))))


def boundary_band(masks: np.ndarray, distance: int) -> np.ndarray:
    """The pixels of each mask within ``distance`` (Chebyshev) of a pixel outside it; so are all beyond the image.

    Args:
        masks: (N, H, W) bool or uint8 of 0 and 1. All are eroded as one picture, with a line of zeros between them.
        distance: pixels, 1 or more.

    Returns:
        (N, H, W) uint8.

    Raises:
        ValueError: ``distance`` below 1.
    """
    if distance < 1:
        raise ValueError(f"distance {distance}: takes 1 or more pixels")
    count, height, width = masks.shape
    if not masks.size:
        return np.zeros(masks.shape, np.uint8)
    stack = np.zeros((count * (height + 1) + 1, width + 2), np.uint8)
    inside = stack[1:].reshape(count, height + 1, width + 2)[:, :height, 1:-1]
    inside[...] = masks
    cores = cv2.erode(stack, np.ones((3, 3), np.uint8), iterations=distance)
    return inside - cores[1:].reshape(count, height + 1, width + 2)[:, :height, 1:-1]
