"""detectron2's own networks and its DeepLab projects': their published names, whole, give their outputs here."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from torch import Tensor, nn

from seg_ext._compat import import_model_zoo
from seg_ext.checkpoint import Checkpointer
from seg_ext.checkpoint.detectron2_names import in_our_order, our_names
from seg_ext.config import load_config

with pytest.MonkeyPatch.context() as patch:  # panopticapi, which is in no index, for a mapper that is not used here
    for missing in ("panopticapi", "panopticapi.utils"):
        patch.setitem(sys.modules, missing, ModuleType(missing))
    sys.modules["panopticapi.utils"].rgb2id = None
    from detectron2.projects.panoptic_deeplab import add_panoptic_deeplab_config

DEEPLABS = {
    "cityscapes/deeplabv3_R_103_os16.yaml": ("DeepLabV3Head", ["res5"], False),
    "cityscapes/deeplabv3plus_R_103_os16.yaml": ("DeepLabV3PlusHead", ["res2", "res5"], False),
    "cityscapes/panoptic_deeplab_R_52_os16.yaml": ("PanopticDeepLabSemSegHead", ["res2", "res3", "res5"], False),
    "cityscapes/panoptic_deeplab_R_52_os16_separable.yaml": (
        "PanopticDeepLabSemSegHead",
        ["res2", "res3", "res5"],
        True,
    ),
}
FPNS = {
    "coco/mask_rcnn_R_50_FPN_1x.yaml": "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
    "coco/panoptic_fpn_R_50_1x.yaml": "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml",
}
NARROW_FPN: dict[str, Any] = {
    "RESNETS.WIDTH_PER_GROUP": 4,
    "FPN.OUT_CHANNELS": 32,
    "ROI_BOX_HEAD.FC_DIM": 16,
    "ROI_MASK_HEAD.CONV_DIM": 16,
    "RPN.PRE_NMS_TOPK_TEST": 60,
    "RPN.POST_NMS_TOPK_TEST": 40,
    "ROI_HEADS.SCORE_THRESH_TEST": 0.0,
}


def deeplab(name: str) -> CfgNode:
    """detectron2's config of its DeepLab projects, as published for Cityscapes."""
    head, features, separable = DEEPLABS[name]
    cfg = get_cfg()
    add_panoptic_deeplab_config(cfg)
    panoptic = head.startswith("Panoptic")
    model = cfg.MODEL
    model.META_ARCHITECTURE = "PanopticDeepLab" if panoptic else "SemanticSegmentor"
    model.BACKBONE.NAME, model.BACKBONE.FREEZE_AT = "build_resnet_deeplab_backbone", 0
    model.PIXEL_MEAN, model.PIXEL_STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    model.RESNETS.update(
        {
            "DEPTH": 50 if panoptic else 101,
            "OUT_FEATURES": ["res2", "res3", "res5"],
            "STEM_OUT_CHANNELS": 128,
            "STRIDE_IN_1X1": False,
            "NORM": "SyncBN",
            "RES5_DILATION": 2,
        }
    )
    model.SEM_SEG_HEAD.update(
        {
            "NAME": head,
            "IN_FEATURES": features,
            "NUM_CLASSES": 19,
            "NORM": "SyncBN",
            "CONVS_DIM": 256,
            "PROJECT_CHANNELS": [32, 64] if panoptic else [48],
            "COMMON_STRIDE": 16 if head == "DeepLabV3Head" else 4,
            "USE_DEPTHWISE_SEPARABLE_CONV": separable,
        }
    )
    model.PANOPTIC_DEEPLAB.USE_DEPTHWISE_SEPARABLE_CONV = separable
    cfg.INPUT.CROP.update({"ENABLED": True, "TYPE": "absolute", "SIZE": [512, 1024]})
    cfg.DATASETS.TRAIN = ("cityscapes_fine_panoptic_train",)
    return cfg


def fpn(name: str) -> CfgNode:
    return import_model_zoo().get_config(FPNS[name])


def put(cfg: CfgNode, values: dict[str, Any]) -> CfgNode:
    for key, value in values.items():
        node, _, leaf = key.rpartition(".")
        parent = cfg.MODEL
        for part in filter(None, node.split(".")):
            parent = parent[part]
        parent[leaf] = value
    return cfg


@pytest.mark.parametrize("name", [*DEEPLABS, *FPNS])
def test_every_published_name_is_consumed(name: str) -> None:
    theirs = (deeplab if name in DEEPLABS else fpn)(name)
    ours = load_config(name)
    theirs.MODEL.DEVICE = ours.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        state, model = build_model(theirs).state_dict(), build_model(ours).state_dict()
    renamed = in_our_order(state, our_names(state, model))
    assert {key: x.shape for key, x in renamed.items()} == {key: x.shape for key, x in model.items()}


@pytest.mark.parametrize(
    "name", ["COCO-InstanceSegmentation/mask_rcnn_X_101_32x8d_FPN_3x.yaml", FPNS["coco/panoptic_fpn_R_50_1x.yaml"]]
)
def test_an_import_has_the_published_config(kit: SimpleNamespace, name: str) -> None:
    theirs = import_model_zoo().get_config(name)
    theirs.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        state = build_model(theirs).state_dict()
    ours, theirs = kit.place("detectron2", state)[1].MODEL, theirs.MODEL
    assert (ours.PIXEL_MEAN, ours.PIXEL_STD) == (theirs.PIXEL_MEAN, theirs.PIXEL_STD)
    for key in ("DEPTH", "NUM_GROUPS", "WIDTH_PER_GROUP", "STRIDE_IN_1X1"):
        assert ours.RESNETS[key] == theirs.RESNETS[key], key
    assert ours.ROI_HEADS.NUM_CLASSES == theirs.ROI_HEADS.NUM_CLASSES == 80


def published(kit: SimpleNamespace, cfg: CfgNode, folder: Path) -> tuple[nn.Module, str]:
    """The peer with random weights, and the file that detectron2 would publish."""
    cfg.MODEL.DEVICE = "cpu"
    peer = kit.used(build_model(cfg))
    for key, value in peer.state_dict().items():  # boxes near the anchors, scores near each other
        value.mul_(1e-4 if any(part in key for part in ("bbox_pred", "anchor_deltas", "cls_score")) else 1)
    arrays = {key: value.numpy() for key, value in peer.state_dict().items()}
    (folder / "model_final.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "Detectron2 Model Zoo"}))
    return peer, str(folder / "model_final.pkl")


def loaded(cfg: CfgNode, file: str) -> nn.Module:
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    checkpointer = Checkpointer(model.eval())
    checkpointer.load(file)
    assert checkpointer.report.clean, checkpointer.report.line()
    return model


def maps(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Semantic scores and, where it has them, centres and offsets."""
    features = model.backbone(x)
    found = {"scores": model.sem_seg_head(features)[0]}
    head = getattr(model, "ins_embed_head", None)
    if head is not None:
        size = x.shape[-2:]
        found |= dict(
            zip(("centre", "offset"), head(features, size) if hasattr(head, "branch") else head(features), strict=False)
        )
    return found


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * ("separable" in name)) for name in DEEPLABS]
)
@torch.no_grad()
def test_deeplabs_give_detectron2s_maps_on_crops_and_larger_images(
    kit: SimpleNamespace, name: str, tmp_path: Path
) -> None:
    narrow = {"RESNETS.DEPTH": 50, "RESNETS.WIDTH_PER_GROUP": 4, "RESNETS.NORM": "BN", "SEM_SEG_HEAD.NORM": "BN"}
    theirs, ours = put(deeplab(name), narrow), put(load_config(name), narrow)
    theirs.INPUT.CROP.SIZE = [32, 64]
    sem = {"channels": 16, "pool": [2, 4]}
    put(theirs, {"SEM_SEG_HEAD.ASPP_CHANNELS": 16, "SEM_SEG_HEAD.CONVS_DIM": 16, "INS_EMBED_HEAD.NORM": "BN"})
    if "panoptic" in name:
        put(theirs, {"SEM_SEG_HEAD.HEAD_CHANNELS": 16, "INS_EMBED_HEAD.ASPP_CHANNELS": 16})
        put(ours, {"INS_EMBED_HEAD.NORM": "BN"})
        ours.MODEL.INS_EMBED_HEAD.ARGS.update({"aspp_channels": 16, "pool": [2, 4]})
        sem |= {"aspp_channels": 16, "head_channels": 16}
    ours.MODEL.SEM_SEG_HEAD.DECODER.ARGS.update(sem)
    peer, file = published(kit, theirs, tmp_path)
    model = loaded(ours, file)
    for image in kit.images((32, 64), (32, 128))["separable" in name :]:  # dilated depthwise convolutions are slow
        want, got = maps(peer, kit.normalized(image)), maps(model, kit.normalized(image))
        assert got.keys() == want.keys()
        for key, value in want.items():
            kit.assert_equal(got[key], value)


@pytest.mark.parametrize("name", FPNS)
@torch.no_grad()
def test_fpn_networks_give_detectron2s_outputs(kit: SimpleNamespace, name: str, tmp_path: Path) -> None:
    peer, file = published(kit, put(fpn(name), NARROW_FPN), tmp_path)
    model = loaded(put(load_config(name), NARROW_FPN), file)
    [image] = kit.images((64, 96))
    inputs = [{"image": image, "height": 64, "width": 96}]
    [want], [got] = peer(inputs), model(inputs)
    theirs, ours = want["instances"], got["instances"]
    assert len(ours) == len(theirs) > 5 and torch.equal(ours.pred_classes, theirs.pred_classes)
    assert (ours.pred_boxes.tensor - theirs.pred_boxes.tensor).abs().max() < 1e-4  # pixels
    assert (ours.scores - theirs.scores).abs().max() < 1e-5 and torch.equal(ours.pred_masks, theirs.pred_masks)
    assert ("sem_seg" in want) == ("panoptic" in name)
    if "sem_seg" in want:
        kit.assert_equal(got["sem_seg"], want["sem_seg"])
