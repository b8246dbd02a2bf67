"""BatchNorm of an eval-mode network folded into the convolution before it."""

from __future__ import annotations

from detectron2.layers import FrozenBatchNorm2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from seg_ext.layers.conv import ConvNormAct


def fold_batch_norm(model: nn.Module) -> int:
    """Fold every BatchNorm whose convolution the structure tells, in place; the outputs stay but for rounding.

    These are ConvNormAct's, those of detectron2's convolutions, and those that follow one in a Sequential. Any in
    training, without statistics, or elsewhere (timm's) stay as they are.

    Returns:
        How many were folded.
    """
    count = 0
    for module in list(model.modules()):
        if isinstance(module, ConvNormAct) and _fold(module.conv, module.norm):
            module.norm = None
            count += 1
        elif isinstance(module, nn.Conv2d) and _fold(module, getattr(module, "norm", None)):
            module.norm = None  # type: ignore[assignment]
            count += 1
        elif isinstance(module, nn.Sequential):
            names = list(module._modules)
            for first, second in zip(names, names[1:], strict=False):
                if type(module._modules[first]) is nn.Conv2d and _fold(module._modules[first], module._modules[second]):
                    module._modules[second] = nn.Identity()
                    count += 1
    return count


def _fold(conv: nn.Module | None, norm: nn.Module | None) -> bool:
    if not isinstance(conv, nn.Conv2d) or not isinstance(norm, _BatchNorm | FrozenBatchNorm2d):
        return False
    mean, variance = norm.running_mean, norm.running_var
    if (isinstance(norm, _BatchNorm) and norm.training) or mean is None or variance is None:
        return False
    factor = (variance.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        factor = factor * norm.weight.double()
    shift = -mean.double() * factor if norm.bias is None else norm.bias.double() - mean.double() * factor
    if conv.bias is not None:
        shift = shift + conv.bias.double() * factor
    conv.weight = _as(conv.weight.double() * factor[:, None, None, None], conv.weight)
    conv.bias = _as(shift, conv.weight)
    return True


def _as(values: Tensor, like: Tensor) -> nn.Parameter:
    return nn.Parameter(values.detach().to(like.dtype), requires_grad=False)
