"""FeatureSpec and resize_to."""

import pytest
import torch
import torch.nn.functional as F

from seg_ext.layers import FeatureSpec, resize_to


@pytest.mark.parametrize("channels, stride", [(0, 4), (8, 0)])
def test_a_feature_without_channels_or_stride_is_refused_in_one_line(channels, stride):
    with pytest.raises(ValueError, match=rf"channels >= 1 and stride >= 1, not {channels} and {stride}") as error:
        FeatureSpec(channels, stride)
    assert "\n" not in str(error.value)


def test_resize_to_the_same_size_is_the_same_tensor():
    x = torch.randn(1, 2, 5, 7)
    assert resize_to(x, x.shape[-2:]) is x


@pytest.mark.parametrize("align_corners", [False, True])
def test_resize_to_interpolates_as_torch_does(align_corners):
    x = torch.randn(2, 3, 5, 7)
    expected = F.interpolate(x, size=(11, 6), mode="bilinear", align_corners=align_corners)
    torch.testing.assert_close(resize_to(x, (11, 6), align_corners=align_corners), expected)


def test_resize_to_nearest_needs_no_align_corners():
    x = torch.arange(4.0).reshape(1, 1, 2, 2)
    assert resize_to(x, (4, 4), mode="nearest")[0, 0, 0].tolist() == [0, 0, 1, 1]


def test_resize_to_refuses_a_whole_shape():
    with pytest.raises(ValueError, match=r"size \(height, width\), not \(1, 2, 5, 7\)"):
        resize_to(torch.randn(1, 2, 3, 4), (1, 2, 5, 7))
