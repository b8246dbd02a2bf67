"""PSPNet: pyramid scene parsing network (Zhao et al., 2017)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from seg_ext.layers import ConvNormAct, FeatureSpec, Norm, conv_head, resize_to, score_layer

from .contract import auxiliary_feature, check_dropout, check_features, check_sizes


def averaging_matrix(bins: int, size: int, like: Tensor) -> Tensor:
    """(bins, size): row b averages the cells floor(b * size / bins) up to ceil((b + 1) * size / bins)."""
    cell = torch.arange(size, device=like.device)
    row = torch.arange(bins, device=like.device)[:, None]
    inside = (cell >= row * size // bins) & (cell < ((row + 1) * size + bins - 1) // bins)
    return (inside / inside.sum(1, keepdim=True)).to(like.dtype)


class PyramidPooling(nn.Module):
    """The map beside its means over grids of several sizes (figure 3): (N, C, h, w) -> (N, 2C, h, w).

    The pooling is that of `adaptive_avg_pool2d`, as two matrix products, which export with any height and width.
    """

    def __init__(
        self, in_channels: int, *, bins: Sequence[int], norm: Norm | None, align_corners: bool, norm_mean: bool = True
    ) -> None:
        """Build one projection a grid.

        Args:
            in_channels: C, at least as many as there are grids.
            bins: cells a side of every grid; each mean is projected to C / len(bins) channels.
            norm: from channels to a layer, or None.
            align_corners: of the resizing back to (h, w).
            norm_mean: normalise the grid of one cell too, which BatchNorm cannot train at batch 1.
        """
        super().__init__()
        width = in_channels // len(bins)
        self.bins = tuple(bins)
        self.align_corners = align_corners
        self.out_channels = in_channels + width * len(bins)
        self.projections = nn.ModuleList(
            ConvNormAct(in_channels, width, kernel_size=1, norm=norm if norm_mean or b > 1 else None) for b in bins
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, out_channels, h, w)."""
        h, w = x.shape[-2:]
        columns = x @ torch.cat([averaging_matrix(b, w, x) for b in self.bins]).mT  # (N, C, h, sum of bins)
        maps = [x]
        for bins, projection, part in zip(self.bins, self.projections, columns.split(self.bins, dim=-1), strict=True):
            pooled = projection(averaging_matrix(bins, h, x) @ part)  # (N, C / len(bins), bins, bins)
            maps.append(resize_to(pooled, (h, w), align_corners=self.align_corners))
        return torch.cat(maps, dim=1)


class PSPNet(nn.Module):
    """Pyramid pooling on the deepest feature, a 3x3 convolution and the classifier; an auxiliary head in training."""

    def __init__(
        self,
        in_features: dict[str, FeatureSpec],
        num_classes: int,
        *,
        norm: Norm | None,
        bins: Sequence[int] = (1, 2, 3, 6),
        channels: int = 512,
        kernel_size: int = 3,
        score_kernel_size: int = 1,
        norm_mean: bool = True,
        dropout: float = 0.1,
        align_corners: bool = True,
        aux: str | bool | None = True,
    ) -> None:
        """Build the pyramid, the head and, with `aux`, the auxiliary head.

        Args:
            in_features: one or more; only the deepest (stride 8 in the paper) and the auxiliary one are read.
            num_classes: K.
            norm: from channels to a layer, or None.
            bins: cells a side of every pooling grid.
            channels: width of the convolution after the pyramid.
            kernel_size: of that convolution, odd; 1 in segmentation_models_pytorch.
            score_kernel_size: of the classifier, odd; 3 in segmentation_models_pytorch.
            norm_mean: normalise the projected mean of the whole map too; segmentation_models_pytorch does not.
            dropout: probability before both classifiers.
            align_corners: of the resizing inside the pyramid; True as in the released code.
            aux: feature under the auxiliary head (a quarter of its channels wide); True means the second deepest.

        Raises:
            ValueError: an argument outside what is said here.
        """
        super().__init__()
        check_features("PSPNet", in_features, num_classes)
        check_sizes("PSPNet", "bins", bins)
        check_sizes("PSPNet", "channels and kernel sizes", (channels, kernel_size, score_kernel_size))
        if not kernel_size % 2 or not score_kernel_size % 2:
            raise ValueError(f"PSPNet takes odd kernel sizes, not {kernel_size} and {score_kernel_size}")
        check_dropout("PSPNet", dropout)
        self.name, deep = list(in_features.items())[-1]
        if not 1 <= len(bins) <= deep.channels:
            raise ValueError(f"PSPNet takes 1 to {deep.channels} bins (one or more channels each), not {list(bins)}")
        self.aux_name = auxiliary_feature("PSPNet", in_features, aux)
        self.out_stride = deep.stride
        self.pyramid = PyramidPooling(
            deep.channels, bins=bins, norm=norm, align_corners=align_corners, norm_mean=norm_mean
        )
        self.head = nn.Sequential(
            ConvNormAct(self.pyramid.out_channels, channels, kernel_size=kernel_size, norm=norm),
            nn.Dropout(dropout),
            score_layer(channels, num_classes, kernel_size=score_kernel_size),
        )
        if self.aux_name is not None:
            width = in_features[self.aux_name].channels
            self.aux_head = conv_head(width, num_classes, channels=max(width // 4, 1), norm=norm, dropout=dropout)

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{name: (N, C, h, w)} -> "logits" (N, K, h, w) and, in training, "aux_<name>", each at its feature's size."""
        out = {"logits": self.head(self.pyramid(features[self.name]))}
        if self.training and self.aux_name is not None:
            out[f"aux_{self.aux_name}"] = self.aux_head(features[self.aux_name])
        return out
