"""UNet++: its triangle, pruning, deep supervision and the averaging of its branches."""

import pytest
import torch

from seg_ext.decoders import UNetPP
from seg_ext.layers import FeatureSpec

SPECS = {f"e{i}": FeatureSpec(4 * 2**i, 2**i) for i in range(5)}


def build(classes=3, **args):
    torch.manual_seed(0)
    return UNetPP(SPECS, classes, norm=None, **args).eval()


def test_a_node_sees_its_whole_row_and_the_one_below_left(make_features):
    features = {name: x.requires_grad_() for name, x in make_features(SPECS, 32, 32).items()}
    decoder = build()
    seen = {}
    for name, node in decoder.nodes.items():
        node.register_forward_hook(lambda _, args, out, name=name: seen.update({name: (*args, out)}))
    decoder(features)
    maps = {f"x{i}0": x for i, x in enumerate(features.values())} | {name: out for name, (*_, out) in seen.items()}
    assert set(seen) == {f"x{i}{j}" for j in range(1, 5) for i in range(5 - j)}
    for name, (below, row, out) in seen.items():
        i, j = int(name[1]), int(name[2])
        assert torch.equal(below, maps[f"x{i + 1}{j - 1}"])
        assert torch.equal(row, torch.cat([maps[f"x{i}{k}"] for k in range(j)], dim=1))
        assert out.shape[1] == 4 * 2**i and decoder.nodes[name].up.weight.shape[1:] == (4 * 2**i, 2, 2)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_a_pruned_network_is_that_branch_of_the_full_one(depth, make_features):
    full, branch = build(), build(inference=depth)
    pruned = build(depth=depth, deep_supervision=False)
    kept = {name: full.state_dict()[name] for name in pruned.state_dict()}
    assert set(pruned.nodes) == {f"x{i}{j}" for j in range(1, depth + 1) for i in range(depth + 1 - j)}
    pruned.load_state_dict(kept)
    branch.load_state_dict(full.state_dict())
    features = make_features(SPECS, 37, 50)
    expected = pruned({name: features[name] for name in list(SPECS)[: depth + 1]})["logits"]
    assert torch.equal(branch(features)["logits"], expected)
    full.training = True  # the outputs of training without its dropout
    outputs = full(features)
    assert torch.equal(outputs["logits" if depth == 4 else f"aux_x0{depth}"], expected)


def test_one_branch_computes_nothing_below_it(make_features):
    decoder = build(inference=2)
    run = set()
    for name, node in decoder.nodes.items():
        node.register_forward_hook(lambda *_, name=name: run.add(name))
    decoder(make_features(SPECS, 32, 32))
    assert run == {"x01", "x11", "x02"}


@pytest.mark.parametrize("classes", [1, 3])
def test_the_average_is_that_of_the_probabilities(classes, make_features):
    decoder = build(classes).double()
    features = {name: x.double() for name, x in make_features(SPECS, 32, 48).items()}
    for head in decoder.heads.values():
        torch.nn.init.normal_(head.weight)
    probability = torch.sigmoid if classes == 1 else lambda x: x.softmax(1)
    logits = decoder(features)["logits"]
    decoder.training = True
    heads = decoder(features)
    assert set(heads) == {"logits", "aux_x01", "aux_x02", "aux_x03"}
    expected = torch.stack([probability(x) for x in heads.values()]).mean(0)
    torch.testing.assert_close(probability(logits), expected)


@pytest.mark.parametrize("classes", [1, 2])
def test_confident_branches_average_to_a_finite_score(classes, make_features):
    decoder = build(classes)
    for head in decoder.heads.values():
        torch.nn.init.constant_(head.bias, 500.0)
    assert decoder(make_features(SPECS, 32, 32))["logits"].isfinite().all()


def test_dropout_follows_every_convolution(make_features):
    features = make_features(SPECS, 32, 32)
    decoder = build().train()
    calls = []
    for node in decoder.nodes.values():
        node.dropout.register_forward_hook(lambda module, *_: calls.append(module.p))
    first = decoder(features)["logits"]
    assert calls == [0.5] * 20 and not torch.equal(first, decoder(features)["logits"])
    assert not any(node.dropout.p for node in build(dropout=0).nodes.values())


def test_without_deep_supervision_there_is_one_head_and_nothing_auxiliary(make_features):
    decoder = build(deep_supervision=False).train()
    assert set(decoder.heads) == {"x04"} and set(decoder(make_features(SPECS, 32, 32))) == {"logits"}
