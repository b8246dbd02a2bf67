"""Every shipped yaml builds on the meta device and counts the parameters of its paper or released code."""

from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from seg_ext.config import load_config
from seg_ext.engine.checks import complete_config

ROOT = Path(__file__).parents[1] / "configs"
MASK_RCNN = 44_343_216  # ResNet-50-FPN with FrozenBN, 80 classes, in detectron2
V3PLUS = 59_344_309 - 42_500_160 + 33 * 257  # 54 classes, not 21
PSPNET = 49_081_578 - (23_508_032 + 123_776) + 33 * (513 + 257)  # less the ResNet-50, whose stem is deep; 54 classes
RES5 = 14_942_208  # with FrozenBN
NUCLEI = 11_891_264 + 149_519 + 2_034_439  # ResNet-18-FPN with GroupNorm, RPN and ROI heads of one class
PARAMETERS = {
    "camvid/bayesian_segnet_basic.yaml": 1_416_075,
    "camvid/bayesian_segnet_vgg16.yaml": 29_449_355,
    "camvid/segnet_basic.yaml": 1_416_075,
    "camvid/segnet_vgg16.yaml": 29_449_355,
    "camvid/unet_R_18_cpu.yaml": 12_689_579,
    "cityscapes/deeplabv3_R_103_os16.yaml": 58_163_667,  # detectron2's own
    "cityscapes/deeplabv3plus_R_103_os16.yaml": 59_467_315,
    "cityscapes/panoptic_deeplab_R_52_os16.yaml": 59_770_166,
    "cityscapes/panoptic_deeplab_R_52_os16_separable.yaml": 30_271_350,
    "coco/keypoint_mask_rcnn_R_50_FPN_1x.yaml": 59_133_158 + 2_643_280 - 79 * 257,  # masks of one class, not 80
    "coco/keypoint_rcnn_R_50_FPN_1x.yaml": 59_133_158,
    "coco/mask_rcnn_R_101_FPN_3x.yaml": 63_283_120,
    "coco/mask_rcnn_R_50_FPN_1x.yaml": MASK_RCNN,
    "coco/panoptic_deeplabv3plus_R_101_3x.yaml": 63_283_120 + V3PLUS,
    "coco/panoptic_deeplabv3plus_R_50_1x.yaml": MASK_RCNN + V3PLUS,
    "coco/panoptic_deeplabv3plus_R_50_C4_1x.yaml": 35_909_612 + RES5 + V3PLUS,  # Mask R-CNN's C4 has one res5 alone
    "coco/panoptic_fcn_R_50_1x.yaml": MASK_RCNN + 54 * (512 + 1024 + 2048 + 3) + 54**2 * (4**2 + 4**2 + 16**2),
    "coco/panoptic_fpn_R_101_3x.yaml": 64_913_894,
    "coco/panoptic_fpn_R_50_1x.yaml": 45_973_990,
    "coco/panoptic_gcn_R_50_1x.yaml": MASK_RCNN
    + 2 * (15 * 54 * 3840 + 4 * (2 * 54 + 15 * 54**2))
    + 9 * 2 * (9 * 54**2 + 54),
    "coco/panoptic_pspnet_R_50_1x.yaml": MASK_RCNN + PSPNET,
    "coco/panoptic_pspnet_R_50_DC5_1x.yaml": 172_353_516 + PSPNET,
    "coco/panoptic_refinenet_R_50_1x.yaml": MASK_RCNN + 118_052_437 - 42_500_160 + 33 * (9 * 256 + 1),
    # VGG-16 with BatchNorm and its pyramid for ResNet-50's, SegNet's decoder of 54 classes, not 11
    "coco/panoptic_segnet_vgg16_1x.yaml": MASK_RCNN
    - 26_799_296
    + (29_449_355 + 43 * (9 * 64 + 1))
    + (1408 + 4) * 256
    + 4 * (9 * 256**2 + 256),
    "coco/panoptic_unet_R_50_1x.yaml": MASK_RCNN + 6_911_606,
    "coco/panoptic_unetpp_R_50_1x.yaml": MASK_RCNN + 66_116_002,
    "dsb2018/panoptic_deeplabv3plus_R_18.yaml": NUCLEI + 1_066_178,
    "dsb2018/panoptic_fcn_R_18.yaml": NUCLEI + 2 * (64 + 128 + 256 + 512 + 4) + 2**2 * (3 * 4**2 + 8**2),
    "dsb2018/panoptic_pspnet_R_18.yaml": NUCLEI + 173_636,
    "dsb2018/panoptic_semantic_fpn_R_18.yaml": NUCLEI + 406_530,
    "dsb2018/panoptic_unet_R_18.yaml": 15_280_952,
    "dsb2018/panoptic_unetpp_R_18.yaml": NUCLEI + 4_132_678,
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
    "voc/mask_rcnn_R_50_FPN.yaml": MASK_RCNN - 60 * (5 * 1025 + 257),
    "voc/panoptic_deeplabv3plus_R_50.yaml": MASK_RCNN - 60 * (5 * 1025 + 257) + V3PLUS - 33 * 257,
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
