"""RefineNet: cascaded multi-path refinement (Lin et al., 2017), in the layout of its released PyTorch port.

The port, whose weights are converted from the authors', has four pooling stages and three residual units after them in
every block, where the paper draws fewer.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from seg_ext.layers import FeatureSpec, Norm, resize_to

from .contract import check_dropout, check_features, check_sizes


def conv3x3(in_channels: int, out_channels: int, *, bias: bool = False) -> nn.Conv2d:
    """3x3 convolution: (N, C, h, w) -> (N, C', h, w)."""
    return nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=bias)


class ResidualConvUnit(nn.Module):
    """ReLU, 3x3 (bias), ReLU, 3x3, added to the input: (N, C, h, w) -> (N, C, h, w) (figure 3 b)."""

    def __init__(self, channels: int) -> None:
        """Build both convolutions of C = `channels`."""
        super().__init__()
        self.conv1 = conv3x3(channels, channels, bias=True)
        self.conv2 = conv3x3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C, h, w)."""
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class ChainedPooling(nn.Module):
    """ReLU, then a chain of 5x5 max pooling and 3x3 convolution whose every link is added (figure 3 d)."""

    def __init__(self, channels: int, *, stages: int) -> None:
        """Build `stages` links of C = `channels`."""
        super().__init__()
        self.convs = nn.ModuleList(conv3x3(channels, channels) for _ in range(stages))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C, h, w)."""
        total = link = F.relu(x)
        for conv in self.convs:
            link = conv(F.max_pool2d(link, 5, stride=1, padding=2))
            total = total + link
        return total


class RefineBlock(nn.Module):
    """Reduce a feature, adapt it, fuse it with the deeper block's map, pool, and refine (figure 3 a)."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        deeper_channels: int,
        pool_stages: int,
        output_units: int,
        align_corners: bool,
    ) -> None:
        """Build one block.

        Args:
            in_channels: of the feature.
            channels: of the block.
            deeper_channels: of the deeper block's map, 0 where there is none.
            pool_stages: links of the pooling chain.
            output_units: residual units at the end.
            align_corners: of the resizing of the deeper map.
        """
        super().__init__()
        self.align_corners = align_corners
        self.reduce = conv3x3(in_channels, channels)
        self.adapt = nn.Sequential(*(ResidualConvUnit(channels) for _ in range(2)))
        if deeper_channels:
            self.fuse = conv3x3(channels, channels)
            self.fuse_deeper = conv3x3(deeper_channels, channels)
        self.pool = ChainedPooling(channels, stages=pool_stages)
        self.output = nn.Sequential(*(ResidualConvUnit(channels) for _ in range(output_units)))

    def forward(self, x: Tensor, deeper: Tensor | None) -> Tensor:
        """(N, C, h, w), (N, D, h', w') -> (N, channels, h, w)."""
        x = self.adapt(self.reduce(x))
        if deeper is not None:
            deeper = resize_to(self.fuse_deeper(deeper), x.shape[-2:], align_corners=self.align_corners)
            x = self.fuse(x) + deeper
        return self.output(self.pool(x))


class RefineNet(nn.Module):
    """One block a feature, from the deepest up, then a 3x3 classifier at the shallowest's size."""

    def __init__(
        self,
        in_features: dict[str, FeatureSpec],
        num_classes: int,
        *,
        norm: Norm | None = None,
        channels: int = 256,
        deepest_channels: int = 512,
        pool_stages: int = 4,
        output_units: int = 3,
        dropout: float = 0.5,
        align_corners: bool = True,
    ) -> None:
        """Build the cascade.

        Args:
            in_features: one or more (res2 to res5 in the paper).
            num_classes: K.
            norm: not used, no part of this decoder is normalised.
            channels: of every block but the deepest.
            deepest_channels: of the deepest block.
            pool_stages: links of every block's pooling chain.
            output_units: residual units at the end of every block.
            dropout: probability on the two deepest features and before the classifier.
            align_corners: of the resizing between blocks; True as in the released code.

        Raises:
            ValueError: an argument outside what is said here.
        """
        super().__init__()
        check_features("RefineNet", in_features, num_classes)
        sizes = (channels, deepest_channels, pool_stages, output_units)
        check_sizes("RefineNet", "channels, deepest_channels, pool_stages and output_units", sizes)
        check_dropout("RefineNet", dropout)
        self.names = list(reversed(in_features))
        self.out_stride = in_features[self.names[-1]].stride
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleDict()
        deeper = 0
        for name in self.names:
            width = channels if deeper else deepest_channels
            self.blocks[name] = RefineBlock(
                in_features[name].channels,
                width,
                deeper_channels=deeper,
                pool_stages=pool_stages,
                output_units=output_units,
                align_corners=align_corners,
            )
            deeper = width
        self.score = conv3x3(deeper, num_classes, bias=True)

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{name: (N, C, h, w)} -> {"logits": (N, K, h, w)} at the shallowest feature's size."""
        x = None
        for i, name in enumerate(self.names):
            feature = self.dropout(features[name]) if i < 2 else features[name]
            x = self.blocks[name](feature, x)
        return {"logits": self.score(self.dropout(x))}
