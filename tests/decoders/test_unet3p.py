"""UNet 3+: full-scale stages, deep supervision and classification guidance."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from seg_ext.decoders import UNet3Plus
from seg_ext.layers import FeatureSpec

SPECS = {f"e{i}": FeatureSpec(3 + i, 2**i) for i in range(5)}


def build(classes=3, **args):
    torch.manual_seed(0)
    return UNet3Plus(SPECS, classes, norm=nn.BatchNorm2d, channels=3, **args).eval()


def judge(decoder, present):
    """Let the module judge every image to be empty or not."""
    nn.init.zeros_(decoder.cgm[1].weight)
    decoder.cgm[1].bias.data = torch.tensor([0.0, 1.0] if present else [1.0, 0.0])


def test_every_stage_is_the_full_scale_one_written_out(make_features):
    decoder = build()
    features = make_features(SPECS, 64, 96)
    encoder, stages = list(features.values()), {}
    for level in (3, 2, 1, 0):
        stage = decoder.stages[f"e{level}"]
        parts = []
        for j, conv in enumerate(stage.reduce):
            source = stages.get(j, encoder[j]) if j > level else encoder[j]
            if j < level:
                source = F.max_pool2d(source, 2 ** (level - j))
            if j > level:
                source = F.interpolate(source, scale_factor=2 ** (j - level), mode="bilinear")
            parts.append(conv(source))
        stages[level] = stage.fuse(torch.cat(parts, dim=1))
        assert stages[level].shape[1] == 5 * 3 == stage.fuse.conv.out_channels
    torch.testing.assert_close(decoder(features)["logits"], decoder.heads["e0"](stages[0]))


def test_convolutions_have_a_bias_beside_batch_norm_whose_weights_start_around_one():
    decoder = UNet3Plus(SPECS, 3, norm=nn.BatchNorm2d)
    for conv in (*decoder.stages["e0"].reduce, decoder.stages["e0"].fuse):
        assert conv.conv.bias is not None
    norm, conv = decoder.stages["e0"].fuse.norm, decoder.stages["e0"].fuse.conv
    assert norm.weight.mean().item() == pytest.approx(1, abs=0.01)
    assert norm.weight.std().item() == pytest.approx(0.02, rel=0.3)
    assert conv.weight.std().item() == pytest.approx((2 / (9 * 320)) ** 0.5, rel=0.05)


def test_deep_supervision_scores_every_stage_and_the_deepest_feature(make_features):
    features = make_features(SPECS, 64, 64)
    outputs = build().train()(features)
    assert {name: tuple(x.shape[1:]) for name, x in outputs.items()} == {
        "logits": (3, 64, 64),
        **{f"aux_e{i}": (3, 64 // 2**i, 64 // 2**i) for i in range(1, 5)},
    }
    assert set(build(deep_supervision=False).train()(features)) == {"logits"}


@pytest.mark.parametrize("classes", [1, 3])
def test_an_image_judged_empty_is_all_background_and_another_is_untouched(classes, make_features):
    decoder, plain = build(classes, cgm=True), build(classes)
    decoder.load_state_dict(plain.state_dict(), strict=False)
    features = make_features(SPECS, 40, 56)
    judge(decoder, True)
    logits = decoder(features)["logits"]
    assert torch.equal(logits, plain(features)["logits"])
    judge(decoder, False)
    empty = decoder(features)["logits"]
    if classes == 1:
        assert empty.half().isfinite().all() and not empty.sigmoid().any()
    else:
        assert torch.equal(empty.softmax(1)[:, 0], torch.ones_like(empty[:, 0]))
        assert torch.equal(empty[:, 0], logits[:, 0])


def test_each_image_of_a_batch_is_judged_by_the_strongest_cell_of_its_deepest_feature(make_features):
    decoder = build(1, cgm=True)
    nn.init.zeros_(decoder.cgm[1].weight)
    decoder.cgm[1].weight.data[1, 0] = 1
    decoder.cgm[1].bias.data = torch.tensor([3.0, 0.0])
    features = make_features(SPECS, 48, 48)
    features["e4"][:, 0] = 0
    features["e4"][1, 0, 1, 2] = 3.5
    empty = decoder(features)["logits"].eq(-1e4).flatten(1)
    assert empty.all(1).tolist() == [True, False]


def test_training_gives_the_judgement_and_no_gradient_to_the_segmentation_of_an_empty_image(make_features):
    decoder = build(2, cgm=True).train()
    features = make_features(SPECS, 32, 32)
    for present in (True, False):
        judge(decoder, present)
        decoder.zero_grad()
        outputs = decoder(features)
        image = outputs.pop("image_cgm")
        assert image.shape == (2, 2, 1, 1) and image.argmax(1).eq(present).all()
        assert all(bool(x.any()) == present for x in outputs.values())
        sum(x.square().sum() for x in outputs.values()).backward()
        assert bool(decoder.stages["e0"].fuse.conv.weight.grad.any()) == present


def test_the_module_adds_no_saved_buffer():
    assert set(build(cgm=True).state_dict()) - set(build().state_dict()) == {"cgm.1.weight", "cgm.1.bias"}
