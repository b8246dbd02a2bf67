"""detectron2's Semantic FPN head: same weights, same features, same scores; with and without a norm."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from torch import nn

from seg_ext.decoders import SemanticFPN
from seg_ext.layers import FeatureSpec, group_norm

CLASSES = 5


def randomise(module):
    """Weights and statistics that no two layers share, scores of order 1."""
    torch.manual_seed(0)
    for name, value in module.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2)
        elif value.is_floating_point():
            value.normal_(std=(1.5 / value[0].numel()) ** 0.5 if value.dim() > 1 else 0.3)
            value.add_(1 if name.endswith("weight") and value.dim() == 1 else 0)
    return module.eval()


@pytest.mark.parametrize("norm", ["GN", ""])
def test_detectron2s_semantic_fpn_head(norm, make_features):
    specs = {f"p{i}": FeatureSpec(32, 2**i) for i in (2, 3, 4, 5)}
    shapes = {name: ShapeSpec(channels=32, stride=spec.stride) for name, spec in specs.items()}
    peer = randomise(SemSegFPNHead(shapes, num_classes=CLASSES, conv_dims=64, common_stride=4, norm=norm))
    ours = SemanticFPN(specs, CLASSES, norm=group_norm if norm else None, channels=64).eval()
    for name, convs in ours.branches.items():
        theirs = [layer for layer in getattr(peer, name) if isinstance(layer, nn.Conv2d)]
        for conv, layer in zip(convs, theirs, strict=True):
            conv.load_state_dict(
                {f"{'' if k.startswith('norm') else 'conv.'}{k}": v for k, v in layer.state_dict().items()}
            )
    ours.score.load_state_dict(peer.predictor.state_dict())
    features = make_features(specs, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(ours(features)["logits"], peer.layers(features), atol=1e-5, rtol=1e-5)
