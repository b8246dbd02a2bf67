"""Models of timm as encoders, without their weights."""

import math
import sys

import pytest
import torch

from seg_ext.encoders import TimmEncoder


@pytest.mark.parametrize("size", [(64, 96), (71, 45)])
@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050"])
def test_declared_shapes_are_true(name, size):
    encoder = TimmEncoder(4, name=name).eval()
    maps = encoder(torch.randn(1, 4, *size))
    assert list(maps) == ["stage1", "stage2", "stage3", "stage4", "stage5"]
    for key, x in maps.items():
        spec = encoder.specs[key]
        assert x.shape == (1, spec.channels, *(math.ceil(side / spec.stride) for side in size)), key
    assert [spec.stride for spec in encoder.specs.values()] == [2, 4, 8, 16, 32]


def test_an_output_stride_dilates_and_leaves_the_state_dict_alone():
    plain, dilated = TimmEncoder(name="resnet18"), TimmEncoder(name="resnet18", output_stride=8)
    assert [spec.stride for spec in dilated.specs.values()] == [2, 4, 8, 8, 8]
    assert plain.state_dict().keys() == dilated.state_dict().keys()
    assert dilated.eval()(torch.randn(1, 3, 64, 64))["stage5"].shape == (1, 512, 8, 8)


def test_channels_last_models_give_channels_first():
    with torch.device("meta"):
        encoder = TimmEncoder(name="swin_tiny_patch4_window7_224").eval()
        maps = encoder(torch.empty(1, 3, 224, 224))
    assert [x.shape for x in maps.values()] == [(1, 96 * 2**i, 56 // 2**i, 56 // 2**i) for i in range(4)]


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ({"name": "resnet81"}, "timm has no model 'resnet81'; did you mean resnet"),
        ({"name": ""}, "timm has no model ''$"),
        (
            {"name": "vgg11", "output_stride": 8},
            "timm cannot build vgg11 with pretrained=False, output_stride=8: ",
        ),
    ],
)
def test_what_timm_cannot_build_is_refused_in_one_line(args, text):
    with pytest.raises(ValueError, match=text) as caught:
        TimmEncoder(**args)
    assert "\n" not in str(caught.value)


def test_without_timm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"pip install 'seg-ext\[timm\]'"):
        TimmEncoder(name="resnet18")
