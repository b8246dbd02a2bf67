"""Every decoder beside Mask R-CNN learns four small images by heart: labels, masks and segments, on one narrow VGG."""

from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Instances
from detectron2.utils.events import EventStorage
from pycocotools import mask as mask_util
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn

import seg_ext.modeling  # noqa: F401  registers models
from seg_ext.config import load_config
from seg_ext.decoders import DECODERS
from seg_ext.metrics import confusion_matrix, semantic_scores

SIDE = 64  # pixels
CLASSES, THINGS = 4, {2: 0, 3: 1}  # two of stuff, then two of things: semantic class -> instance class
POOLS = ["pool2", "pool3", "pool4", "pool5"]
ARGS: dict[str, dict[str, Any]] = {  # narrow ones, and those that the places of pixels need
    "fcn": {"replicate_border": True},
    "unetpp": {"dropout": 0.0},
    "unet3p": {"channels": 8},
    "refinenet": {"channels": 16, "deepest_channels": 32},
    "gcn": {"kernel_size": 5},
    "deeplabv3plus": {"channels": 32, "low_level_channels": 8},
    "pspnet": {"channels": 32, "aux": False},
    "semantic_fpn": {"channels": 16, "pyramid": 16},
    "deeplabv3": {"channels": 32},
}
FAST = ("fcn_sum",)  # in the default run
COARSE = ("deeplabv1", "deeplabv2", "deeplabv3", "fcn_head", "pspnet", "dilated_context")  # of one map
UNPOOLS = {"segnet": 5, "segnet_basic": 4}  # poolings whose places these read


def config(decoder: str) -> CfgNode:
    """An eighth of VGG's width with GroupNorm under a pyramid; decoders of one map read the pyramid's of stride 4."""
    cfg = load_config("Base-COCO.yaml", ["MODEL.DEVICE", "cpu"])
    model = cfg.MODEL
    indices = [f"pool{i}_indices" for i in range(1, UNPOOLS.get(decoder, 0) + 1)]
    pools = POOLS[: len(indices) - 1] if indices else POOLS
    model.BACKBONE.NAME, model.BACKBONE.FREEZE_AT = "build_seg_ext_vgg_fpn_backbone", 0
    model.VGG.VARIANT = decoder if indices else "plain"
    model.VGG.WIDTH, model.VGG.NORM, model.VGG.OUT_FEATURES = 8, "GN", [*indices, *pools]
    model.FPN.IN_FEATURES, model.FPN.OUT_CHANNELS, model.FPN.NORM = pools, 32, "GN"
    head = model.SEM_SEG_HEAD
    head.NUM_CLASSES, head.THING_IDS, head.LOSS_WEIGHT = CLASSES, list(THINGS), 1.0
    head.IN_FEATURES = ["image", *indices, pools[-1]] if indices else ["p2"] if decoder in COARSE else pools
    if decoder == "deeplabv3plus":
        head.IN_FEATURES = ["pool2", "pool4"]
    head.DECODER.NAME = decoder
    head.DECODER.ARGS.update(ARGS.get(decoder, {}))
    model.RPN.IN_FEATURES, model.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4"], ["p2", "p3"]
    model.ANCHOR_GENERATOR.SIZES = [[12], [24], [48]]
    model.RPN.PRE_NMS_TOPK_TRAIN = model.RPN.POST_NMS_TOPK_TRAIN = 100
    model.RPN.PRE_NMS_TOPK_TEST = model.RPN.POST_NMS_TOPK_TEST = 50
    model.ROI_HEADS.NUM_CLASSES, model.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 2, 32
    model.ROI_BOX_HEAD.FC_DIM, model.ROI_BOX_HEAD.NUM_FC = 64, 1
    model.ROI_MASK_HEAD.CONV_DIM, model.ROI_MASK_HEAD.NUM_CONV, model.ROI_MASK_HEAD.POOLER_RESOLUTION = 32, 2, 7
    model.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT = 16
    return cfg


def scene(index: int) -> dict[str, Any]:
    """Two halves of stuff, and on them a rectangle of one class of things and two Ls of the other.

    Edges lie on multiples of 4 pixels, so that scores on cells of 4 can give them exactly.
    """
    draw = torch.Generator().manual_seed(index)
    label = (torch.arange(SIDE) >= SIDE // 2 + 4 * index - 8).long().expand(SIDE, SIDE).clone()
    masks = torch.zeros(3, SIDE, SIDE, dtype=torch.bool)
    for number, (top, left) in enumerate([(4, 4), (8, 36), (36, 4 + 8 * (index % 2))]):
        size = 20 - 4 * ((number + index) % 2)
        masks[number, top : top + size, left : left + size + 4] = True
        masks[number, top : top + size // 8 * 4, left : left + size // 8 * 4] = number == 0
    classes = torch.tensor([0, 1, 1]) if index % 2 else torch.tensor([1, 0, 0])
    for mask, kind in zip(masks, classes.tolist(), strict=True):
        label[mask] = kind + 2
    colours = torch.tensor([[30.0, 90, 160, 220], [160, 30, 220, 90], [90, 220, 30, 160]])
    truth = Instances((SIDE, SIDE), gt_masks=BitMasks(masks), gt_classes=classes)
    truth.gt_boxes = truth.gt_masks.get_bounding_boxes()
    image = colours[:, label] + 10 * torch.randn(3, SIDE, SIDE, generator=draw)
    return {"image": image, "sem_seg": label, "instances": truth, "height": SIDE, "width": SIDE}


def rle(mask: Tensor) -> dict[str, Any]:
    return mask_util.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))


def mask_ap50(outputs: list[dict[str, Any]], inputs: list[dict[str, Any]]) -> float:
    """Mask AP at IoU 0.5 by pycocotools."""
    truth, found = COCO(), []
    annotations: list[dict[str, Any]] = []
    for number, (output, x) in enumerate(zip(outputs, inputs, strict=True), start=1):
        real, guess = x["instances"], output["instances"]
        for mask, kind in zip(real.gt_masks.tensor, real.gt_classes.tolist(), strict=True):
            entry = {"id": len(annotations) + 1, "image_id": number, "category_id": kind + 1, "iscrowd": 0}
            annotations.append(entry | {"segmentation": rle(mask), "area": int(mask.sum()), "bbox": [0, 0, 1, 1]})
        for mask, kind, score in zip(guess.pred_masks, guess.pred_classes.tolist(), guess.scores.tolist(), strict=True):
            found.append({"image_id": number, "category_id": kind + 1, "segmentation": rle(mask), "score": score})
    images = [{"id": number + 1, "height": SIDE, "width": SIDE} for number in range(len(inputs))]
    truth.dataset = {"images": images, "annotations": annotations, "categories": [{"id": 1}, {"id": 2}], "info": {}}
    truth.createIndex()
    if not found:
        return 0.0
    scores = COCOeval(truth, truth.loadRes(found), "segm")
    scores.evaluate()
    scores.accumulate()
    precision = scores.eval["precision"][0, :, :, 0, 2]  # IoU 0.5, all areas, 100 detections
    return float(precision[precision >= 0].mean())


def mean_iou(outputs: list[dict[str, Any]], inputs: list[dict[str, Any]]) -> float:
    pairs = [(out["sem_seg"].argmax(0).numpy(), x["sem_seg"].numpy()) for out, x in zip(outputs, inputs, strict=True)]
    return semantic_scores(sum(confusion_matrix(*pair, CLASSES, ignore=255) for pair in pairs)).miou


def fit(model: nn.Module, inputs: list[dict[str, Any]], *, lr: float, steps: int = 600) -> tuple[float, float]:
    """Train with AdamW until both are enough: the mean IoU and the mask AP50."""
    optimizer = torch.optim.AdamW(model.parameters(), lr)
    for step in range(1, steps + 1):
        with EventStorage():
            losses: dict[str, Tensor] = model.train()(inputs)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        if step >= 60 and step % 20 == 0 or step == steps:
            with torch.no_grad():
                outputs = model.eval()(inputs)
            scores = mean_iou(outputs, inputs), mask_ap50(outputs, inputs)
            if scores[0] > 0.95 and scores[1] > 0.9:
                break
    return scores


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("decoder", [d if d in FAST else pytest.param(d, marks=pytest.mark.slow) for d in DECODERS])
def test_four_images_are_learnt_by_heart(decoder: str) -> None:
    torch.manual_seed(0)
    model = build_model(config(decoder))
    miou, ap50 = fit(model, [scene(index) for index in range(4)], lr=6e-3 if decoder in FAST else 3e-3)
    assert miou > 0.95 and ap50 > 0.9
