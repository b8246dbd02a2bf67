"""Where a map's cells lie in the image, found by gradient."""

from collections.abc import Callable

import pytest
import torch

from seg_ext.encoders import Encoder


@pytest.fixture
def reach() -> Callable[[Encoder, str, int], tuple[float, int, int]]:
    """Centre and size, in rows of pixels, of what the middle cell of a map sees, and that cell's row.

    Weights become positive, so that every pixel a cell can see gets a gradient.
    """

    def probe(encoder: Encoder, name: str, side: int) -> tuple[float, int, int]:
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter.fill_(0.01 if parameter.dim() > 1 else 0)
        x = torch.zeros(1, encoder.in_channels, side, side, dtype=torch.float64, requires_grad=True)
        out = encoder.double().eval()(x + 1, [name])[name]
        row = out.shape[2] // 2
        out[0, :, row, out.shape[3] // 2].sum().backward()
        rows = x.grad.abs().sum((0, 1, 3)).nonzero().flatten()
        return (rows[0] + rows[-1]).item() / 2, (rows[-1] - rows[0] + 1).item(), row

    return probe


@pytest.fixture
def mean_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    """Max pools as mean pools: the same windows, but a gradient to every pixel of them."""

    def pool(x, kernel, stride=None, padding=0, *, ceil_mode=False):
        return torch.nn.functional.avg_pool2d(x, kernel, stride, padding, ceil_mode, count_include_pad=False)

    monkeypatch.setattr(torch.nn.functional, "max_pool2d", pool)
