"""Semantic FPN: the semantic branch of Panoptic FPN (Kirillov et al., 2019), alone or with a pyramid of its own."""

from __future__ import annotations

from collections.abc import Mapping
from math import log2

import torch
from torch import Tensor, nn

from seg_ext.layers import ConvNormAct, FeatureSpec, Norm, resize_to, score_layer

from .contract import check_dropout, check_features, check_sizes

MERGES = ("sum", "cat")


class SemanticFPN(nn.Module):
    """Each level convolved and doubled until it has the shallowest one's size, then merged and scored (figure 3).

    On an FPN's p2 to p5 with GroupNorm the defaults are detectron2's head. With `pyramid` the top-down path is built
    here, on a backbone's own features (Lin et al., 2017, without the 3x3 convolutions behind its sums).
    """

    def __init__(
        self,
        in_features: dict[str, FeatureSpec],
        num_classes: int,
        *,
        norm: Norm | None,
        channels: int = 128,
        pyramid: int | None = None,
        merge: str = "sum",
        align_corners: bool = False,
        dropout: float = 0.0,
    ) -> None:
        """Build the branches and, with `pyramid`, what feeds them.

        Args:
            in_features: one or more, strides a power of 2 apart.
            num_classes: K.
            norm: from channels to a layer, or None.
            channels: width of every branch.
            pyramid: width of a top-down path over the features; None reads them as they are.
            merge: of the branches, one of MERGES: their sum, or "cat", shallow to deep (an option of
                segmentation_models_pytorch, decoder_merge_policy, which begins with the deepest).
            align_corners: of the doubling; True in segmentation_models_pytorch.
            dropout: probability before the classifier.

        Raises:
            ValueError: an argument outside what is said here.
        """
        super().__init__()
        check_features("SemanticFPN", in_features, num_classes)
        check_sizes("SemanticFPN", "channels and pyramid", (channels, pyramid or 1))
        check_dropout("SemanticFPN", dropout)
        if merge not in MERGES:
            raise ValueError(f"SemanticFPN takes merge of {list(MERGES)}, not {merge!r}")
        self.merge = merge
        self.out_stride = next(iter(in_features.values())).stride
        self.strides = {name: spec.stride for name, spec in in_features.items()}
        steps = {name: log2(stride / self.out_stride) for name, stride in self.strides.items()}
        if any(step % 1 for step in steps.values()):
            raise ValueError(f"SemanticFPN takes strides a power of 2 apart, not {self.strides}")
        self.align_corners = align_corners
        widths = {name: pyramid or spec.channels for name, spec in in_features.items()}
        self.laterals = nn.ModuleDict(
            {name: nn.Conv2d(spec.channels, pyramid, 1) for name, spec in in_features.items()} if pyramid else {}
        )
        self.branches = nn.ModuleDict()
        for name, step in steps.items():
            ins = [widths[name], *[channels] * (max(int(step), 1) - 1)]
            self.branches[name] = nn.ModuleList(ConvNormAct(width, channels, norm=norm) for width in ins)
        self.dropout = nn.Dropout(dropout)
        self.score = score_layer(channels * (len(in_features) if merge == "cat" else 1), num_classes)

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{name: (N, C, H/s, W/s)} -> {"logits": (N, K, H/out_stride, W/out_stride)}."""
        maps = self._top_down(features) if self.laterals else features
        sizes = {stride: maps[name].shape[-2:] for name, stride in self.strides.items()}
        branches = []
        for name, convs in self.branches.items():
            x, stride = maps[name], self.strides[name]
            for conv in convs.children():
                x = conv(x)
                if stride > self.out_stride:
                    stride //= 2
                    size = sizes.get(stride, [2 * side for side in x.shape[-2:]])
                    x = resize_to(x, size, align_corners=self.align_corners)
            branches.append(x)  # (N, channels, H/out_stride, W/out_stride)
        merged = torch.cat(branches, dim=1) if self.merge == "cat" else sum(branches)
        return {"logits": self.score(self.dropout(merged))}

    def _top_down(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{name: (N, C, h, w)} -> {name: (N, pyramid, h, w)}: each 1x1 lateral plus the deeper level's sum, resized."""
        maps: dict[str, Tensor] = {}
        above = None
        for name in reversed(self.strides):
            x = self.laterals[name](features[name])
            above = x if above is None else x + resize_to(above, x.shape[-2:], mode="nearest")
            maps[name] = above
        return maps
