"""ASPP against torchvision's, its variants, and its refusals."""

import pytest
import torch
from torch import nn
from torchvision.models.segmentation.deeplabv3 import ASPP as TorchvisionASPP

from seg_ext.layers import ASPP, ConvNormAct, SeparableConv, group_norm


def test_aspp_equals_torchvisions_with_the_same_weights():
    theirs = TorchvisionASPP(24, [2, 4, 6], 16).eval()
    for value in theirs.state_dict().values():
        if value.is_floating_point():
            value.uniform_(0.1, 1)
    ours = ASPP(24, 16, rates=(2, 4, 6), norm=nn.BatchNorm2d).eval()
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    x = torch.randn(2, 24, 9, 7)
    torch.testing.assert_close(ours(x), theirs(x))


def test_image_pooling_makes_every_cell_depend_on_every_other():
    x = torch.randn(1, 4, 12, 12)
    moved = x.clone()
    moved[..., -1, -1] += 100
    for pooled in (True, False):
        torch.manual_seed(0)
        aspp = ASPP(4, 16, rates=(1, 2), norm=None, image_pooling=pooled)
        assert torch.equal(aspp(x)[..., 0, 0], aspp(moved)[..., 0, 0]) is not pooled


def test_the_dropout_follows_the_projection_and_only_trains():
    aspp = ASPP(4, 8, rates=(1,), norm=None, dropout=0.5)
    nn.init.zeros_(aspp.project.conv.weight)
    nn.init.ones_(aspp.project.conv.bias)
    x = torch.randn(1, 4, 16, 16)
    assert sorted(aspp(x).unique().tolist()) == [0, 2]
    assert aspp.eval()(x).unique().tolist() == [1]


def test_separable_branches_cost_less():
    aspps = (ASPP(64, 32, rates=(6,), norm=None, conv=conv) for conv in (ConvNormAct, SeparableConv))
    dense, separable = (sum(p.numel() for p in aspp.parameters()) for aspp in aspps)
    assert dense - separable == 9 * 64 * 32 + 32 - (9 * 64 + 64 + 64 * 32 + 32)


def test_image_pooling_under_training_batch_norm_at_batch_one_is_refused():
    x = torch.randn(1, 4, 5, 5)
    with pytest.raises(ValueError, match='use NORM "GN"'):
        ASPP(4, 8, rates=(1,), norm=nn.BatchNorm2d)(x)
    assert ASPP(4, 8, rates=(1,), norm=group_norm)(x).shape == (1, 8, 5, 5)
    assert ASPP(4, 8, rates=(1,), norm=nn.BatchNorm2d, image_pooling=False)(x).shape == (1, 8, 5, 5)


@pytest.mark.parametrize("size", [(9, 14), (4, 6), (3, 20), (1, 1)])
def test_a_graph_averages_the_windows_that_eager_does(size, monkeypatch):
    torch.manual_seed(0)
    aspp = ASPP(4, 8, rates=(1,), norm=nn.BatchNorm2d, image_norm=False, pool=(4, 6)).eval()
    x = torch.randn(2, 4, *size)
    eager = aspp(x)
    monkeypatch.setattr("seg_ext.layers.aspp.exporting", lambda: True)
    torch.testing.assert_close(aspp(x), eager)


def test_a_rate_below_one_is_refused():
    with pytest.raises(ValueError, match=r"rates >= 1, not \[6, 0\]"):
        ASPP(4, 8, rates=(6, 0), norm=None)
