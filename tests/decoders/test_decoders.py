"""The contract every decoder keeps, a row each, and the parameter counts of the published networks."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

from seg_ext.decoders import DECODERS
from seg_ext.layers import FeatureSpec, group_norm

BN = nn.BatchNorm2d
RES = {name: FeatureSpec(*spec) for name, spec in {"res2": (16, 4), "res3": (16, 8), "res4": (24, 16)}.items()}
RES["res5"] = FeatureSpec(32, 32)
DILATED = {"res2": RES["res2"], "res4": FeatureSpec(24, 8), "res5": FeatureSpec(32, 8)}
STEPS = {f"e{i}": FeatureSpec(8 * 2**i, 2**i) for i in range(5)}


def only(specs, *names):
    return {name: specs[name] for name in names}


@dataclass
class Row:
    """A decoder at reduced width: features, arguments, and what it gives."""

    name: str
    features: dict[str, FeatureSpec]
    args: dict[str, Any] = field(default_factory=dict)
    out_stride: int = 1
    aux: tuple[str, ...] = ()

    def __str__(self):
        return "-".join((self.name, *map(str, self.args.values())))

    def build(self, norm=group_norm, classes=3):
        return DECODERS[self.name](self.features, classes, norm=norm, **self.args)


ROWS = [
    Row("fcn", only(RES, "res5")),
    Row("fcn", only(RES, "res3", "res4", "res5"), {"learn_upsample": True}),
    Row("fcn", DILATED, {"replicate_border": True, "skip_scale": [0.1, 1]}),
    Row("fcn", only(RES, "res3", "res4", "res5"), {"final_upsample": False}, out_stride=8),
    Row("fcn_head", only(RES, "res5"), out_stride=32),
    Row("fcn_head", DILATED, {"aux": "res2"}, out_stride=8, aux=("aux_res2",)),
    Row("unet", STEPS),
    Row("unet", RES, {"up": "bilinear", "channels": [16, 12, 8], "convs": 1}, out_stride=4),
    Row("unet", DILATED, {"up": "transpose", "skip_first": False}, out_stride=4),
    Row("deeplabv3plus", only(RES, "res2", "res5"), {"channels": 16, "rates": [1, 2, 3]}, out_stride=4),
    Row("deeplabv3plus", only(DILATED, "res2", "res5"), {"channels": 16, "separable": True}, out_stride=4),
    Row("pspnet", only(DILATED, "res4", "res5"), {"channels": 16}, out_stride=8, aux=("aux_res4",)),
    Row("pspnet", only(RES, "res5"), {"channels": 16, "aux": None, "align_corners": False}, out_stride=32),
]
each_row = pytest.mark.parametrize("row", ROWS, ids=str)


def test_every_decoder_has_a_row_and_a_count():
    assert {row.name for row in ROWS} == {count[0] for count in COUNTS} == set(DECODERS)


@each_row
@pytest.mark.parametrize("size", [(64, 64), (100, 90), (33, 65)], ids=str)
def test_evaluation_gives_logits_alone_at_the_out_stride_for_any_size(row, size, make_features):
    decoder = row.build().eval()
    assert decoder.out_stride == row.out_stride
    features = make_features(row.features, *size)
    out = decoder({"image": torch.randn(2, 3, *size), **features})
    assert set(out) == {"logits"} and out["logits"].dtype == torch.float32
    shift = getattr(decoder, "out_offset", 0)
    h, w = (-(-side // row.out_stride) for side in size)
    logits = out["logits"][..., shift : shift + h, shift : shift + w] if shift else out["logits"]
    assert logits.shape == (2, 3, h, w)


@each_row
@pytest.mark.parametrize("norm", [group_norm, BN, None], ids=["GN", "BN", "none"])
def test_training_reaches_every_trainable_parameter_with_a_finite_gradient(row, norm, make_features):
    decoder = row.build(norm).train()
    out = decoder(make_features(row.features, 64, 64))
    assert set(out) == {"logits", *row.aux}
    sum(x.square().sum() + x.sum() for x in out.values()).backward()
    trainable = {name: p for name, p in decoder.named_parameters() if p.requires_grad}
    assert [name for name, p in trainable.items() if p.grad is None or not p.grad.isfinite().all()] == []
    assert any(p.grad.any() for p in trainable.values())


@each_row
def test_batch_one_and_a_deepest_map_of_one_cell_train_with_group_norm(row, make_features):
    side = max(spec.stride for spec in row.features.values())
    out = row.build().train()(make_features(row.features, side, side, batch=1))
    assert all(x.isfinite().all() for x in out.values())


@each_row
def test_features_are_found_by_name_whatever_their_order(row, make_features):
    decoder = row.build().eval()
    features = make_features(row.features, 40, 56)
    shuffled = dict(reversed(features.items()))
    assert torch.equal(decoder(features)["logits"], decoder(shuffled)["logits"])


@each_row
def test_one_exported_graph_equals_eager_at_other_sizes(row, make_features):
    class OfImage(nn.Module):
        def __init__(self):
            super().__init__()
            self.stems = nn.ModuleDict(
                {n: nn.Conv2d(3, s.channels, 3, stride=s.stride, padding=1) for n, s in row.features.items()}
            )
            self.decoder = row.build(classes=4)

        def forward(self, image):
            return self.decoder({name: stem(image) for name, stem in self.stems.items()})["logits"]

    network = OfImage().eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    free = torch.export.Dim.AUTO
    exported = torch.export.export(network, (torch.randn(1, 3, 96, 128),), dynamic_shapes=({2: free, 3: free},))
    for size in ((64, 160), (101, 90)):
        image = torch.randn(1, 3, *size)
        torch.testing.assert_close(exported.module()(image), network(image))


@pytest.mark.parametrize("row", [row for row in ROWS if row.name in ("deeplabv3plus", "pspnet")], ids=str)
def test_pooling_to_one_cell_under_batch_norm_at_batch_one_is_refused_in_one_line(row, make_features):
    features = make_features(row.features, 64, 64, batch=1)
    with pytest.raises(ValueError, match='one value per channel.*use NORM "GN"') as error:
        row.build(BN).train()(features)
    assert "\n" not in str(error.value)
    assert row.build(BN).eval()(features)["logits"].isfinite().all()


R50 = {"res2": FeatureSpec(256, 4), "res4": FeatureSpec(1024, 8), "res5": FeatureSpec(2048, 8)}
VGG = {"pool3": FeatureSpec(256, 8, -99), "pool4": FeatureSpec(512, 16, -99), "fc7": FeatureSpec(4096, 32, -3)}
UNET = {f"e{i}": FeatureSpec(64 * 2**i, 2**i) for i in range(5)}
R50_PARAMS, R101_PARAMS = 23_508_032, 42_500_160
VGG_PARAMS = 14_714_688 + 4096 * 512 * 49 + 4096 + 4096 * 4096 + 4096
UNET_WIDTHS = (1, 64, 128, 256, 512, 1024)
UNET_PARAMS = sum(9 * a * b + b + 9 * b * b + b for a, b in zip(UNET_WIDTHS, UNET_WIDTHS[1:], strict=False))
COUNTS = [  # name, features, classes, norm, arguments, parameters of the decoder
    ("fcn", only(VGG, "fc7"), 21, None, {}, 136_152_917 - VGG_PARAMS),
    ("fcn", only(VGG, "pool4", "fc7"), 21, None, {}, 134_815_994 - VGG_PARAMS),
    ("fcn", VGG, 21, None, {}, 134_489_759 - VGG_PARAMS),
    ("fcn_head", only(R50, "res5"), 21, BN, {}, 9_448_981),
    ("fcn_head", only(R50, "res4", "res5"), 21, BN, {"aux": "res4"}, 9_448_981 + 2_365_205),
    ("unet", UNET, 2, None, {}, 31_030_658 - UNET_PARAMS),
    ("deeplabv3plus", only(R50, "res2", "res5"), 21, BN, {}, 40_352_181 - R50_PARAMS),
    ("deeplabv3plus", only(R50, "res2", "res5"), 21, BN, {"separable": True}, 26_696_133 - R50_PARAMS),
    ("deeplabv3plus", only(R50, "res2", "res5"), 21, BN, {}, 59_344_309 - R101_PARAMS),
    ("deeplabv3plus", only(R50, "res2", "res5"), 21, BN, {"separable": True}, 45_688_261 - R101_PARAMS),
    ("pspnet", only(R50, "res4", "res5"), 21, BN, {}, 4_198_400 + 18_886_165 + 2_365_205),
    ("pspnet", only(R50, "res4", "res5"), 21, BN, {"aux": False}, 4_198_400 + 18_886_165),
]


@pytest.mark.parametrize("name, features, classes, norm, args, expected", COUNTS)
def test_parameter_count_of_the_published_network(name, features, classes, norm, args, expected):
    with torch.device("meta"):
        decoder = DECODERS[name](features, classes, norm=norm, **args)
    assert sum(p.numel() for p in decoder.parameters()) == expected


WRONG = [  # name, features, arguments, what the message says
    ("fcn", {}, {}, r"FCN takes 1 or more features \(shallow to deep\), not \[\]"),
    ("fcn_head", {}, {}, "FCNHead takes 1 or more features"),
    ("unet", only(RES, "res5"), {}, r"UNet takes 2 or more features .* not \['res5'\]"),
    ("deeplabv3plus", RES, {}, "DeepLabV3Plus takes exactly 2 features"),
    ("pspnet", {}, {}, "PSPNet takes 1 or more features"),
    ("pspnet", only(RES, "res5"), {}, r"PSPNet takes aux False or a feature above the deepest, of \[\], not True"),
    ("fcn_head", only(RES, "res4", "res5"), {"aux": "res5"}, r"of \['res4'\], not 'res5'"),
    ("unet", dict(reversed(RES.items())), {}, "ordered shallow to deep, each stride a multiple"),
    ("unet", {"a": FeatureSpec(8, 4), "b": FeatureSpec(8, 6)}, {}, "each stride a multiple of the one before"),
    ("unet", only(VGG, "pool3", "pool4"), {}, r"UNet takes features of offset 0, not \{'pool3': -99, 'pool4': -99\}"),
    ("deeplabv3plus", only(VGG, "pool3", "pool4"), {}, "features of offset 0"),
    ("pspnet", only(VGG, "pool3", "pool4"), {}, "features of offset 0"),
    ("fcn_head", only(VGG, "pool3", "pool4"), {}, "features of offset 0"),
    ("fcn", VGG, {"final_upsample": False}, "final_upsample=False only where the logits have offset 0, not -27"),
    ("fcn", VGG, {"skip_scale": [0.1]}, r"one skip_scale for each of 2 skips, not \[0.1\]"),
    ("fcn", {"a": FeatureSpec(8, 8, -5), "b": FeatureSpec(8, 16)}, {}, "grids meet on whole cells"),
    ("fcn", {"a": FeatureSpec(8, 4), "b": FeatureSpec(8, 12)}, {}, "even factor, not 3"),
    ("fcn", {"a": FeatureSpec(8, 8, 12)}, {}, "begin at the image's first pixel or before, not at 8"),
    ("unet", RES, {"up": "cubic"}, r"takes up of \['transpose', 'bilinear', 'nearest'\].*not 'cubic'"),
    ("unet", RES, {"channels": [8, 8]}, "one of channels for each of 3 joined features"),
    ("unet", RES, {"channels": [8, 8, 0]}, "integers >= 1, not"),
    ("unet", RES, {"extra_ups": [8, 8, 8]}, "extra_ups that divide stride 4 to 1 or more"),
    ("unet", RES, {"convs": 0}, "integers >= 1"),
    ("deeplabv3plus", only(RES, "res2", "res5"), {"rates": [6, 0]}, r"rates of integers >= 1, not \[6, 0\]"),
    ("deeplabv3plus", only(RES, "res2", "res5"), {"dropout": 1}, "0 <= dropout < 1, not 1"),
    ("pspnet", only(RES, "res4", "res5"), {"dropout": -0.1}, "0 <= dropout < 1, not -0.1"),
    ("pspnet", only(RES, "res4", "res5"), {"bins": [1, 2.5]}, r"bins of integers >= 1, not \[1, 2.5\]"),
    ("pspnet", only(RES, "res4", "res5"), {"bins": []}, "1 to 32 bins"),
    ("fcn_head", only(RES, "res5"), {"dropout": 2}, "0 <= dropout < 1, not 2"),
]


@pytest.mark.parametrize("name, features, args, message", WRONG)
def test_wrong_arguments_are_refused_in_one_line_at_construction(name, features, args, message):
    with pytest.raises(ValueError, match=message) as error:
        DECODERS[name](features, 3, norm=group_norm, **args)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", DECODERS)
def test_no_classes_are_refused(name):
    row = next(row for row in ROWS if row.name == name)
    with pytest.raises(ValueError, match="num_classes >= 1, not 0"):
        row.build(classes=0)
