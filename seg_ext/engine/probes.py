"""Peak memory and receptive fields of a model on the meta device, where neither weights nor activations exist."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of every storage that an operation makes, from then until it is freed, on any device.

    What a kernel allocates for itself and frees before it returns is not seen. On the meta device a number read from
    a tensor is 0, so that checks of values pass.

    Attributes:
        live: bytes now.
        peak: the most that ``live`` has been.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def hold(self, tensor: Tensor) -> None:
        """Count a tensor that was there before, such as a parameter; once, however many share its storage."""
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._release, key, size).atexit = False

    def _release(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return torch.zeros((), dtype=args[0].dtype, device="cpu").tolist()
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.hold(leaf)
        return result


class Support(TorchFunctionMode):
    """Runs a net on one channel with positive kernels, so that a pixel has a gradient if and only if a cell sees it.

    Convolutions sum the window that theirs cover, max pools average theirs, norms of the input do nothing (their
    statistics are not counted as seeing), weights are read for their shapes alone and may lie on the meta device.
    Every convolution's output is scaled to a maximum of 1, within which activations rise.

    Attributes:
        pools_with_indices: whether a max pool handed on the places of its maxima.
    """

    def __init__(self, *, last: bool = False) -> None:
        """With ``last``, the maximum of every window lies in its last cell, else in its first."""
        super().__init__()
        self.last = last
        self.pools_with_indices = False
        self._rules: dict[Any, Callable[..., Any]] = {
            torch.conv2d: _convolve,
            torch.conv_transpose2d: _convolve_transposed,
            F.linear: lambda x, weight, bias=None: x.mean(-1, keepdim=True),
            torch.max_pool2d: _pool,
            F.max_pool2d: self._pool,
            F.max_pool2d_with_indices: lambda *args, **kwargs: self._pool(*args, **{**kwargs, "return_indices": True}),
            **dict.fromkeys((F.batch_norm, F.group_norm, F.layer_norm, F.instance_norm), lambda x, *_, **__: x),
        }

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in self._rules:
            return self._rules[func](*args, **kwargs)
        if getattr(func, "__name__", "").strip("_") in ("add", "mul", "radd", "rmul", "iadd", "imul"):
            real = [x for x in args if isinstance(x, Tensor) and not x.is_meta]
            if real and len(real) < sum(isinstance(x, Tensor) for x in args):
                return real[0]  # a learned scale or shift
        return func(*args, **kwargs)

    def _pool(self, input: Tensor, kernel_size: Any, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor, Tensor]:
        if not kwargs.pop("return_indices", False):
            return _pool(input, kernel_size, *args, **kwargs)
        self.pools_with_indices = True
        cells = torch.arange(input[0, 0].numel(), dtype=input.dtype, device=input.device).view(1, 1, *input.shape[2:])
        places = F.max_pool2d(cells if self.last else -cells, kernel_size, *args, **kwargs, return_indices=True)[1]
        return _pool(input, kernel_size, *args, **kwargs), places.expand(*input.shape[:2], -1, -1)


def _scaled(x: Tensor) -> Tensor:
    return x / x.detach().max().clamp(min=torch.finfo(x.dtype).tiny)


def _window(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of x's channels, and a kernel (1, 1, k, k) of ones."""
    return x.mean(1, keepdim=True), x.new_ones(1, 1, *weight.shape[2:])


def _convolve(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    return _scaled(F.conv2d(*_window(input, weight), None, stride, padding, dilation))


def _convolve_transposed(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    kernel = _window(input, weight)
    return _scaled(F.conv_transpose2d(*kernel, None, stride, padding, output_padding, 1, dilation))


def _pool(
    input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> Tensor:
    if dilation in (1, (1, 1), [1, 1]):
        return F.avg_pool2d(input, kernel_size, stride, padding, ceil_mode, count_include_pad=False)
    kernel, step, pad, rate = (_pair(x) for x in (kernel_size, stride or kernel_size, padding, dilation))
    size = F.max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode).shape[2:]
    ends = [
        max((n - 1) * s + r * (k - 1) + 1 - side - p, 0)
        for n, s, r, k, side, p in zip(size, step, rate, kernel, input.shape[2:], pad, strict=True)
    ]
    ones = input.new_ones(input.shape[1], 1, *kernel)
    padded = F.pad(input, (pad[1], ends[1], pad[0], ends[0]))
    return _scaled(F.conv2d(padded, ones, None, step, 0, rate, groups=input.shape[1]))[..., : size[0], : size[1]]


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


Outputs = Callable[[Tensor], Mapping[str, Tensor]]


def receptive_fields(outputs: Outputs, height: int, width: int) -> dict[str, tuple[int, int]]:
    """First and last row of the image that the middle cell of every map sees.

    Args:
        outputs: from an image (1, 1, height, width) to maps by name; run under :class:`Support`.
        height: pixels; a field is exact where it stays inside.
        width: pixels.

    Returns:
        By name, for every floating point map whose middle cell sees a pixel.
    """
    fields: dict[str, tuple[int, int]] = {}
    for last in (False, True):
        image = torch.ones(1, 1, height, width, dtype=torch.float64, requires_grad=True)
        with Support(last=last) as support:
            maps = outputs(image * 1)
        for name, x in maps.items():
            if not x.is_floating_point():
                continue
            cell = x[0, :, x.shape[2] // 2, x.shape[3] // 2].sum()
            (gradient,) = torch.autograd.grad(cell, image, retain_graph=True)
            rows = gradient.abs().sum((0, 1, 3)).nonzero().flatten().tolist()
            if rows:
                first, final = fields.get(name, (rows[0], rows[-1]))
                fields[name] = min(first, rows[0]), max(final, rows[-1])
        if not support.pools_with_indices:
            break
    return fields
