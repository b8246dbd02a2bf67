"""Atrous spatial pyramid pooling with image-level features (Chen et al., DeepLabv3, 2017, section 3.3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .conv import ConvNormAct
from .norm import Norm
from .shape import exporting, resize_to


def window_matrices(cells: int, size: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Two (size, size): of the means of `cells` neighbours, or of all, and of their bilinear resizing to `size`.

    There are n = max(1, size - cells + 1) means; rows from n on repeat the last. In a graph they hold at every size.
    """
    cell = torch.arange(size, device=like.device)
    count = (cell[-1] + 2 - cells).clamp(min=1)
    wide = cell[-1] + 2 - count
    first = torch.minimum(cell, count - 1)[:, None]
    mean = ((cell >= first) & (cell < first + wide)) / wide
    place = ((cell + 0.5) * count / (cell[-1] + 1) - 0.5).clamp(min=0)[:, None]
    low = place.floor()
    high = torch.minimum(low + 1, count - 1)
    resize = (cell == low) * (1 - place + low) + (cell == high) * (place - low)
    return mean.to(like.dtype), resize.to(like.dtype)


class ASPP(nn.Module):
    """A 1x1 branch, a 3x3 one for each rate and the image mean, joined and projected: (N, C, h, w) -> (N, C', h, w)."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        rates: Sequence[int],
        norm: Norm | None,
        conv: Callable[..., nn.Module] = ConvNormAct,
        image_pooling: bool = True,
        image_norm: bool = True,
        pool: Sequence[int] | None = None,
        project_kernel_size: int = 1,
        dropout: float = 0.0,
    ) -> None:
        """Build the branches and the projection.

        Args:
            in_channels: C.
            channels: C', also the width of every branch.
            rates: dilation of each 3x3 branch, in cells.
            norm: from channels to a layer, or None.
            conv: makes the 3x3 branches; SeparableConv in DeepLabv3+.
            image_pooling: add the branch that pools the whole map, so that every cell sees the image.
            image_norm: normalise that branch; detectron2 does not, as BatchNorm cannot train on one value.
            pool: (rows, columns), in cells, of a window that this branch averages in place of the whole map: the map of
                a training crop, in detectron2; larger images then get the mean of their surroundings.
            project_kernel_size: of the projection, odd; 3 in mmsegmentation.
            dropout: probability after the projection (0.1 in the released DeepLab code, 0.5 in torchvision's).

        Raises:
            ValueError: no rate or one below 1, a window or kernel that is none; in forward, image pooling under
                training BatchNorm at batch 1.
        """
        super().__init__()
        if not rates or any(rate < 1 for rate in rates):
            raise ValueError(f"ASPP takes one or more rates >= 1, not {list(rates)}")
        if pool is not None and (len(pool) != 2 or min(pool) < 1):
            raise ValueError(f"ASPP takes pool None or (rows, columns) >= 1, not {list(pool)}")
        if project_kernel_size < 1 or project_kernel_size % 2 == 0:
            raise ValueError(f"ASPP takes an odd project_kernel_size, not {project_kernel_size}")
        self.pool = None if pool is None else tuple(pool)
        self.point = ConvNormAct(in_channels, channels, kernel_size=1, norm=norm)
        self.atrous = nn.ModuleList(conv(in_channels, channels, dilation=rate, norm=norm) for rate in rates)
        self.image = None
        if image_pooling:
            self.image = ConvNormAct(in_channels, channels, kernel_size=1, norm=norm if image_norm else None)
        width = channels * (1 + len(rates) + image_pooling)
        self.project = ConvNormAct(width, channels, kernel_size=project_kernel_size, norm=norm)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C', h, w)."""
        branches = [self.point(x), *(conv(x) for conv in self.atrous)]  # each (N, C', h, w)
        if self.image is not None:
            branches.append(self._of_image(self.image, x))
        return self.dropout(self.project(torch.cat(branches, dim=1)))

    def _of_image(self, conv: nn.Module, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C', h, w): one value for the whole map, or one for each place of the window, resized."""
        size = x.shape[-2:]
        if self.pool is None:
            return conv(x.mean((2, 3), keepdim=True)).expand(-1, -1, *size)
        if exporting():  # pooling takes no window of a size that varies
            (top, rows), (left, columns) = (
                window_matrices(cells, side, x) for cells, side in zip(self.pool, size, strict=True)
            )
            return rows @ conv(top @ x @ left.mT) @ columns.mT
        window = [min(cells, side) for cells, side in zip(self.pool, size, strict=True)]
        return resize_to(conv(F.avg_pool2d(x, window, stride=1)), size)
