"""Every decoder beside Mask R-CNN on every kind of backbone: builds at full size, or is refused with the reason."""

from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Instances
from detectron2.utils.events import EventStorage

import seg_ext.modeling  # noqa: F401  registers models
from seg_ext.config import load_config
from seg_ext.decoders import DECODERS
from seg_ext.errors import UserError

C5: dict[str, Any] = {"RPN.IN_FEATURES": ["res5"], "ROI_HEADS.IN_FEATURES": ["res5"]}
C4: dict[str, Any] = {
    "RPN.IN_FEATURES": ["res4"],
    "ROI_HEADS.IN_FEATURES": ["res4"],
    "ROI_HEADS.NAME": "Res5ROIHeads",
    "ROI_BOX_HEAD.POOLER_RESOLUTION": 14,
    "ROI_MASK_HEAD.NUM_CONV": 0,
}
DILATED = {
    "BACKBONE.NAME": "build_seg_ext_resnet_backbone",
    "RESNETS.OUTPUT_STRIDE": 16,
    "ANCHOR_GENERATOR.SIZES": [[32, 64, 128, 256, 512]],
}
POOLS = ["pool2", "pool3", "pool4", "pool5"]
STAGES = ["stage2", "stage3", "stage4", "stage5"]
BACKBONES: dict[str, dict[str, Any]] = {  # keys below MODEL
    "R-50-FPN": {},
    "dilated R-50, C5": {**DILATED, **C5},
    "dilated R-50, C4": {**DILATED, **C4},
    "VGG-16-FPN": {
        "BACKBONE.NAME": "build_seg_ext_vgg_fpn_backbone",
        "VGG.OUT_FEATURES": POOLS,
        "FPN.IN_FEATURES": POOLS,
    },
    "VGG-16, C5": {
        "BACKBONE.NAME": "build_seg_ext_vgg_backbone",
        "VGG.OUT_FEATURES": POOLS,
        "ANCHOR_GENERATOR.SIZES": [[64, 128], [256, 512]],
        "RPN.IN_FEATURES": ["pool4", "pool5"],
        "ROI_HEADS.IN_FEATURES": ["pool4", "pool5"],
    },
    "timm-FPN": {
        "BACKBONE.NAME": "build_seg_ext_timm_fpn_backbone",
        "TIMM.NAME": "mobilenetv3_small_050",
        "FPN.IN_FEATURES": STAGES,
    },
}
MAPS = {"VGG-16-FPN": POOLS, "VGG-16, C5": POOLS, "timm-FPN": STAGES}  # the others give res2..res5
NARROW: dict[str, Any] = {
    "RESNETS.DEPTH": 18,
    "RESNETS.RES2_OUT_CHANNELS": 64,
    "RESNETS.NORM": "GN",
    "VGG.WIDTH": 4,
    "VGG.NORM": "GN",
    "FPN.OUT_CHANNELS": 16,
    "ROI_BOX_HEAD.FC_DIM": 16,
    "ROI_MASK_HEAD.CONV_DIM": 16,
    "ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
    "ROI_HEADS.NUM_CLASSES": 3,
    "SEM_SEG_HEAD.NUM_CLASSES": 5,
}
UNPOOLS = {"segnet": 5, "segnet_basic": 4}  # poolings whose places these read


def config(decoder: str, backbone: str, *, device: str = "meta", **more: Any) -> CfgNode:
    """The decoder beside Mask R-CNN; keys below MODEL in ``more``, with "__" for dots."""
    cfg = load_config("Base-COCO.yaml", ["MODEL.DEVICE", device])
    maps = MAPS.get(backbone, ["res2", "res3", "res4", "res5"])
    maps = [maps[0], maps[-1]] if decoder == "deeplabv3plus" else maps
    maps = maps[:3] if decoder == "linknet" and backbone == "dilated R-50, C5" else maps  # of growing strides
    keys = {"BACKBONE.FREEZE_AT": 0, "SEM_SEG_HEAD.IN_FEATURES": maps, **BACKBONES[backbone]}
    if decoder in UNPOOLS and backbone == "VGG-16-FPN":
        indices = [f"pool{i}_indices" for i in range(1, UNPOOLS[decoder] + 1)]
        pools = POOLS[: UNPOOLS[decoder] - 1]
        levels = [f"p{name[-1]}" for name in pools]
        keys |= {"VGG.VARIANT": decoder, "VGG.NORM": "BN", "VGG.OUT_FEATURES": [*indices, *pools]}
        keys |= {"FPN.IN_FEATURES": pools, "SEM_SEG_HEAD.IN_FEATURES": ["image", *indices, pools[-1]]}
        keys |= {"ROI_HEADS.IN_FEATURES": levels, "RPN.IN_FEATURES": [*levels, f"p{len(indices) + 1}"]}
        keys |= {"ANCHOR_GENERATOR.SIZES": [[32], [64], [128], [256], [512]][: len(levels) + 1]}
    for key, value in {**keys, **{k.replace("__", "."): v for k, v in more.items()}}.items():
        *nodes, leaf = key.split(".")
        node = cfg.MODEL
        for name in nodes:
            node = node[name]
        node[leaf] = value
    cfg.MODEL.SEM_SEG_HEAD.DECODER.NAME = decoder
    return cfg


def refusal(cfg: CfgNode) -> str:
    with pytest.raises(UserError) as caught, torch.device("meta"):
        build_model(cfg)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("backbone", ["R-50-FPN", "dilated R-50, C5", "VGG-16-FPN", "timm-FPN"])
@pytest.mark.parametrize("decoder", DECODERS)
def test_every_decoder_builds_beside_mask_rcnn_or_says_what_the_backbone_lacks(decoder: str, backbone: str) -> None:
    cfg = config(decoder, backbone)
    if decoder in UNPOOLS and backbone != "VGG-16-FPN":
        said = refusal(cfg)
        assert "pool1_indices" in said and "an encoder that returns its max-pooling indices" in said
        return
    with torch.device("meta"):
        model = build_model(cfg).eval()
        features = model.backbone(torch.empty(1, 3, 96, 128))
        logits = model.sem_seg_head.decoder({name: features[name] for name in model.sem_seg_head.in_features})["logits"]
        levels = [features[name] for name in model.proposal_generator.in_features]
        objectness = model.proposal_generator.rpn_head(levels)[0]
    assert logits.shape[1] == 54 and model.roi_heads.mask_on
    assert [x.shape[-2:] for x in objectness] == [x.shape[-2:] for x in levels]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_narrow_model_on_each_backbone_gives_every_parameter_a_gradient(backbone: str) -> None:
    torch.manual_seed(0)
    narrow = {key.replace(".", "__"): value for key, value in NARROW.items()}
    model = build_model(config("fcn_sum", backbone, device="cpu", **narrow))
    truth = Instances((70, 90), gt_classes=torch.tensor([0, 2]))
    truth.gt_masks = BitMasks(torch.zeros(2, 70, 90, dtype=torch.bool))
    truth.gt_masks.tensor[0, 5:40, 8:44] = truth.gt_masks.tensor[1, 20:66, 40:84] = True
    truth.gt_boxes = truth.gt_masks.get_bounding_boxes()
    inputs = {"image": torch.rand(3, 70, 90) * 255, "sem_seg": torch.randint(0, 5, (70, 90)), "instances": truth}
    with EventStorage():
        losses = model.train()([inputs])
    sum(losses.values()).backward()
    assert {"loss_sem_seg", "loss_mask", "loss_cls", "loss_rpn_cls"} <= set(losses)
    poor = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert poor == []
    with torch.no_grad():
        assert model.eval()([inputs])[0]["panoptic_seg"][0].shape == (70, 90)


@pytest.mark.parametrize(
    ("backbone", "keys", "text"),
    [
        ("R-50-FPN", {"ROI_HEADS__NAME": "", "RPN__IN_FEATURES": ["p9"]}, "PROPOSAL_GENERATOR.NAME and .* go together"),
        ("R-50-FPN", {"RPN__IN_FEATURES": ["p2", "p9"]}, r"MODEL.RPN.IN_FEATURES \['p2', 'p9'\]: p9 not given by the"),
        ("R-50-FPN", {"ROI_HEADS__IN_FEATURES": []}, r"MODEL.ROI_HEADS.IN_FEATURES \[\]: is empty, which gives image"),
        ("R-50-FPN", {"ROI_HEADS__IN_FEATURES": ["p2", "p4"]}, "strides {'p2': 4, 'p4': 16}; takes one map, or maps"),
        ("R-50-FPN", {"ROI_HEADS__IN_FEATURES": ["res2", "res3"]}, "channels {'res2': 256, 'res3': 512}; .* equal"),
        ("R-50-FPN", {"ROI_HEADS__IN_FEATURES": ["image"]}, "image holds the image, no features"),
        ("R-50-FPN", {"ANCHOR_GENERATOR__SIZES": [[8], [16]]}, "SIZES has 2 lists for 5 of MODEL.RPN.IN_FEATURES"),
        ("R-50-FPN", {"ANCHOR_GENERATOR__SIZES": [[8, 9]] + [[8]] * 4}, r" \[6, 3, 3, 3, 3\] anchors a cell: takes"),
        ("R-50-FPN", {"ANCHOR_GENERATOR__SIZES": [[8], 16, [32], [64], [128]]}, "SIZES .* mixes lists and numbers"),
        ("R-50-FPN", {"ANCHOR_GENERATOR__SIZES": [[]]}, r" \[0, 0, 0, 0, 0\] anchors a cell"),
        ("R-50-FPN", {"RESNETS__OUTPUT_STRIDE": 16}, "strides {'p2': 4, 'p3': 8, 'p4': 16, 'p5': 16}; takes one map"),
        ("R-50-FPN", {"SEM_SEG_HEAD__THING_IDS": [54]}, "THING_IDS has 54: takes semantic classes, 0 to 53"),
        ("R-50-FPN", {"SEM_SEG_HEAD__THING_IDS": ["car"]}, "THING_IDS has car: takes semantic classes, 0 to 53"),
        ("R-50-FPN", {"SEM_SEG_HEAD__IN_FEATURES": ["res6"]}, "res6 not given by the backbone"),
        ("R-50-FPN", {"SEM_SEG_HEAD__IN_FEATURES": [5, ["p2"]]}, r"5, \['p2'\] not given by the backbone"),
        ("R-50-FPN", {"FPN__OUT_CHANNELS": 0}, "MODEL.FPN.OUT_CHANNELS 0: takes a number >= 1"),
        ("dilated R-50, C4", {"ROI_HEADS__IN_FEATURES": ["res5"]}, r"of \[2048\] channels: takes one map as wide as"),
        ("dilated R-50, C4", {"KEYPOINT_ON": True}, "gives no keypoints"),
        (
            "VGG-16, C5",
            {"VGG__VARIANT": "fcn", "VGG__OUT_FEATURES": ["pool4", "fc7"], "RPN__IN_FEATURES": ["fc7"]},
            "fc7 begins at pixel -3 of the image, and regions need maps that begin at 0",
        ),
        (
            "VGG-16-FPN",
            {"VGG__VARIANT": "segnet", "FPN__IN_FEATURES": ["pool1_indices"], "VGG__OUT_FEATURES": ["pool1_indices"]},
            r"MODEL.FPN.IN_FEATURES \['pool1_indices'\]: pool1_indices holds pooling places, no features",
        ),
    ],
)
def test_maps_that_heads_on_regions_cannot_read_are_refused_by_key(backbone: str, keys: dict, text: str) -> None:
    cfg = config("fcn_sum", backbone, **keys)
    with pytest.raises(UserError, match=text):
        build_model(cfg)
