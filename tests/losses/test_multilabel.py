"""One-against-the-rest losses: ids and maps of every class, torch and smp."""

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch

from seg_ext.losses import cross_entropy, dice, multilabel_cross_entropy, multilabel_dice

IGNORE = 255


def problem() -> tuple[torch.Tensor, torch.Tensor]:
    """Scores, and maps of three classes that overlap, with pixels that are ignored for one class alone."""
    generator = torch.Generator().manual_seed(6)
    target = torch.randint(0, 2, (2, 3, 5, 7), generator=generator)
    target[0, 0, :2] = target[1, 2, 3] = IGNORE
    return torch.randn(2, 3, 5, 7, generator=generator, dtype=torch.float64), target


@pytest.mark.parametrize("pos_weight", [None, [1.0, 2.0, 0.5]])
def test_is_the_mean_binary_cross_entropy_of_what_is_labelled(pos_weight: list[float] | None) -> None:
    logits, target = problem()
    valid = target != IGNORE
    peer = torch.nn.BCEWithLogitsLoss(reduction="none", pos_weight=torch.tensor(pos_weight or [1.0] * 3).view(-1, 1, 1))
    want = peer(logits, torch.where(valid, target, 0).double())[valid].mean()
    logits.requires_grad_()
    value = multilabel_cross_entropy(logits, target, ignore=IGNORE, pos_weight=pos_weight)
    value.backward()
    assert torch.isclose(value, want) and logits.grad[~valid].eq(0).all()


def test_dice_is_the_mean_over_classes() -> None:
    logits, target = problem()
    each = []
    for c in range(3):
        keep = (target[:, c] != IGNORE).numpy()
        p, g = logits[:, c].sigmoid().numpy()[keep], target[:, c].numpy()[keep]
        each.append(1 - (2 * (p * g).sum() + 1) / (p.sum() + g.sum() + 1))
    assert multilabel_dice(logits, target, ignore=IGNORE).item() == pytest.approx(np.mean(each))


def test_dice_equals_smp() -> None:
    logits, target = problem()
    want = smp.losses.DiceLoss("multilabel", smooth=0.0, ignore_index=IGNORE)(logits, target)
    assert torch.isclose(multilabel_dice(logits, target, ignore=IGNORE, smooth=0), want)


@pytest.mark.parametrize("loss", [multilabel_cross_entropy, multilabel_dice])
def test_ids_stand_for_maps_of_one_class_each(loss: torch.nn.Module) -> None:
    logits, _ = problem()
    ids = torch.randint(0, 3, (2, 5, 7))
    ids[0, 0] = IGNORE
    maps = (ids[:, None] == torch.arange(3).view(-1, 1, 1)).long().masked_fill((ids == IGNORE)[:, None], IGNORE)
    assert torch.isclose(loss(logits, ids, ignore=IGNORE), loss(logits, maps, ignore=IGNORE))


def test_one_channel_is_the_binary_loss() -> None:
    logits, _ = problem()
    ids = torch.randint(0, 2, (2, 5, 7))
    ids[0, 0] = IGNORE
    for ours, binary in ((multilabel_cross_entropy, cross_entropy), (multilabel_dice, dice)):
        assert torch.isclose(ours(logits[:, :1], ids, ignore=IGNORE), binary(logits[:, :1], ids, ignore=IGNORE))
