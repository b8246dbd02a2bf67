"""Memory that a loss and its gradient take beyond the logits, next to cross-entropy's."""

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from seg_ext.losses import LOSSES, cross_entropy

SORTED_OR_BLURRED = {"lovasz_softmax": 3.0, "ms_ssim": 6.0}  # these docstrings say how much
CLASSES, SIDE = 21, 96


class Peak(TorchDispatchMode):
    """The most bytes that the results of operations held at once."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[int, int] = {}
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if id(storage) not in self.held and storage.nbytes():
                    self.held[id(storage)] = storage.nbytes()
                    weakref.finalize(storage, self.held.pop, id(storage))
        self.most = max(self.most, sum(self.held.values()))
        return out


def peak(loss: Callable[..., torch.Tensor], classes: int = CLASSES, side: int = SIDE) -> int:
    logits = torch.randn(1, classes, side, side, requires_grad=True)
    target = torch.randint(0, max(classes, 2), (1, side, side))
    with Peak() as seen:
        loss(logits, target, ignore=255).backward()
    return seen.most


def test_the_count_is_that_of_a_sum_of_squares() -> None:
    logits = 4 * CLASSES * SIDE * SIDE
    assert peak(lambda x, target, ignore: (x * x).sum()) == pytest.approx(3 * logits, rel=0.01)  # x + x


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "lovasz_hinge"])
def test_is_at_most_twice_cross_entropys_or_as_documented(name: str) -> None:
    weight = {"weight": torch.ones(1, SIDE, SIDE)} if "weighted" in name else {}
    assert peak(partial(LOSSES[name], **weight)) <= SORTED_OR_BLURRED.get(name, 2.0) * peak(cross_entropy)
