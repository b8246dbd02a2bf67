"""The plain sum of scores."""

import pytest
import torch
import torch.nn.functional as F

from seg_ext.decoders import FCNSum
from seg_ext.layers import FeatureSpec

SPECS = {f"res{i}": FeatureSpec(3 * i, 2**i) for i in (3, 4, 5)}


@pytest.mark.parametrize("align_corners", [True, False])
def test_scores_are_resized_to_the_shallowest_and_summed(align_corners, make_features):
    decoder = FCNSum(SPECS, 4, align_corners=align_corners)
    features = make_features(SPECS, 75, 130)
    size = features["res3"].shape[-2:]
    expected = sum(
        F.interpolate(
            F.conv2d(x, decoder.scores[name].weight, decoder.scores[name].bias),
            size=size,
            mode="bilinear",
            align_corners=align_corners,
        )
        for name, x in features.items()
    )
    torch.testing.assert_close(decoder(features)["logits"], expected)


def test_features_are_summed_as_one_score_where_they_have_one_size():
    specs = {"a": FeatureSpec(2, 8), "b": FeatureSpec(3, 8)}
    decoder = FCNSum(specs, 4)
    a, b = torch.randn(1, 2, 5, 6), torch.randn(1, 3, 5, 6)
    joined = torch.cat([decoder.scores[name].weight for name in "ab"], dim=1)
    expected = F.conv2d(torch.cat([a, b], dim=1), joined)
    torch.testing.assert_close(decoder({"a": a, "b": b})["logits"], expected)
