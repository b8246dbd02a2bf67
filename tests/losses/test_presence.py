"""Presence against its definition, and what does not count."""

import math

import pytest
import torch

from seg_ext.losses import presence


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_is_binary_cross_entropy_on_whether_there_is_foreground() -> None:
    logits = torch.tensor([[0.3, -1.2], [2.0, 0.5]], dtype=torch.float64).view(2, 2, 1, 1)
    target = torch.zeros(2, 3, 3, dtype=torch.long)
    target[1, 0, 0] = 4
    absent = -(math.log(sigmoid(0.3)) + math.log(1 - sigmoid(-1.2))) / 2
    there = -(math.log(1 - sigmoid(2.0)) + math.log(sigmoid(0.5))) / 2
    assert presence(logits, target, ignore=255).item() == pytest.approx((absent + there) / 2)


def test_ignored_pixels_are_no_foreground_and_ignored_images_do_not_count() -> None:
    logits = torch.randn(2, 2, 1, 1, requires_grad=True)
    target = torch.tensor([[[0, 255]], [[255, 255]]])
    loss = presence(logits, target, ignore=255)
    assert torch.isclose(loss, presence(logits[:1], torch.zeros(1, 1, 2, dtype=torch.long), ignore=255))
    loss.backward()
    assert logits.grad[0].ne(0).all() and logits.grad[1].eq(0).all()


def test_all_ignored_is_zero() -> None:
    logits = torch.randn(1, 2, 1, 1, requires_grad=True)
    loss = presence(logits, torch.full((1, 2, 2), 255), ignore=255)
    loss.backward()
    assert loss.item() == 0 and logits.grad.eq(0).all()
