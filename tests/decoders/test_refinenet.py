"""RefineNet: its units and its cascade written out."""

import torch
import torch.nn.functional as F
from torch import nn

from seg_ext.decoders import RefineNet
from seg_ext.decoders.refinenet import ChainedPooling, ResidualConvUnit
from seg_ext.layers import FeatureSpec

SPECS = {f"res{i}": FeatureSpec(3 * i, 2**i) for i in (2, 3, 4, 5)}
SMALL = {"channels": 8, "deepest_channels": 12}


def test_a_residual_unit_of_zero_weights_is_the_identity():
    unit, x = ResidualConvUnit(5), torch.randn(2, 5, 6, 7)
    before = x.clone()
    nn.init.zeros_(unit.conv2.weight)
    assert torch.equal(unit(x), x) and torch.equal(x, before)
    assert unit.conv1.bias is not None and unit.conv2.bias is None


def test_pooling_adds_every_link_of_the_chain_to_the_rectified_map():
    pooling = ChainedPooling(1, stages=3)
    for conv in pooling.convs:
        nn.init.dirac_(conv.weight)
    x = torch.full((1, 1, 21, 21), -1.0)
    x[..., 10, 10] = 2
    out = pooling(x)[0, 0, 10]
    assert (
        out.tolist()
        == [0.0] * 4 + [2.0] * 2 + [4.0] * 2 + [6.0] * 2 + [8.0] + [6.0] * 2 + [4.0] * 2 + [2.0] * 2 + [0.0] * 4
    )


def test_the_cascade_equals_the_released_one_written_out(make_features):
    decoder = RefineNet(SPECS, 5, **SMALL).eval()
    features = make_features(SPECS, 70, 90)

    def rcu(unit, x):
        return unit.conv2(unit.conv1(x.relu()).relu()) + x

    deeper = None
    for name in ("res5", "res4", "res3", "res2"):
        block = decoder.blocks[name]
        x = block.reduce(features[name])
        for unit in block.adapt:
            x = rcu(unit, x)
        if deeper is not None:
            up = F.interpolate(block.fuse_deeper(deeper), size=x.shape[-2:], mode="bilinear", align_corners=True)
            x = block.fuse(x) + up
        x = top = x.relu()
        for conv in block.pool.convs:
            top = conv(F.max_pool2d(top, 5, 1, 2))
            x = x + top
        for unit in block.output:
            x = rcu(unit, x)
        deeper = x
        assert x.shape[1] == (12 if name == "res5" else 8)
        assert (len(block.adapt), len(block.pool.convs), len(block.output)) == (2, 4, 3)
    torch.testing.assert_close(decoder(features)["logits"], decoder.score(deeper))


def test_512_pixels_give_logits_of_128():
    with torch.device("meta"):
        maps = {name: torch.empty(1, s.channels, 512 // s.stride, 512 // s.stride) for name, s in SPECS.items()}
        assert RefineNet(SPECS, 21)(maps)["logits"].shape == (1, 21, 128, 128)


def test_dropout_is_on_the_two_deepest_features_and_before_the_classifier(make_features):
    decoder = RefineNet(SPECS, 2, **SMALL).train()
    shapes = []
    decoder.dropout.register_forward_hook(lambda module, args, _: shapes.append((module.p, args[0].shape[1])))
    decoder(make_features(SPECS, 64, 64))
    assert shapes == [(0.5, SPECS["res5"].channels), (0.5, SPECS["res4"].channels), (0.5, 8)]


def test_one_feature_makes_the_deepest_block_alone(make_features):
    specs = {"res5": SPECS["res5"]}
    decoder = RefineNet(specs, 2, **SMALL)
    assert decoder.out_stride == 32 and decoder.score.in_channels == 12
    assert decoder(make_features(specs, 64, 96))["logits"].shape == (2, 2, 2, 3)
