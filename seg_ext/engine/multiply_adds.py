"""Multiply-adds of a network through fvcore, on the meta device."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from fvcore.nn import FlopCountAnalysis, jit_handles
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


def count_multiply_adds(network: nn.Module, image: Tensor) -> FlopCountAnalysis:
    """fvcore's count of one pass of the image (N, C, H, W), convolutions and matrix products alone, silent.

    Any device; on the meta device nothing is computed. The network returns a tensor or a tuple of them.
    """
    counts = FlopCountAnalysis(network, image).clear_op_handles().set_op_handle(**_HANDLES)
    counts.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    with _TracedConvolutions():
        counts.total()
    return counts


def uncounted_operators(counts: FlopCountAnalysis) -> dict[str, int]:
    """How often each operator was called that counts nothing; in-place ones under the name of the others."""
    calls: Counter[str] = Counter()
    for name, number in counts.unsupported_ops().items():
        calls[name.split("::")[-1].rstrip("_")] += number
    return dict(sorted(calls.items()))


def _matmul(inputs: list[Any], outputs: list[Any]) -> int:
    """fvcore's own handle misses the batch of the second factor where the first has none."""
    return math.prod(jit_handles.get_shape(outputs[0])) * jit_handles.get_shape(inputs[0])[-1]


_HANDLES: dict[str, Callable[..., Any]] = {
    "aten::_convolution": jit_handles.conv_flop_jit,
    "aten::linear": jit_handles.linear_flop_jit,
    "aten::addmm": jit_handles.addmm_flop_jit,
    "aten::bmm": jit_handles.bmm_flop_jit,
    "aten::einsum": jit_handles.einsum_flop_jit,
    "aten::matmul": _matmul,
    "aten::mm": _matmul,
}


class _TracedConvolutions(TorchFunctionMode):
    """Calls the operator that tracing records on the CPU, where the meta device's own would leave no trace."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        trace = _TRACED.get(func, func)
        return trace(*args, **(kwargs or {}))


def _traced(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    transposed: bool = False,
    output_padding: Any = 0,
) -> Tensor:
    def each(value: Any) -> list[int]:
        return [value] * len(kernel) if isinstance(value, int) else list(value)

    kernel = weight.shape[2:]
    if isinstance(padding, str):
        padding = [rate * (k - 1) // 2 * (padding == "same") for rate, k in zip(each(dilation), kernel, strict=True)]
    steps = (each(stride), each(padding), each(dilation), transposed, each(output_padding))
    return torch._convolution(input, weight, bias, *steps, groups, False, False, False, False)


def _traced_transposed(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    steps = (stride, padding, dilation, groups)
    return _traced(input, weight, bias, *steps, transposed=True, output_padding=output_padding)


_TRACED: dict[Any, Callable[..., Tensor]] = {
    torch.conv1d: _traced,
    torch.conv2d: _traced,
    torch.conv_transpose2d: _traced_transposed,
}
