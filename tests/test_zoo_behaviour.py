"""What every decoder and encoder of the zoo does through a config: saves and loads, is binary, refuses nonsense."""

from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.modeling import build_model

import seg_ext.modeling  # noqa: F401  registers models
from seg_ext.config import load_config
from seg_ext.errors import UserError

VGG = ["MODEL.BACKBONE.NAME", "build_seg_ext_vgg_backbone"]
UNET = ["MODEL.BACKBONE.NAME", "build_seg_ext_unet_backbone"]
XCEPTION = ["MODEL.BACKBONE.NAME", "build_seg_ext_xception_backbone"]
LEVELS = [f"level{i}" for i in range(1, 6)]
INDICES = [f"pool{i}_indices" for i in range(1, 6)]


def build(*opts: Any, device: str = "cpu") -> torch.nn.Module:
    """A model of Base-Semantic.yaml with overrides, as the command line gives them."""
    cfg = load_config("Base-Semantic.yaml", ["MODEL.DEVICE", device, *map(str, opts)])
    with torch.device(device):
        return build_model(cfg)


def head(decoder: str, features: list[str], **args: Any) -> list[Any]:
    opts: list[Any] = ["MODEL.SEM_SEG_HEAD.DECODER.NAME", decoder, "MODEL.SEM_SEG_HEAD.IN_FEATURES", features]
    for name, value in args.items():
        opts += [f"MODEL.SEM_SEG_HEAD.DECODER.ARGS.{name}", repr(value)]
    return opts


ENCODERS: dict[str, list[Any]] = {  # overrides, and the maps for a plain sum of scores
    "resnet": ["MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, *head("fcn_sum", ["res2", "res5"])],
    "vgg": [*VGG, "MODEL.VGG.WIDTH", 4, "MODEL.VGG.NORM", "BN", *head("fcn_sum", ["pool3", "pool5"])],
    "vgg with fc7": [
        *(*VGG, "MODEL.VGG.WIDTH", 4, "MODEL.VGG.VARIANT", "deeplab_largefov", "MODEL.VGG.OUT_FEATURES", ["fc7"]),
        *head("fcn_sum", ["fc7"]),
    ],
    "unet": [*UNET, "MODEL.UNET.WIDTH", 4, "MODEL.UNET.NORM", "BN", *head("fcn_sum", LEVELS)],
    "xception": [*XCEPTION, "MODEL.XCEPTION.DEPTH", 41, *head("fcn_sum", ["entry2", "exit"])],
}


@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_encoder_comes_back_from_a_file_whole(encoder: str, tmp_path: Path) -> None:
    saved, fresh = build(*ENCODERS[encoder]), build(*ENCODERS[encoder]).eval()
    inputs = [{"image": torch.rand(3, 40, 40) * 255, "sem_seg": torch.zeros(40, 40, dtype=torch.long)}] * 2
    with torch.no_grad():
        saved.train()(inputs)  # moves the running statistics
        expected = saved.eval()(inputs)[0]["sem_seg"]
        assert not torch.allclose(fresh(inputs)[0]["sem_seg"], expected)
        torch.save(saved.state_dict(), tmp_path / "model.pth")
        fresh.load_state_dict(torch.load(tmp_path / "model.pth", weights_only=True), strict=True)
        assert torch.equal(fresh(inputs)[0]["sem_seg"], expected)


RES = ["res2", "res3", "res4", "res5"]
POOLED = [*VGG, "MODEL.VGG.VARIANT", "segnet", "MODEL.VGG.OUT_FEATURES", [*INDICES, "pool5"]]
REFUSED: dict[str, tuple[list[Any], str]] = {  # what is given: overrides, what the line says
    "SegNet on ResNet": (head("segnet", RES), r"SegNet takes conv1 or image, pool1_indices .* not \['res2', "),
    "SegNet-Basic on ResNet": (head("segnet_basic", RES), r"SegNetBasic takes conv1 or image, .* not \['res2', "),
    "SegNet on plain VGG": ([*VGG, *head("segnet", ["pool4", "pool5"])], r"its max-pooling indices\), not \['pool4'"),
    "SegNet without the image": ([*POOLED, *head("segnet", [*INDICES, "pool5"])], "SegNet takes conv1 or image"),
    "SegNet of too few stages": (
        [*POOLED, *head("segnet", ["image", *INDICES, "pool5"], convs=[2, 2])],
        r"one of convs for each of 5 poolings, not \[2, 2\]",
    ),
    "v2 without rates": (head("deeplabv2", RES, rates=[]), r"takes one or more rates, not \[\]"),
    "v2 of a negative rate": (head("deeplabv2", RES, rates=[6, -6]), r"rates of integers >= 1, not \[6, -6\]"),
    "v3 without rates": (head("deeplabv3", RES, rates=[]), r"takes one or more rates .*not \[\]"),
    "v3 of a negative rate": (head("deeplabv3", RES, rates=[-6]), r"rates of integers >= 1, not \[-6\]"),
    "v3 of half a rate": (head("deeplabv3", RES, rates=[1.5]), r"rates \[1.5\] takes a list of whole numbers or None"),
    "v3+ without rates": (head("deeplabv3plus", ["res2", "res5"], rates=[]), r"takes one or more rates .*not \[\]"),
    "v3+ of rate 0": (head("deeplabv3plus", ["res2", "res5"], rates=[6, 0]), r"rates of integers >= 1, not \[6, 0\]"),
    "v3+ on four maps": (head("deeplabv3plus", RES), r"takes exactly 2 features .* not \['res2', "),
    "GCN of an even k": (head("gcn", RES, kernel_size=14), "GCN takes an odd kernel_size, not 14"),
    "SegNet-Basic of an even k": (
        [*POOLED, *head("segnet_basic", ["image", *INDICES, "pool5"], kernel_size=6)],
        "SegNetBasic takes an odd kernel_size, not 6",
    ),
    "U-Net++ L5 on five maps": (
        [*UNET, *head("unetpp", LEVELS, depth=5)],
        "UNetPP takes a depth of 1 to 4 with 5 features, not 5",
    ),
    "U-Net on one map": (head("unet", ["res5"]), r"UNet takes 2 or more features .* not \['res5'\]"),
    "U-Net of too few widths": (head("unet", RES, channels=[8]), r"one of channels for each of 3 .* not \[8\]"),
    "a mirrored U-Net that is padded": ([*UNET, "MODEL.UNET.MIRROR", True], "MODEL.UNET: .* mirror only with valid"),
    "PSPNet of no bins": (head("pspnet", RES, bins=[]), r"PSPNet takes 1 to 2048 bins .* not \[\]"),
    "an auxiliary head on the deepest map": (
        head("fcn_head", RES, aux="res5"),
        r"a feature above the deepest, .* not 'res5'",
    ),
    "all dropped out": (head("deeplabv1", RES, dropout=1.0), "takes 0 <= dropout < 1, not 1.0"),
    "no classes": ([*head("fcn", RES), "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 0], "FCN takes num_classes >= 1, not 0"),
    "a head's unknown norm": ([*head("fcn", RES), "MODEL.SEM_SEG_HEAD.NORM", "IN"], "SEM_SEG_HEAD.NORM 'IN': takes"),
    "ResNet's unknown norm": (["MODEL.RESNETS.NORM", "IN"], "MODEL.RESNETS.NORM 'IN': takes one of '', 'BN'"),
    "VGG's unknown norm": ([*VGG, "MODEL.VGG.NORM", "IN"], "MODEL.VGG.NORM 'IN': takes one of '', 'BN'"),
    "U-Net's unknown norm": ([*UNET, "MODEL.UNET.NORM", "IN"], "MODEL.UNET.NORM 'IN': takes one of '', 'BN'"),
    "Xception's unknown norm": ([*XCEPTION, "MODEL.XCEPTION.NORM", "IN"], "MODEL.XCEPTION.NORM 'IN': takes one of"),
    "an unknown VGG": ([*VGG, "MODEL.VGG.VARIANT", "vgg16"], "MODEL.VGG.VARIANT 'vgg16': takes one of plain, "),
    "a map that is not there": ([*VGG, "MODEL.VGG.OUT_FEATURES", ["fc7"]], r"MODEL.VGG.OUT_FEATURES \['fc7'\]: takes"),
    "Xception-42": ([*XCEPTION, "MODEL.XCEPTION.DEPTH", 42], r"MODEL.XCEPTION: Xception takes depth \[41, 65, 71\]"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_nonsense_is_refused_at_construction_in_one_line(case: str) -> None:
    opts, message = REFUSED[case]
    with pytest.raises(UserError, match=message) as caught:
        build(*opts, device="meta")
    assert "\n" not in str(caught.value)
