"""Any model of timm that gives feature maps (Wightman, PyTorch Image Models, 2019), by its name."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

from torch import Tensor

from seg_ext.layers import FeatureSpec

from .contract import Encoder


class TimmEncoder(Encoder):
    """Maps "stage1", "stage2", ... as timm's `feature_info` lists them, with its channels and strides."""

    def __init__(
        self, in_channels: int = 3, *, name: str, pretrained: bool = False, output_stride: int | None = None
    ) -> None:
        """Build the model without its classifier.

        Args:
            in_channels: C of the image.
            name: of a timm model, as in "resnet18" or "mobilenetv3_small_100".
            pretrained: load the weights that timm names for it (from the network, once).
            output_stride: later strides become dilations, where the model can; None leaves its own.

        Raises:
            ValueError: timm is not installed, has no such model, or cannot build it so.
        """
        super().__init__()
        try:
            import timm
        except ImportError as error:
            raise ValueError("TimmEncoder needs timm: pip install 'seg-ext[timm]'") from error
        if not timm.is_model(name):
            near = get_close_matches(name, timm.list_models(), n=1)
            raise ValueError(f"timm has no model {name!r}" + (f"; did you mean {near[0]}?" if near else ""))
        options: dict[str, Any] = {} if output_stride is None else {"output_stride": output_stride}
        try:
            self.model = timm.create_model(
                name, pretrained=pretrained, features_only=True, in_chans=in_channels, **options
            )
        except (TypeError, AttributeError, NotImplementedError, AssertionError, RuntimeError, OSError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"timm cannot build {name} with pretrained={pretrained}, output_stride={output_stride}: {reason}"
            ) from error
        self.in_channels = in_channels
        info: Any = self.model.feature_info
        self.specs = {
            f"stage{i}": FeatureSpec(channels, stride)
            for i, (channels, stride) in enumerate(zip(info.channels(), info.reduction(), strict=True), start=1)
        }
        self.channels_last = str(getattr(self.model, "output_fmt", "NCHW")).endswith("NHWC")

    def walk(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield every map of the image x (N, C, H, W) with its name."""
        for name, features in zip(self.specs, self.model(x), strict=True):
            yield name, features.permute(0, 3, 1, 2) if self.channels_last else features
