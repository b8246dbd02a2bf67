"""Every shipped yaml builds on the meta device and counts the parameters of its paper or released code."""

from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from seg_ext.config import load_config
from seg_ext.engine.checks import complete_config

ROOT = Path(__file__).parents[1] / "configs"
PARAMETERS = {
    "camvid/bayesian_segnet_basic.yaml": 1_416_075,
    "camvid/bayesian_segnet_vgg16.yaml": 29_449_355,
    "camvid/segnet_basic.yaml": 1_416_075,
    "camvid/segnet_vgg16.yaml": 29_449_355,
    "camvid/unet_R_18_cpu.yaml": 12_689_579,
    "dsb2018/unet3p.yaml": 26_971_777,
    "dsb2018/unet3p_cgm.yaml": 26_991_687,
    "dsb2018/unet3p_deepsup.yaml": 26_989_637,
    "dsb2018/unetpp.yaml": 9_042_177,
    "dsb2018/unetpp_deepsup.yaml": 9_042_276,
    "isbi2012/unet.yaml": 31_030_658,
    "nerve/unet_dice.yaml": 7_759_521,
    "nuclei/panoptic_unet_R_18_FPN.yaml": 15_280_952,
    "potsdam/fcn_sum_R_50.yaml": 23_508_032 + 6 * (512 + 1024 + 2048 + 3),
    "voc/deeplabv1_vgg16_largefov.yaml": 20_505_429,
    "voc/deeplabv2_R_101.yaml": 44_048_532,
    "voc/deeplabv2_vgg16_aspp.yaml": 37_877_652,
    "voc/deeplabv3_R_101.yaml": 58_040_661,
    "voc/deeplabv3_R_101_d8.yaml": 58_040_661,
    # ResNet-101 without fc, nine more units (two 1x1, one 3x3, three norms) and the score layer
    "voc/deeplabv3_cascade_R_101.yaml": 42_500_160 + 9 * (2 * 2048 * 512 + 9 * 512**2 + 2 * 3072) + 2049 * 21,
    "voc/deeplabv3plus_R_101.yaml": 59_344_309,
    "voc/deeplabv3plus_R_101_separable.yaml": 45_688_261,
    "voc/deeplabv3plus_xception65.yaml": 41_055_413,
    "voc/dilation_vgg16_basic.yaml": 134_346_581 + 28_392,
    "voc/dilation_vgg16_front_end.yaml": 134_346_581,
    "voc/dilation_vgg16_large.yaml": 134_346_581 + 6_803_139,
    "voc/fcn16s_vgg16.yaml": 134_815_994,
    "voc/fcn32s_vgg16.yaml": 136_152_917,
    "voc/fcn8s_vgg16.yaml": 134_489_759,
    "voc/fcn_R_50_d8.yaml": 35_322_218,
    "voc/gcn_R_152.yaml": 60_688_084,
    "voc/pspnet_R_101.yaml": 68_073_706,
    "voc/pspnet_R_50.yaml": 49_081_578,
    "voc/refinenet_R_101.yaml": 118_052_437,
    "voc/semantic_fpn_R_50.yaml": 26_799_296 + 53_120 + 1_630_774 - 33 * 129,  # BN's affine values; 21 classes, not 54
}


def test_every_config_has_a_row() -> None:
    assert {str(file.relative_to(ROOT)) for file in ROOT.glob("*/*.yaml")} == set(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_builds_and_counts(name: str) -> None:
    cfg = load_config(name)
    cfg.MODEL.DEVICE = "meta"
    complete_config(cfg)
    with torch.device("meta"):
        model = build_model(cfg)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
