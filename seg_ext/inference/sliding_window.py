"""Sliding windows: an image of any size through a model in overlapping parts, blended (PSPNet, 2017; Hann tapers)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

from torch import Tensor

from seg_ext.errors import UserError
from seg_ext.inference.contract import UNFUSED, Predict, as_output, dense_maps, output_size, resize_map
from seg_ext.inference.tiled_instances import Tile, cut_tile, merge_tiles, resize_instances
from seg_ext.inference.windows import Axis, check_windows, lay_windows


class SlidingWindow:
    """A predictor that shows another one windows of each image.

    Probabilities, the heat and offsets of Panoptic-DeepLab and maps of uncertainty are weighted means over the windows
    at a pixel; each takes the memory of one map of the image. Instances that several windows see are merged, see
    :func:`seg_ext.inference.tiled_instances.merge_tiles`.
    """

    def __init__(
        self,
        predict: Predict,
        size: Sequence[int],
        *,
        overlap: float = 1 / 3,
        blend: str = "hann",
        batch: int = 1,
    ) -> None:
        """Hold what is wrapped.

        Args:
            predict: gets windows, all of one size; the borders of an image smaller than that are mirrored.
            size: height and width, pixels of the image as the model gets it.
            overlap: see :func:`seg_ext.inference.windows.lay_windows`.
            blend: likewise, "hann", "uniform" or "scores", which takes means of scores and not of probabilities.
            batch: windows that ``predict`` gets at once.

        Raises:
            UserError: a value outside its range.
        """
        self._size = check_windows(size, overlap, blend)
        if batch < 1:
            raise UserError(f"TEST.SLIDING_WINDOW.BATCH {batch}: takes a number of windows from 1")
        self._predict, self._batch, self._logs = predict, batch, blend == "scores"
        self._layout: dict[str, Any] = {"overlap": overlap, "blend": blend}

    def __call__(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Predict each image, at its ``height`` and ``width``."""
        return [self._predict_image(inputs) for inputs in batched_inputs]

    def _predict_image(self, inputs: dict[str, Any]) -> dict[str, Any]:
        size, wanted = inputs["image"].shape[-2:], output_size(inputs)
        rows, columns = (lay_windows(a, b, **self._layout) for a, b in zip(size, self._size, strict=True))
        means: dict[str, Tensor] = {}
        tiles: list[Tile] = []
        for place, output in self._windows(inputs, rows, columns):
            for key, part in dense_maps(output, logs=self._logs).items():
                if key not in means:
                    means[key] = part.new_zeros(*part.shape[:-2], *size)
                add_window(means[key], part, rows, columns, place)
            if "instances" in output:
                tiles.append(cut_tile(output["instances"], rows, columns, place))
        if self._logs and "sem_seg" in means:
            means["sem_seg"] = means["sem_seg"].softmax(0)
        result = as_output({key: resize_map(key, means.pop(key), wanted) for key in list(means)})
        if tiles:
            result["instances"] = resize_instances(merge_tiles(tiles, size), wanted)
        return result

    def _windows(
        self, inputs: dict[str, Any], rows: Axis, columns: Axis
    ) -> Iterator[tuple[tuple[int, int], dict[str, Any]]]:
        """Row and column of each window, and the output for it."""
        every = list(product(range(len(rows.starts)), range(len(columns.starts))))
        for first in range(0, len(every), self._batch):
            places = every[first : first + self._batch]
            images = [inputs["image"][..., rows.places(i)[:, None], columns.places(j)] for i, j in places]
            sized = {"height": rows.size, "width": columns.size}
            yield from zip(
                places, self._predict([inputs | UNFUSED | sized | {"image": x} for x in images]), strict=True
            )


def add_window(total: Tensor, part: Tensor, rows: Axis, columns: Axis, place: tuple[int, int]) -> None:
    """Add a window's part (..., h, w), weighted, to a map (..., H, W) in place."""
    (top, inner_top), (left, inner_left) = rows.inside(place[0]), columns.inside(place[1])
    weights = rows.weights[place[0], inner_top, None] * columns.weights[place[1], inner_left]
    total[..., top, left].addcmul_(part[..., inner_top, inner_left], weights.to(part.device))
