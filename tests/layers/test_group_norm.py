"""group_norm: the group count, and life at one value per channel."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from seg_ext.layers import group_norm


@given(st.integers(2, 2100))
def test_groups_are_the_largest_divisor_up_to_32_that_leaves_two_channels(channels):
    allowed = [g for g in range(1, 33) if channels % g == 0 and channels // g >= 2]
    assert group_norm(channels).num_groups == max(allowed)


@pytest.mark.parametrize("channels, groups", [(16, 8), (32, 16), (48, 24), (64, 32), (256, 32), (728, 28)])
def test_known_group_counts(channels, groups):
    assert group_norm(channels).num_groups == groups


@pytest.mark.parametrize("channels", [2, 21, 32, 48])
def test_a_map_of_one_cell_at_batch_one_is_normalised_and_not_zero(channels):
    out = group_norm(channels)(torch.randn(1, channels, 1, 1))
    assert out.abs().max() > 0.1


def test_a_single_channel_is_refused():
    with pytest.raises(ValueError, match="at least 2 channels, not 1"):
        group_norm(1)
