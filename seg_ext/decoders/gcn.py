"""GCN: global convolutional network, "Large Kernel Matters" (Peng et al., 2017)."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from seg_ext.layers import FeatureSpec, Norm, bilinear_transposed_conv, resize_to

from .contract import check_features, check_sizes

UPS = ("bilinear", "transpose")


class GlobalConv(nn.Module):
    """A dense k x k kernel as two separable paths, summed: (N, C, h, w) -> (N, K, h, w) (figure 2 b).

    One path is a k x 1 convolution then a 1 x k one, the other the reverse; nothing between is nonlinear.
    """

    def __init__(self, in_channels: int, out_channels: int, *, kernel_size: int) -> None:
        """Build both paths from C = `in_channels` to K = `out_channels`, with an odd `kernel_size` in cells."""
        super().__init__()
        self.tall_wide, self.wide_tall = (
            nn.Sequential(
                nn.Conv2d(in_channels, out_channels, first, padding="same"),
                nn.Conv2d(out_channels, out_channels, first[::-1], padding="same"),
            )
            for first in ((kernel_size, 1), (1, kernel_size))
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, K, h, w)."""
        return self.tall_wide(x) + self.wide_tall(x)


class BoundaryRefinement(nn.Module):
    """3x3, ReLU, 3x3, added to the input: (N, K, h, w) -> (N, K, h, w) (figure 2 c)."""

    def __init__(self, channels: int) -> None:
        """Build both convolutions of K = `channels`."""
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, K, h, w) -> (N, K, h, w)."""
        return x + self.conv2(F.relu(self.conv1(x)))


class Up(nn.Module):
    """Upsampling by an integer: (N, K, h, w) -> (N, K, factor * h, factor * w)."""

    def __init__(self, channels: int, factor: int, *, up: str) -> None:
        """Build for K = `channels`: "transpose" (kernel 2 * factor, starts bilinear) or "bilinear"."""
        super().__init__()
        self.factor = factor
        learn = up == "transpose" and factor > 1
        self.conv = bilinear_transposed_conv(channels, factor, learn=True) if learn else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, K, h, w) -> (N, K, factor * h, factor * w)."""
        if self.conv is None:
            return resize_to(x, [self.factor * side for side in x.shape[-2:]])
        border = self.factor // 2
        return self.conv(x)[..., border:-border, border:-border]


class GCN(nn.Module):
    """Global convolutions score every feature; from the deepest up they are upsampled, added and refined (figure 2 a).

    On res2 to res5 (strides 4 to 32) the logits have stride 1 and nine refinements.
    """

    def __init__(
        self,
        in_features: dict[str, FeatureSpec],
        num_classes: int,
        *,
        norm: Norm | None = None,
        kernel_size: int = 15,
        up: str = "bilinear",
        final_ups: int = 2,
    ) -> None:
        """Build one score a feature and the upsampling between them.

        Args:
            in_features: one or more, strides equal or an even factor apart where `up` is "transpose".
            num_classes: K, also the width of everything behind the global convolutions.
            norm: not used, no part of this decoder is normalised.
            kernel_size: k, odd; about the deepest map's side (15 for images of 512, 25 for 800).
            up: "bilinear", or "transpose" for learned transposed convolutions (4 x 4, stride 2).
            final_ups: refined doublings of the size behind the shallowest feature.

        Raises:
            ValueError: an argument outside what is said here.
        """
        super().__init__()
        check_features("GCN", in_features, num_classes)
        check_sizes("GCN", "kernel_size", (kernel_size,))
        if kernel_size % 2 == 0:
            raise ValueError(f"GCN takes an odd kernel_size, not {kernel_size}")
        if up not in UPS:
            raise ValueError(f"GCN takes up of {list(UPS)}, not {up!r}")
        self.names = list(reversed(in_features))
        strides = [in_features[name].stride for name in self.names]
        if final_ups < 0 or strides[-1] % 2**final_ups:
            raise ValueError(f"GCN takes final_ups that divide stride {strides[-1]} to 1 or more, not {final_ups}")
        self.out_stride = strides[-1] // 2**final_ups
        self.scores = nn.ModuleDict(
            {
                name: nn.Sequential(
                    GlobalConv(in_features[name].channels, num_classes, kernel_size=kernel_size),
                    BoundaryRefinement(num_classes),
                )
                for name in self.names
            }
        )
        factors = [deep // shallow for deep, shallow in zip(strides, strides[1:], strict=False)]
        self.ups = nn.ModuleList(Up(num_classes, factor, up=up) for factor in (*factors, *[2] * final_ups))
        self.refine = nn.ModuleList(BoundaryRefinement(num_classes) for _ in self.ups)

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{name: (N, C, h, w)} -> {"logits": (N, K, h * 2**final_ups, w * 2**final_ups)}, (h, w) the shallowest's."""
        x, *skips = (self.scores[name](features[name]) for name in self.names)  # each (N, K, h, w)
        for i, (up, refine) in enumerate(zip(self.ups, self.refine, strict=True)):
            x = up(x)
            if i < len(skips):
                x = resize_to(x, skips[i].shape[-2:]) + skips[i]
            x = refine(x)
        return {"logits": x}
