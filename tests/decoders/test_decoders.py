"""The contract every decoder keeps, a row each, and the parameter counts of the published networks."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

from seg_ext.decoders import DECODERS
from seg_ext.layers import FeatureSpec, group_norm

BN = nn.BatchNorm2d


def only(specs, *names):
    return {name: specs[name] for name in names}


RES = {name: FeatureSpec(*spec) for name, spec in {"res2": (16, 4), "res3": (16, 8), "res4": (24, 16)}.items()}
RES["res5"] = FeatureSpec(32, 32)
DILATED = {"res2": RES["res2"], "res4": FeatureSpec(24, 8), "res5": FeatureSpec(32, 8)}
STEPS = {f"e{i}": FeatureSpec(8 * 2**i, 2**i) for i in range(5)}
POOLED = {"conv1": FeatureSpec(8, 1), **{f"pool{i}_indices": FeatureSpec(8 + 4 * i, 2**i) for i in (1, 2, 3)}}
POOLED["pool3"] = POOLED["pool3_indices"]
IMAGE = {"image": FeatureSpec(3, 1), "res2": FeatureSpec(16, 2), **only(DILATED, "res4", "res5")}


@dataclass
class Row:
    """A decoder at reduced width: features, arguments, and what it gives."""

    name: str
    features: dict[str, FeatureSpec]
    args: dict[str, Any] = field(default_factory=dict)
    out_stride: int = 1
    aux: tuple[str, ...] = ()
    cell: int = 1  # pixels a side of what the logits cover whole, where that is more than a logit

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
    Row("fcn_head", DILATED, {"convs": 2, "join_input": True, "aux": True}, out_stride=8, aux=("aux_res4",)),
    Row("unet", STEPS),
    Row("unet", RES, {"up": "bilinear", "channels": [16, 12, 8], "convs": 1}, out_stride=4),
    Row("unet", DILATED, {"up": "transpose", "skip_first": False}, out_stride=4),
    Row(
        "unet", RES, {"up": "bilinear_conv", "head_conv": True, "centre_convs": 1, "score_kernel_size": 3}, out_stride=4
    ),
    Row("linknet", RES, {"channels": 8}, out_stride=2, cell=4),
    Row("deeplabv3plus", only(RES, "res2", "res5"), {"channels": 16, "rates": [1, 2, 3]}, out_stride=4),
    Row("deeplabv3plus", only(DILATED, "res2", "res5"), {"channels": 16, "separable": True}, out_stride=4),
    Row("pspnet", only(DILATED, "res4", "res5"), {"channels": 16}, out_stride=8, aux=("aux_res4",)),
    Row("pspnet", only(RES, "res5"), {"channels": 16, "aux": None, "align_corners": False}, out_stride=32),
    Row("fcn_sum", only(RES, "res3", "res4", "res5"), out_stride=8),
    Row("fcn_sum", DILATED, {"align_corners": True}, out_stride=4),
    Row("unetpp", STEPS, aux=("aux_x01", "aux_x02", "aux_x03")),
    Row("unetpp", RES, {"depth": 2, "deep_supervision": False, "up": "nearest", "convs": 1}, out_stride=4),
    Row("unetpp", DILATED, {"inference": 1}, out_stride=4, aux=("aux_x01",)),
    Row(
        "unetpp",
        RES,
        {"deep_supervision": False, "channels": [9, 8, 6], "extra_ups": [4, 2], "skip_first": False},
        cell=4,
    ),
    Row("unet3p", STEPS, {"channels": 8}, aux=("aux_e1", "aux_e2", "aux_e3", "aux_e4")),
    Row("unet3p", RES, {"channels": 4, "deep_supervision": False, "cgm": True}, out_stride=4, aux=("image_cgm",)),
    Row("unet3p", DILATED, {"channels": 8}, out_stride=4, aux=("aux_res4", "aux_res5")),
    Row("semantic_fpn", RES, {"channels": 8}, out_stride=4),
    Row("semantic_fpn", only(RES, "res2", "res5"), {"channels": 8, "align_corners": True}, out_stride=4),
    Row("semantic_fpn", only(RES, "res2", "res5"), {"channels": 8, "merge": "cat"}, out_stride=4),
    Row("semantic_fpn", DILATED, {"channels": 8, "pyramid": 12}, out_stride=4),
    Row("refinenet", RES, {"channels": 8, "deepest_channels": 12}, out_stride=4),
    Row("refinenet", only(DILATED, "res4", "res5"), {"channels": 8, "pool_stages": 1}, out_stride=8),
    Row("gcn", RES, {"kernel_size": 7}, cell=4),
    Row("gcn", DILATED, {"kernel_size": 3, "up": "transpose", "final_ups": 0}, out_stride=4),
    Row("segnet", POOLED, {"convs": [2, 2, 3], "dropout": 0.5}),
    Row("segnet_basic", POOLED, {"kernel_size": 3}),
    Row("deeplabv1", only(DILATED, "res5"), out_stride=8),
    Row("deeplabv1", IMAGE, {"channels": 12}, out_stride=8),
    Row("deeplabv2", only(DILATED, "res5"), out_stride=8),
    Row("deeplabv2", RES, {"hidden": 12, "rates": [1, 3]}, out_stride=32),
    Row("deeplabv3", only(DILATED, "res5"), {"channels": 16}, out_stride=8),
    Row("deeplabv3", RES, {"channels": 16, "head_conv": True, "aux": True}, out_stride=32, aux=("aux_res4",)),
    Row("dilated_context", only(DILATED, "res5"), out_stride=8),
    Row("dilated_context", RES, {"large": True}, out_stride=32),
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
    covered = (-(-side // row.cell) * row.cell for side in size)
    h, w = (-(-side // row.out_stride) for side in covered)
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


class Places(nn.MaxPool2d):
    """Of the maxima of 2x2 pools."""

    def __init__(self):
        super().__init__(2, ceil_mode=True, return_indices=True)

    def forward(self, x):
        return super().forward(x)[1]


def stem(spec, *, pooled):
    conv = nn.Conv2d(3, spec.channels, 3, stride=spec.stride // (1 + pooled), padding=1)
    return nn.Sequential(conv, Places()) if pooled else conv


@each_row
def test_one_exported_graph_equals_eager_at_other_sizes(row, make_features):
    class OfImage(nn.Module):
        def __init__(self):
            super().__init__()
            self.stems = nn.ModuleDict({n: stem(s, pooled=n.endswith("_indices")) for n, s in row.features.items()})
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


@pytest.mark.parametrize("row", [row for row in ROWS if row.name in ("deeplabv3", "deeplabv3plus", "pspnet")], ids=str)
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
VGG_CONVS, VGG_NORMS, BASIC_PARAMS = 14_714_688, 2 * 4224, 49 * 64 * (3 + 3 * 64) + 4 * 128
LARGE_FOV_PARAMS = VGG_CONVS + 9 * 512 * 1024 + 1024 + 1024 * 1024 + 1024
SEGNET = {"image": FeatureSpec(3, 1)}
SEGNET |= {f"pool{i}_indices": FeatureSpec(c, 2**i) for i, c in enumerate((64, 128, 256, 512, 512), 1)}
SEGNET["pool5"] = SEGNET["pool5_indices"]
SEGNET_BASIC = {"image": FeatureSpec(3, 1), **{f"pool{i}_indices": FeatureSpec(64, 2**i) for i in (1, 2, 3, 4)}}
SEGNET_BASIC["pool4"] = SEGNET_BASIC["pool4_indices"]
VGG_PARAMS = VGG_CONVS + 4096 * 512 * 49 + 4096 + 4096 * 4096 + 4096
UNET_WIDTHS = (1, 64, 128, 256, 512, 1024)
UNET_PARAMS = sum(9 * a * b + b + 9 * b * b + b for a, b in zip(UNET_WIDTHS, UNET_WIDTHS[1:], strict=False))
RES50 = {f"res{i}": FeatureSpec(64 * 2**i, 2**i) for i in (2, 3, 4, 5)}
PYRAMID = {f"p{i}": FeatureSpec(256, 2**i) for i in (2, 3, 4, 5)}
R152_PARAMS = 58_143_808
VALID = {f"e{i}": FeatureSpec(64 * 2**i, 2**i, offset) for i, offset in enumerate((2, 6, 14, 30, 62))}
UNETPP = {f"e{i}": FeatureSpec(32 * 2**i, 2**i) for i in range(5)}
PP = {1: 9_041_601, 3: 9_042_177}  # by the image's channels


def plain_encoder(channels, base, levels, *, norm=False):
    """Parameters of two 3x3 convolutions with bias a level, each with a BatchNorm or none."""
    widths = [channels, *(base * 2**i for i in range(levels))]
    return sum(9 * (a + b) * b + (6 if norm else 2) * b for a, b in zip(widths, widths[1:], strict=False))


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
    ("fcn_sum", only(R50, "res4", "res5"), 21, None, {}, 1025 * 21 + 2049 * 21),
    ("unet", VALID, 2, None, {"padding": "valid"}, 31_030_658 - UNET_PARAMS),
    *(("unetpp", UNETPP, 1, None, {"deep_supervision": False}, n - plain_encoder(ic, 32, 5)) for ic, n in PP.items()),
    *(("unetpp", UNETPP, 1, None, {}, n + 99 - plain_encoder(ic, 32, 5)) for ic, n in PP.items()),
    *(
        ("unetpp", UNETPP, 1, None, {"depth": d, "deep_supervision": False}, n - plain_encoder(3, 32, d + 1))
        for d, n in enumerate((101_537, 511_681, 2_205_537, 9_042_177), 1)
    ),
    ("unet3p", UNET, 1, BN, {"deep_supervision": False}, 26_971_777 - plain_encoder(3, 64, 5, norm=True)),
    ("unet3p", UNET, 1, BN, {"deep_supervision": False}, 26_970_625 - plain_encoder(1, 64, 5, norm=True)),
    ("unet3p", UNET, 1, BN, {}, 26_989_637 - plain_encoder(3, 64, 5, norm=True)),
    ("unet3p", UNET, 1, BN, {"cgm": True}, 26_991_687 - plain_encoder(3, 64, 5, norm=True)),
    ("semantic_fpn", PYRAMID, 54, group_norm, {}, 1_630_774),
    ("linknet", {"conv1": FeatureSpec(64, 2), **RES50}, 21, BN, {}, 7_670_405),  # smp's on ResNet-50
    ("refinenet", RES50, 21, None, {}, 99_060_309 - R50_PARAMS),
    ("refinenet", RES50, 21, None, {}, 118_052_437 - R101_PARAMS),
    ("refinenet", RES50, 22, None, {}, 133_696_085 + 2_305 - R152_PARAMS),
    ("gcn", RES50, 21, None, {}, 60_688_084 - R152_PARAMS),
    ("gcn", RES50, 21, None, {"kernel_size": 7}, 59_369_620 - R152_PARAMS),
    ("gcn", only(RES50, "res5"), 21, None, {"kernel_size": 9, "final_ups": 0}, 782_166 + 7_980),
    ("gcn", RES50, 21, None, {"kernel_size": 7, "up": "transpose"}, 1_153_992 + 9 * 7_980 + 5 * (4 * 21) ** 2),
    ("segnet", SEGNET, 11, BN, {}, 29_449_355 - VGG_CONVS - VGG_NORMS),
    ("segnet", SEGNET, 12, BN, {"dropout": 0.5}, 29_449_932 - VGG_CONVS - VGG_NORMS),
    ("segnet", SEGNET, 21, BN, {}, 29_455_125 - VGG_CONVS - VGG_NORMS),
    ("segnet_basic", SEGNET_BASIC, 11, BN, {}, 1_416_075 - BASIC_PARAMS),
    ("segnet_basic", SEGNET_BASIC, 11, BN, {"bias": True}, 1_416_587 - BASIC_PARAMS - 4 * 64),
    ("deeplabv1", {"fc7": FeatureSpec(1024, 8)}, 21, None, {}, 20_505_429 - LARGE_FOV_PARAMS),
    ("deeplabv2", only(R50, "res5"), 21, None, {}, 44_048_532 - R101_PARAMS),
    ("deeplabv2", {"pool5": FeatureSpec(512, 8)}, 21, None, {"hidden": 1024}, 37_877_652 - VGG_CONVS),
    ("deeplabv3", only(R50, "res5"), 21, BN, {}, 39_048_533 - R50_PARAMS),
    ("deeplabv3", only(R50, "res5"), 21, BN, {}, 58_040_661 - R101_PARAMS),
    ("deeplabv3", only(R50, "res5"), 21, BN, {"head_conv": True}, 39_638_869 - R50_PARAMS),
    ("deeplabv3", only(R50, "res4", "res5"), 21, BN, {"head_conv": True, "aux": True}, 42_004_074 - R50_PARAMS),
    ("dilated_context", {"fc7": FeatureSpec(4096, 8)}, 21, None, {}, 4097 * 21 + 28_392),
    ("dilated_context", {"fc7": FeatureSpec(4096, 8)}, 21, None, {"large": True}, 4097 * 21 + 6_803_139),
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
    ("unet", RES, {"up": "cubic"}, r"takes up of \['transpose', 'bilinear', 'nearest', 'bilinear_conv'\].*not 'cubic'"),
    ("unet", RES, {"channels": [8, 8]}, "one of channels for each of 3 joined features"),
    ("unet", RES, {"channels": [8, 8, 0]}, "integers >= 1, not"),
    ("unet", RES, {"extra_ups": [8, 8, 8]}, "extra_ups that divide stride 4 to 1 or more"),
    ("unet", RES, {"convs": 0}, "integers >= 1"),
    ("deeplabv3plus", only(RES, "res2", "res5"), {"rates": [6, 0]}, r"rates of integers >= 1, not \[6, 0\]"),
    ("deeplabv3plus", only(RES, "res2", "res5"), {"dropout": 1}, "0 <= dropout < 1, not 1"),
    ("pspnet", only(RES, "res4", "res5"), {"dropout": -0.1}, "0 <= dropout < 1, not -0.1"),
    ("pspnet", only(RES, "res4", "res5"), {"bins": [1, 2.5]}, r"bins of integers >= 1, not \[1, 2.5\]"),
    ("pspnet", only(RES, "res4", "res5"), {"bins": []}, "1 to 32 bins"),
    ("pspnet", only(RES, "res4", "res5"), {"kernel_size": 2}, "PSPNet takes odd kernel sizes, not 2 and 1"),
    ("pspnet", only(RES, "res4", "res5"), {"score_kernel_size": -1}, "channels and kernel sizes of integers >= 1"),
    ("fcn_head", only(RES, "res5"), {"dropout": 2}, "0 <= dropout < 1, not 2"),
    ("fcn_sum", {}, {}, "FCNSum takes 1 or more features"),
    ("fcn_sum", VGG, {}, "features of offset 0"),
    ("unetpp", only(RES, "res5"), {}, "UNetPP takes 2 or more features"),
    ("unetpp", STEPS, {"depth": 5}, "UNetPP takes a depth of 1 to 4 with 5 features, not 5"),
    ("unetpp", RES, {"depth": 4}, "UNetPP takes a depth of 1 to 3 with 4 features, not 4"),
    ("unetpp", RES, {"depth": 0}, "takes a depth of 1 to 3 .* not 0"),
    ("unetpp", RES, {"inference": 4}, r"inference 'average' or one of the branches \[1, 2, 3\], not 4"),
    ("unetpp", RES, {"inference": "last"}, "inference 'average' or .* not 'last'"),
    ("unetpp", RES, {"inference": 1, "deep_supervision": False}, r"one of the branches \[3\], not 1"),
    ("unetpp", RES, {"up": "cubic"}, r"UNetPP takes up of \['transpose', 'bilinear', .*'bilinear_conv'\], not 'cubic'"),
    ("unetpp", RES, {"dropout": 1}, "UNetPP takes 0 <= dropout < 1"),
    ("unetpp", RES, {"convs": 0}, r"UNetPP takes .* of integers >= 1"),
    ("unetpp", RES, {"channels": [8, 8]}, r"UNetPP takes one of channels for each of 3 rows, not \[8, 8\]"),
    ("unetpp", RES, {"extra_ups": [8]}, "takes extra_ups without deep supervision that divide stride 4"),
    ("semantic_fpn", RES, {"channels": 0}, "SemanticFPN takes channels and pyramid of integers >= 1"),
    ("semantic_fpn", {"a": FeatureSpec(8, 2), "b": FeatureSpec(8, 6)}, {}, "takes strides a power of 2 apart"),
    ("semantic_fpn", RES, {"dropout": 1}, "SemanticFPN takes 0 <= dropout < 1"),
    ("unet3p", only(RES, "res5"), {}, "UNet3Plus takes 2 or more features"),
    ("unet3p", RES, {"channels": 0}, r"UNet3Plus takes channels of integers >= 1, not \[0\]"),
    ("unet3p", RES, {"dropout": -1}, "UNet3Plus takes 0 <= dropout < 1"),
    ("refinenet", {}, {}, "RefineNet takes 1 or more features"),
    ("refinenet", RES, {"pool_stages": 0}, "RefineNet takes .* of integers >= 1"),
    ("refinenet", RES, {"dropout": 1}, "RefineNet takes 0 <= dropout < 1"),
    ("gcn", {}, {}, "GCN takes 1 or more features"),
    ("gcn", RES, {"kernel_size": 8}, "GCN takes an odd kernel_size, not 8"),
    ("gcn", RES, {"kernel_size": 0}, "GCN takes kernel_size of integers >= 1"),
    ("gcn", RES, {"up": "nearest"}, r"GCN takes up of \['bilinear', 'transpose'\], not 'nearest'"),
    ("gcn", RES, {"final_ups": 3}, "GCN takes final_ups that divide stride 4 to 1 or more, not 3"),
    ("gcn", RES, {"final_ups": -1}, "GCN takes final_ups .* not -1"),
    ("fcn_head", only(POOLED, "pool3_indices"), {}, r"FCNHead takes features, no pooling indices, not \['pool3_ind"),
    ("deeplabv3", RES, {"rates": [True]}, r"DeepLabV3 takes rates of integers >= 1, not \[True\]"),
    ("segnet", RES, {}, r"SegNet takes conv1 or image, pool1_indices .* not \['res2', 'res3', 'res4', 'res5'\]"),
    ("segnet", only(POOLED, "conv1", "pool1_indices", "pool2_indices"), {}, "and the deepest pool"),
    ("segnet", only(POOLED, "pool1_indices", "pool2_indices", "pool3_indices", "pool3"), {}, "takes conv1 or image"),
    ("segnet", only(POOLED, "conv1", "pool1_indices", "pool3_indices", "pool3"), {}, "at twice the stride each"),
    ("segnet", POOLED, {}, r"one of convs for each of 3 poolings, not \[2, 2, 3, 3, 3\]"),
    ("segnet", POOLED, {"convs": [2, 2, 0]}, "SegNet takes convs of integers >= 1"),
    ("segnet", POOLED, {"convs": [2, 2, 3], "dropout": 1.5}, "0 <= dropout < 1, not 1.5"),
    ("segnet_basic", RES, {}, "SegNetBasic takes conv1 or image"),
    ("segnet_basic", POOLED, {"kernel_size": 4}, "odd kernel_size, not 4"),
    ("deeplabv1", {}, {}, "DeepLabV1 takes 1 or more features"),
    ("deeplabv1", IMAGE, {"channels": 0}, r"DeepLabV1 takes channels of integers >= 1, not \[0\]"),
    ("deeplabv1", IMAGE, {"dropout": -1}, "DeepLabV1 takes 0 <= dropout < 1"),
    ("deeplabv2", RES, {"rates": []}, r"DeepLabV2 takes one or more rates, not \[\]"),
    ("deeplabv2", RES, {"rates": [6, 0]}, r"DeepLabV2 takes rates of integers >= 1, not \[6, 0\]"),
    ("deeplabv2", RES, {"hidden": 0}, r"DeepLabV2 takes hidden of integers >= 1, not \[0\]"),
    ("deeplabv2", RES, {"dropout": 1}, "DeepLabV2 takes 0 <= dropout < 1"),
    ("deeplabv3", RES, {"rates": 6}, "DeepLabV3 takes rates of integers >= 1, not 6"),
    ("deeplabv3", RES, {"rates": [0]}, r"DeepLabV3 takes rates of integers >= 1, not \[0\]"),
    ("deeplabv3", RES, {"pool": [2]}, r"ASPP takes pool None or \(rows, columns\) >= 1, not \[2\]"),
    ("deeplabv3", RES, {"project_kernel_size": 2}, "ASPP takes an odd project_kernel_size, not 2"),
    ("linknet", DILATED, {}, r"LinkNet takes even strides, each twice the one before, not \[4, 8, 8\]"),
    ("linknet", RES, {"channels": 0}, "LinkNet takes channels of integers >= 1"),
    ("fcn_head", RES, {"convs": 0}, "FCNHead takes convs and channels of integers >= 1"),
    ("fcn_head", RES, {"channels": 0}, "FCNHead takes convs and channels of integers >= 1"),
    ("semantic_fpn", RES, {"merge": "max"}, r"SemanticFPN takes merge of \['sum', 'cat'\], not 'max'"),
    ("fcn_head", RES, {"dilation": 0}, r"FCNHead takes dilation of integers >= 1, not \[0\]"),
    ("unet", STEPS, {"score_kernel_size": -1}, "UNet takes .* score_kernel_size of integers >= 1"),
    ("unetpp", STEPS, {"score_kernel_size": -1}, "UNetPP takes .* score_kernel_size of integers >= 1"),
    ("deeplabv3", RES, {"project_kernel_size": -1}, "ASPP takes an odd project_kernel_size, not -1"),
    ("unet", STEPS, {"score_kernel_size": 2}, "UNet takes centre_convs >= 0 and an odd score_kernel_size"),
    ("unetpp", STEPS, {"score_kernel_size": 2}, "UNetPP takes an odd score_kernel_size, not 2"),
    ("deeplabv3", RES, {"aux": "res5"}, r"of \['res2', 'res3', 'res4'\], not 'res5'"),
    ("deeplabv3", RES, {"channels": 0}, "DeepLabV3 takes channels of integers >= 1"),
    ("dilated_context", {}, {}, "DilatedContext takes 1 or more features"),
    ("dilated_context", RES, {"dilations": [1, 0]}, "integers >= 1"),
    ("dilated_context", RES, {"dilations": []}, r"takes some dilations, not \[\]"),
    (
        "dilated_context",
        RES,
        {"dilations": [1, 2], "large": True},
        r"takes 7 dilations where it is large, not \[1, ",
    ),
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
