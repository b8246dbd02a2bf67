"""VGG-16 against torchvision's with the same weights; counts, grids and pooling places of its variants."""

import math

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from seg_ext.encoders import VGG, VGG_VARIANTS
from seg_ext.encoders.vgg import from_torchvision


def small(variant: str, **args) -> VGG:
    return VGG(norm=None, width=2, **{**VGG_VARIANTS[variant], **args}).eval()


@pytest.mark.parametrize("norm", [None, nn.BatchNorm2d], ids=["plain", "bn"])
def test_equals_torchvision_with_the_same_weights(norm):
    peer = (torchvision.models.vgg16 if norm is None else torchvision.models.vgg16_bn)(weights=None).features.eval()
    for name, value in peer.state_dict().items():
        if name.endswith(("bias", "running_mean")):
            value.uniform_(-0.1, 0.1)
        if name.endswith("running_var"):
            value.uniform_(0.5, 2)
    ours = VGG(norm=norm).eval()
    ours.load_state_dict(from_torchvision({f"features.{k}": v for k, v in peer.state_dict().items()}, fc=False))
    image = torch.randn(1, 3, 65, 32)
    with torch.no_grad():
        maps, x, pools = ours(image), image, 0
        for layer in peer:
            x = layer(x)
            if isinstance(layer, nn.MaxPool2d):
                pools += 1
                torch.testing.assert_close(maps[f"pool{pools}"], x, atol=1e-5, rtol=1e-5)
    assert pools == 5


def test_the_classifier_of_torchvision_becomes_fc6_and_fc7():
    with torch.device("meta"):
        peer = torchvision.models.vgg16().state_dict()
        ours = VGG(norm=None, **VGG_VARIANTS["fcn"]).state_dict()
    renamed = from_torchvision(peer, fc=True)
    assert {k: v.shape for k, v in renamed.items()} == {k: v.shape for k, v in ours.items()}


def test_fc6_sees_the_pooled_map_as_torchvisions_classifier_does():
    weight = (torch.randn(1, 512 * 49) / 160).expand(4096, -1)
    renamed = from_torchvision(
        {
            **{f"features.{i}.weight": torch.empty(1, 1, 3, 3) for i in range(13)},
            "classifier.0.weight": weight,
            "classifier.3.weight": torch.empty(1).expand(4096, 4096),
        },
        fc=True,
    )
    x = torch.randn(1, 512, 7, 7)
    assert renamed["fc6.weight"].shape == (4096, 512, 7, 7)
    seen = F.conv2d(x, renamed["fc6.weight"][:2]).flatten(1)
    torch.testing.assert_close(seen, x.flatten(1) @ weight[:2].T, atol=1e-4, rtol=1e-4)


def test_weights_of_another_net_are_refused():
    with pytest.raises(ValueError, match="takes the weights of vgg16 or vgg16_bn, not 8 convolutions"):
        with torch.device("meta"):
            from_torchvision(torchvision.models.vgg11().state_dict(), fc=False)


@pytest.mark.parametrize(
    ("variant", "norm", "scores", "count"),
    [
        ("plain", None, 0, 14_714_688),
        ("plain", nn.BatchNorm2d, 0, 14_723_136),
        ("deeplab_largefov", None, 21, 20_505_429),
        ("deeplab_7x7", None, 21, 134_346_581),
        ("deeplab_4x4", None, 21, 65_140_565),
        ("deeplab_4x4_dilation8", None, 21, 65_140_565),
        ("dilated", None, 21, 134_346_581),
        ("fcn", None, 21, 134_346_581),
        ("segnet", nn.BatchNorm2d, 0, 14_723_136),
        ("segnet_basic", nn.BatchNorm2d, 0, 9_408 + 3 * 200_704 + 4 * 128),
    ],
)
def test_counts(variant, norm, scores, count):
    with torch.device("meta"):
        encoder = VGG(norm=norm, **VGG_VARIANTS[variant])
    deepest = list(encoder.specs.values())[-1].channels
    assert sum(p.numel() for p in encoder.parameters()) + scores * (deepest + 1) == count


@pytest.mark.parametrize("size", [(64, 96), (71, 45)])
@pytest.mark.parametrize("variant", VGG_VARIANTS)
def test_declared_shapes_are_true(variant, size):
    encoder = small(variant)
    maps = encoder(torch.randn(2, 3, *size))
    assert list(maps) == list(encoder.specs)
    for name, x in maps.items():
        spec = encoder.specs[name]
        assert x.shape[1] == spec.channels
        for side, cells in zip(size, x.shape[2:], strict=True):
            if variant == "fcn":
                expected = -(-(side + 198) // 2 ** int(name[4])) if name[:4] == "pool" else None
                expected = -(-(side + 198) // 32) - 6 if name == "fc7" else expected
            elif variant == "dilated":
                expected = -(-side // 8) if name == "fc7" else None
            else:
                rounding = math.floor if variant == "plain" else math.ceil
                expected = rounding(side / spec.stride)
            assert expected is None or cells == expected, name


@pytest.mark.parametrize("variant", VGG_VARIANTS)
def test_any_image_from_the_smallest_on_gives_cells(variant):
    encoder = small(variant)
    assert encoder.smallest == (32 if variant == "plain" else 1)
    assert all(x.numel() for x in encoder(torch.randn(1, 3, encoder.smallest, encoder.smallest)).values())


def test_an_image_below_the_smallest_is_refused_in_one_line():
    with pytest.raises(ValueError, match="VGG takes images of 32 or more pixels a side, not 31x40"):
        small("plain")(torch.randn(1, 3, 31, 40))


def test_smallest_is_exact_for_valid_convolutions():
    encoder = small("dilated", mirror=False)
    assert encoder(torch.randn(1, 3, encoder.smallest, encoder.smallest))["fc7"].shape[2:] == (1, 1)
    encoder.smallest -= 1
    with pytest.raises(RuntimeError):
        encoder(torch.randn(1, 3, encoder.smallest, encoder.smallest))


EXACT = [
    ("plain", "pool3", 96),
    ("segnet", "conv4", 128),
    ("segnet_basic", "pool2", 96),
    ("fcn", "pool3", 128),
    ("fcn", "pool4", 160),
    ("dilated", "pool2", 64),
    ("dilated", "conv5", 256),
]


@pytest.mark.parametrize(("variant", "name", "side"), EXACT)
def test_a_cell_looks_at_the_pixels_its_spec_says(variant, name, side, reach, mean_pools):
    encoder = small(variant, indices=False, response_norm=False)
    spec = encoder.specs[name]
    centre, _, row = reach(encoder, name, side)
    assert abs(centre - (spec.offset + row * spec.stride + (spec.stride - 1) / 2)) <= 0.5


@pytest.mark.parametrize(
    ("variant", "side", "field"), [("fcn", 640, 404), ("deeplab_largefov", 449, None), ("dilated", 448, 380)]
)
def test_the_receptive_field_of_fc7(variant, side, field, reach, mean_pools):
    args = {"mirror": False} if variant == "dilated" else {}
    encoder = small(variant, **args)
    spec = encoder.specs["fc7"]
    centre, size, row = reach(encoder, "fc7", side)
    if field is None:  # 3x3 pools put the cells on multiples of the stride
        assert centre == row * spec.stride
    else:
        assert size == field
        assert abs(centre - (spec.offset + row * spec.stride + (spec.stride - 1) / 2)) <= 0.5


def test_a_mirrored_front_end_equals_the_valid_one_on_an_image_mirrored_by_hand():
    mirrored, valid = small("dilated"), small("dilated", mirror=False)
    valid.load_state_dict(mirrored.state_dict())
    image = torch.randn(1, 3, 200, 208)
    by_hand = F.pad(image, (186,) * 4, mode="reflect")
    torch.testing.assert_close(mirrored(image)["fc7"], valid(by_hand)["fc7"])
    assert (mirrored.specs["fc7"].offset, valid.specs["fc7"].offset) == (0, 186)


def test_the_valid_front_end_maps_900_to_66():
    with torch.device("meta"):
        encoder = small("dilated", mirror=False)
        assert encoder(torch.empty(1, 3, 900, 900))["fc7"].shape == (1, 128, 66, 66)


def test_deeplabs_crop_of_321_gives_41_cells():
    assert small("deeplab_largefov")(torch.randn(1, 3, 321, 33))["fc7"].shape[2:] == (41, 5)


@pytest.mark.parametrize("size", [(45, 60), (64, 64)])
def test_indices_unpool_every_maximum_to_its_place(size):
    maps = small("segnet")(torch.randn(2, 3, *size))
    for stage in range(1, 6):
        before, after, places = maps[f"conv{stage}"], maps[f"pool{stage}"], maps[f"pool{stage}_indices"]
        unpooled = F.max_unpool2d(after, places, 2, output_size=before.shape[-2:])
        assert torch.equal(before.flatten(2).gather(2, places.flatten(2)), after.flatten(2))
        assert torch.equal(unpooled[unpooled != 0], before[unpooled != 0])


def test_segnets_heights_round_up():
    maps = small("segnet")(torch.randn(1, 3, 360, 32))
    assert [maps[f"pool{i}"].shape[2] for i in range(1, 6)] == [180, 90, 45, 23, 12]


def test_dropout_follows_the_deep_pools_of_bayesian_segnet_only():
    def varies(name):
        x = torch.ones(1, 3, 64, 64)
        return not torch.equal(encoder(x, [name])[name], encoder(x, [name])[name])

    encoder = VGG(norm=None, width=8, **VGG_VARIANTS["bayesian_segnet"]).train()
    assert [varies(name) for name in ("conv3", "pool3", "pool5")] == [False, True, True]
    encoder = VGG(norm=None, width=8, **VGG_VARIANTS["segnet"]).train()
    assert not varies("pool5")


def test_the_average_before_fc6_is_in_the_v1_nets():
    with_mean, without = small("deeplab_largefov"), small("deeplab_largefov", average=False)
    without.load_state_dict(with_mean.state_dict())
    without.fc6.register_forward_pre_hook(lambda _, args: F.avg_pool2d(args[0], 3, 1, 1))
    image = torch.randn(1, 3, 65, 65)
    assert torch.equal(with_mean(image)["fc7"], without(image)["fc7"])


def test_maps_behind_the_last_named_one_are_not_computed():
    encoder = small("fcn")
    encoder.conv4_1.register_forward_hook(lambda *_: pytest.fail("conv4_1 ran"))
    assert set(encoder(torch.randn(1, 3, 8, 8), ["pool3"])) == {"pool3"}


def test_batch_norm_on_a_single_value_is_refused_in_training():
    encoder = VGG(norm=nn.BatchNorm2d, width=2, ceil_mode=True).train()
    with pytest.raises(ValueError, match="BatchNorm cannot train on one value per channel"):
        encoder(torch.randn(1, 3, 16, 16))


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ({"kernel_size": 4}, "odd kernel_size"),
        ({"pool_kernel": 4}, "pool_kernel 2 or 3"),
        ({"pools": (2, 2, 2, 3, 2)}, "pools of 0, 1 or 2"),
        ({"pools": (2, 2)}, "for 5 stages"),
        ({"mirror": True}, "mirror only with valid"),
        ({"dropout": 1.0}, "0 <= dropout < 1, not 1.0"),
    ],
)
def test_arguments_out_of_range_are_refused(args, text):
    with pytest.raises(ValueError, match=text):
        VGG(norm=None, **args)
