"""UNet++: a triangle of nested U-Nets with dense skips (Zhou et al., 2018; TMI 2020), on any encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import log

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seg_ext.layers import FeatureSpec, Norm, score_layer

from .contract import check_dropout, check_features, check_sizes
from .unet import UPS, UpBlock


def mean_probability(logits: list[Tensor]) -> Tensor:
    """Logits (N, K, h, w) of the mean probability of several logits: its log, for one channel its logit."""
    if len(logits) == 1:
        return logits[0]
    stack = torch.stack(logits)  # (heads, N, K, h, w)
    if stack.shape[2] == 1:
        return F.logsigmoid(stack).logsumexp(0) - F.logsigmoid(-stack).logsumexp(0)
    return stack.log_softmax(2).logsumexp(0) - log(len(logits))


class UNetPP(nn.Module):
    """Node X(i, j) convolves X(i, 0), ..., X(i, j - 1) and the upsampled X(i + 1, j - 1) (equation 1).

    X(i, 0) is the feature of level i, from the shallowest, and gives row i its width. On plain features of 32, 64, 128,
    256, 512 channels at strides 1 to 16, without norm, the defaults are the released network: two 3x3 convolutions a
    node, each followed by dropout, and a classifier on each of X(0, 1), ..., X(0, depth).

    A shallower network is a part of a deeper one: its parameters have the same names, and with the same values its
    logits are those of that branch.
    """

    def __init__(
        self,
        in_features: dict[str, FeatureSpec],
        num_classes: int,
        *,
        norm: Norm | None,
        depth: int | None = None,
        deep_supervision: bool = True,
        inference: str | int = "average",
        up: str = "transpose",
        skip_first: bool = True,
        channels: Sequence[int] | None = None,
        extra_ups: Sequence[int] = (),
        dropout: float = 0.5,
        convs: int = 2,
        score_kernel_size: int = 1,
    ) -> None:
        """Build the nodes of the triangle down to `depth` and their classifiers, nothing else.

        Args:
            in_features: two or more; only the `depth` + 1 shallowest are read.
            num_classes: K.
            norm: from channels to a layer, or None.
            depth: rows below the first, 1 to the number of features - 1, which is what None takes: 1 to 4 are the
                paper's pruned networks L1 to L4.
            deep_supervision: a classifier on every X(0, j), not on X(0, depth) alone.
            inference: "average", the mean probability of all classifiers, or the j whose branch alone is evaluated.
            up: how X(i + 1, j - 1) is upsampled: "transpose" (bias, to the width of row i), "bilinear" or "nearest".
            skip_first: in a node's concatenation its row comes first; else it comes last, X(i, j - 1) to X(i, 0).
            channels: widths of the deepest nodes X(depth - 1, 1), ..., X(0, depth), on which the result rests; None
                takes those of their rows.
            extra_ups: width of each further level, which doubles the size of X(0, depth) and joins nothing; only
                without deep supervision.
            dropout: probability after each convolution.
            convs: 3x3 convolutions a node.
            score_kernel_size: of the classifiers, odd; 3 in segmentation_models_pytorch.

        Raises:
            ValueError: an argument outside what is said here.
        """
        super().__init__()
        check_features("UNetPP", in_features, num_classes, at_least=2)
        sizes = (*(channels or ()), *extra_ups, convs, score_kernel_size)
        check_sizes("UNetPP", "channels, extra_ups, convs and score_kernel_size", sizes)
        check_dropout("UNetPP", dropout)
        if score_kernel_size % 2 == 0:
            raise ValueError(f"UNetPP takes an odd score_kernel_size, not {score_kernel_size}")
        deepest = len(in_features) - 1
        self.depth = deepest if depth is None else depth
        if not isinstance(self.depth, int) or not 1 <= self.depth <= deepest:
            raise ValueError(f"UNetPP takes a depth of 1 to {deepest} with {deepest + 1} features, not {depth}")
        branches = list(range(1, self.depth + 1)) if deep_supervision else [self.depth]
        if inference not in ("average", *branches) or isinstance(inference, bool):
            raise ValueError(f"UNetPP takes inference 'average' or one of the branches {branches}, not {inference!r}")
        if up not in UPS:
            raise ValueError(f"UNetPP takes up of {list(UPS)}, not {up!r}")
        self.skip_first = skip_first
        self.inference = None if inference == "average" else int(inference)
        self.names = list(in_features)[: self.depth + 1]
        rows = [in_features[name] for name in self.names]
        widths = [row.channels for row in rows[-2::-1]] if channels is None else list(channels)
        if len(widths) != self.depth:
            raise ValueError(f"UNetPP takes one of channels for each of {self.depth} rows, not {widths}")
        if (extra_ups and deep_supervision) or rows[0].stride % 2 ** len(extra_ups):
            raise ValueError(
                f"UNetPP takes extra_ups without deep supervision that divide stride {rows[0].stride}, "
                f"not {list(extra_ups)} with deep_supervision={deep_supervision}"
            )
        self.out_stride = rows[0].stride // 2 ** len(extra_ups)
        self.nodes = nn.ModuleDict()
        for j in range(1, self.depth + 1):
            for i in range(self.depth + 1 - j):
                deepest = i + j == self.depth
                self.nodes[f"x{i}{j}"] = UpBlock(
                    widths[j - 2] if deepest and j > 1 else rows[i + 1].channels,
                    widths[j - 1] if deepest else rows[i].channels,
                    skip_channels=j * rows[i].channels,
                    factor=rows[i + 1].stride // rows[i].stride,
                    up=up,
                    convs=convs,
                    skip_first=skip_first,
                    norm=norm,
                    dropout=dropout,
                )
        self.extra = nn.ModuleList(
            UpBlock(a, b, skip_channels=0, factor=2, up=up, convs=convs, skip_first=True, norm=norm, dropout=dropout)
            for a, b in pairwise([widths[-1], *extra_ups])
        )
        outs = {j: rows[0].channels for j in branches} | {self.depth: [widths[-1], *extra_ups][-1]}
        self.heads = nn.ModuleDict(
            {f"x0{j}": score_layer(outs[j], num_classes, kernel_size=score_kernel_size) for j in branches}
        )

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{name: (N, C, h, w)} -> "logits" (N, K, h, w) and, in training, "aux_x01", ..., at the shallowest's size."""
        branch = None if self.training else self.inference
        depth = branch or self.depth
        rows = [[features[name]] for name in self.names[: depth + 1]]  # rows[i][j] is X(i, j)
        for j in range(1, depth + 1):
            for i in range(depth + 1 - j):
                row = rows[i] if self.skip_first else rows[i][::-1]
                rows[i].append(self.nodes[f"x{i}{j}"](rows[i + 1][j - 1], torch.cat(row, dim=1)))
        for block in self.extra:
            rows[0][-1] = block(rows[0][-1], None)
        if branch:
            return {"logits": self.heads[f"x0{branch}"](rows[0][branch])}
        *aux, (_, last) = scores = [(name, head(rows[0][int(name[2:])])) for name, head in self.heads.items()]
        if self.training:
            return {"logits": last, **{f"aux_{name}": x for name, x in aux}}
        return {"logits": mean_probability([x for _, x in scores])}
