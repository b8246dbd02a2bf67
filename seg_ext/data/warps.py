"""Smooth deformations of images, label maps, masks and coordinates together: rotation and U-Net's elastic one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
from detectron2.data import transforms as T
from fvcore.transforms.transform import Transform
from numpy.typing import NDArray

Array = NDArray[Any]

EDGE = 4  # pixels of a polygon's edge that stay straight
INVERSION_STEPS = 60  # of the fixed point; its error shrinks by as much as the field changes over a pixel


class WarpTransform(Transform):
    """Every pixel of the result reads the input at a point of its own; what lies outside the input is padding.

    Images are read bilinearly, label maps and masks take the nearest pixel. Points are continuous: pixel (i, j) covers
    x in [j, j + 1], y in [i, i + 1].
    """

    def __init__(
        self,
        points: Array,
        inverse: Callable[[Array], Array],
        *,
        pad_value: float | Sequence[float] = 0,
        ignore: int = 255,
    ) -> None:
        """Set the field.

        Args:
            points: (h, w, 2) x, y in the input, of the centre of every pixel of the result.
            inverse: from points (N, 2) of the input to points of the result.
            pad_value: of image pixels outside, one number or one a channel.
            ignore: of label pixels outside.
        """
        super().__init__()
        self.points, self.inverse = points, inverse
        self.pad_value, self.ignore = pad_value, ignore

    def apply_image(self, img: Array) -> Array:
        """(H, W, C) uint8 or float32 -> (h, w, C) of the same type."""
        x, y = np.moveaxis((self.points - 0.5).astype(np.float32), 2, 0)
        together = [img] if img.shape[2] == 3 else np.split(img, img.shape[2], axis=2)
        parts = [
            cv2.remap(np.ascontiguousarray(part), x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
            for part in together
        ]
        out = np.concatenate([part.reshape(*x.shape, -1) for part in parts], axis=2)
        value = np.rint(self.pad_value) if out.dtype == np.uint8 else self.pad_value
        out[~self._inside(img.shape)] = value
        return out

    def apply_segmentation(self, segmentation: Array) -> Array:
        """(H, W) ids or bool -> (h, w) of the same type."""
        height, width = segmentation.shape
        columns, rows = np.moveaxis(np.floor(self.points).astype(np.int64), 2, 0)
        out = segmentation[rows.clip(0, height - 1), columns.clip(0, width - 1)]
        out[~self._inside(segmentation.shape)] = False if segmentation.dtype == bool else self.ignore
        return out

    def apply_coords(self, coords: Array) -> Array:
        """(N, 2) x, y -> (N, 2) x, y, also outside the result."""
        return self.inverse(coords)

    def apply_polygons(self, polygons: list[Array]) -> list[Array]:
        """Corners (N, 2) of each polygon -> corners, more of them, so that straight edges can bend."""
        return [self.apply_coords(_subdivided(polygon)) for polygon in polygons]

    def _inside(self, shape: Sequence[int]) -> Array:
        inside: Array = (self.points >= 0) & (self.points < (shape[1], shape[0]))
        return inside[..., 0] & inside[..., 1]


class RandomRotation(T.Augmentation):
    """Rotate about the centre by a random angle, at the image's size; corners that come in are padding."""

    def __init__(
        self,
        angle: Sequence[float] = (-10.0, 10.0),
        *,
        pad_value: float | Sequence[float] = 0,
        ignore: int = 255,
    ) -> None:
        """Set the range.

        Args:
            angle: least and greatest, degrees, counter-clockwise, drawn uniformly (PSPNet: -10 to 10).
            pad_value: of image pixels outside, one number or one a channel.
            ignore: of label pixels outside.
        """
        if not isinstance(angle, Sequence) or len(angle) != 2 or angle[0] > angle[1]:
            raise ValueError(f"angle is {angle!r}; it is [least, greatest] in degrees")
        super().__init__()
        self._init(locals())

    def get_transform(self, image: Array) -> WarpTransform:
        """Draw an angle."""
        turn = np.deg2rad(np.random.uniform(*self.angle))
        matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        centre = np.array([image.shape[1], image.shape[0]]) / 2
        points = (_centres(image.shape) - centre) @ matrix.T + centre
        return WarpTransform(
            points,
            lambda coords: (coords - centre) @ matrix + centre,
            pad_value=self.pad_value,
            ignore=self.ignore,
        )


class ElasticDeformation(T.Augmentation):
    """Displace a coarse grid at random and everything between its nodes smoothly (U-Net, section 3.1)."""

    def __init__(
        self,
        std: float = 10.0,
        *,
        grid: int = 3,
        probability: float = 1.0,
        pad_value: float | Sequence[float] = 0,
        ignore: int = 255,
    ) -> None:
        """Set the strength.

        Args:
            std: of every node's displacement in x and in y, normal, pixels.
            grid: nodes a side, from border to border; between them displacements are interpolated bicubically.
            probability: of deforming at all.
            pad_value: of image pixels outside, one number or one a channel.
            ignore: of label pixels outside.
        """
        if std < 0 or grid < 2 or not 0 <= probability <= 1:
            raise ValueError(f"std {std}, grid {grid}, probability {probability}: they are >= 0, >= 2 and in [0, 1]")
        super().__init__()
        self._init(locals())

    def get_transform(self, image: Array) -> Transform:
        """Draw the displacements."""
        nodes = np.random.normal(scale=self.std, size=(2, self.grid, self.grid))
        if np.random.uniform() >= self.probability:
            return T.NoOpTransform()
        size = np.array([image.shape[1], image.shape[0]])

        def displacement(coords: Array) -> Array:
            """(N, 2) points -> (N, 2) displacements there."""
            x, y = (_cubic_weights(coords[:, axis] / size[axis], self.grid) for axis in (0, 1))  # each (N, grid)
            return np.einsum("ny,dyx,nx->nd", y, nodes, x)

        def inverse(coords: Array) -> Array:
            moved = coords
            for _ in range(INVERSION_STEPS):
                moved = coords - displacement(moved)
            return moved

        x, y = (_cubic_weights((np.arange(side) + 0.5) / side, self.grid) for side in size)
        field = np.einsum("hy,dyx,wx->hwd", y, nodes, x, optimize=True)
        return WarpTransform(_centres(image.shape) + field, inverse, pad_value=self.pad_value, ignore=self.ignore)


def _subdivided(polygon: Array) -> Array:
    """The corners (N, 2), and points on the edges at most EDGE pixels apart."""
    ends = np.roll(polygon, -1, axis=0)
    parts = np.maximum(np.ceil(np.abs(ends - polygon).max(axis=1) / EDGE), 1).astype(int)  # (N,)
    starts, steps = np.repeat(polygon, parts, axis=0), np.repeat((ends - polygon) / parts[:, None], parts, axis=0)
    number = np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)  # 0, 1, ... within an edge
    return starts + number[:, None] * steps


def _centres(shape: Sequence[int]) -> Array:
    """(H, W, 2) x, y of every pixel's centre."""
    rows, columns = np.indices(shape[:2])
    return np.stack([columns, rows], axis=2) + 0.5


def _cubic_weights(position: Array, nodes: int) -> Array:
    """(N,) positions in [0, 1] -> (N, nodes): Keys' cubic convolution (a = -1/2), the end nodes repeated outwards."""
    at = np.clip(position, 0, 1) * (nodes - 1)
    first = np.floor(at).astype(int)
    weights = np.zeros((len(at), nodes))
    for tap in (-1, 0, 1, 2):
        d = np.abs(at - (first + tap))
        near = 1.5 * d**3 - 2.5 * d**2 + 1
        far = -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
        np.add.at(weights, (np.arange(len(at)), (first + tap).clip(0, nodes - 1)), np.where(d <= 1, near, far))
    return weights
