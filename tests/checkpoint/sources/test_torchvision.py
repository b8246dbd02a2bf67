"""torchvision's networks from their state dicts, and back: same weights and image, same scores, boxes and labels."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models import detection, resnet18
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, RPNHead, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNN, MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.models.segmentation import deeplabv3, fcn
from torchvision.ops import FrozenBatchNorm2d
from torchvision.transforms._presets import SemanticSegmentation

from seg_ext.checkpoint import read_checkpoint, write_safetensors
from seg_ext.data.mapper import SegMapper
from seg_ext.engine.export_weights import _torchvision, export_weights
from seg_ext.errors import UserError
from seg_ext.layers import resize_to
from seg_ext.modeling import meta_arch

BARE = {"weights": None, "weights_backbone": None}
SEMANTIC = {
    "fcn_resnet50": partial(fcn.fcn_resnet50, num_classes=7, aux_loss=True, **BARE),
    "fcn_resnet101": partial(fcn.fcn_resnet101, num_classes=21, aux_loss=False, **BARE),
    "deeplabv3_resnet50": partial(deeplabv3.deeplabv3_resnet50, num_classes=7, aux_loss=False, **BARE),
    "deeplabv3_resnet101": partial(deeplabv3.deeplabv3_resnet101, num_classes=21, aux_loss=True, **BARE),
}
DETECTION = {name: getattr(detection, name) for name in ("maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2")}


def narrow(kind: str, aux: bool) -> nn.Module:
    """The network with bottlenecks of an eighth of the width."""
    with torch.device("meta"):
        net = ResNet(Bottleneck, [3, 4, 6, 3], width_per_group=8, replace_stride_with_dilation=[False, True, True])
        return {"fcn": fcn._fcn_resnet, "deeplabv3": deeplabv3._deeplabv3_resnet}[kind](net, 7, aux)


@pytest.mark.parametrize(("kind", "aux"), [("fcn", True), ("deeplabv3", False)])
@torch.no_grad()
def test_scores_and_labels_of_an_image_are_the_peers(kit: SimpleNamespace, kind: str, aux: bool) -> None:
    peer = kit.used(narrow(kind, aux))
    ours = kit.build("torchvision", peer.state_dict())
    for image in kit.images((32, 32), (33, 65), (48, 32)):
        want = peer(kit.normalized(image))
        kit.assert_equal(ours.scores(image), want["out"][0])
    if aux:  # what the decoder gives in training, its BatchNorm and dropout as in inference
        decoder = ours.model.sem_seg_head.decoder
        features = ours.model.backbone(kit.normalized(image))
        decoder.training = True
        outputs = decoder({name: features[name] for name in ("res4", "res5")})
        decoder.training = False
        kit.assert_equal(resize_to(outputs["aux_res4"], image.shape[1:])[0], want["aux"][0])
    if kind == "fcn":
        assert_pipelines_agree(kit, ours, peer)


@pytest.mark.slow
@pytest.mark.parametrize("name", SEMANTIC)
@torch.no_grad()
def test_whole_networks_score_as_the_peers(kit: SimpleNamespace, name: str) -> None:
    peer = kit.used(SEMANTIC[name]())
    ours = kit.build("torchvision", peer.state_dict())
    for image in kit.images((64, 64), (65, 97)):
        kit.assert_equal(ours.scores(image), peer(kit.normalized(image))["out"][0])


def assert_pipelines_agree(kit: SimpleNamespace, ours: Any, peer: nn.Module) -> None:
    """Of an image of bytes: labels after each library's own resizing and normalisation."""
    assert ours.cfg.INPUT.MIN_SIZE_TEST == 520  # of torchvision's own pipeline
    ours.cfg.INPUT.MIN_SIZE_TEST = 48
    picture = Image.fromarray(kit.images((16, 20))[0].permute(1, 2, 0).byte().numpy()).resize((80, 60))
    [theirs] = peer(SemanticSegmentation(resize_size=48)(picture)[None])["out"]
    inputs = SegMapper(ours.cfg, is_train=False).map_image(np.array(picture))
    labels = ours.scores(inputs["image"].float()).argmax(0)
    assert (labels == theirs.argmax(0)).float().mean() > 0.9999 and len(labels.unique()) > 2


def small_mask_rcnn(second: bool) -> MaskRCNN:
    """On ResNet-18, with narrow heads, in the layout of maskrcnn_resnet50_fpn or of its _v2."""
    norm = nn.BatchNorm2d if second else None
    body = resnet18(weights=None, norm_layer=nn.BatchNorm2d if second else FrozenBatchNorm2d)
    return MaskRCNN(
        _resnet_fpn_extractor(body, 5, norm_layer=norm),
        num_classes=None,
        rpn_head=RPNHead(256, 3, conv_depth=1 + second),
        box_head=FastRCNNConvFCHead((256, 7, 7), [16] * 4, [32], norm) if second else TwoMLPHead(256 * 49, 32),
        box_predictor=FastRCNNPredictor(32, 4),
        mask_head=MaskRCNNHeads(256, [16] * 4, 1, norm_layer=norm),
        mask_predictor=MaskRCNNPredictor(16, 16, 4),
        min_size=64,
        max_size=96,
        box_score_thresh=0.0,
        rpn_pre_nms_top_n_test=60,
        rpn_post_nms_top_n_test=40,
        box_detections_per_img=10,
    )


@pytest.mark.parametrize("second", [False, True])
@torch.no_grad()
def test_mask_rcnn_finds_the_peers_objects(kit: SimpleNamespace, second: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    peer = kit.used(small_mask_rcnn(second))
    for name, value in peer.state_dict().items():  # boxes near the anchors, scores near each other
        value.mul_(0.02 if "bbox_pred" in name else 0.1 if "cls_" in name else 1)
    ours = kit.build("torchvision", peer.state_dict())
    ours.model.proposal_generator.pre_nms_topk[False], ours.model.proposal_generator.post_nms_topk[False] = 60, 40
    predictor = ours.model.roi_heads.box_predictor
    predictor.test_score_thresh, predictor.test_topk_per_image = 0.0, 10
    # Masks of 28x28 cells, as the two libraries paste them half a pixel apart.
    monkeypatch.setattr(peer.transform, "postprocess", lambda found, *sizes: found)
    monkeypatch.setattr(meta_arch, "detector_postprocess", lambda found, *size: found)
    [image] = kit.images((64, 96))
    [want] = peer([image / 255])
    found = ours.model([{"image": image, "height": 64, "width": 96}])[0]["instances"]
    assert len(found) == len(want["boxes"]) == 10 and torch.equal(found.pred_classes + 1, want["labels"])
    assert (found.pred_boxes.tensor - want["boxes"]).abs().max() < 1e-3  # pixels
    assert (found.scores - want["scores"]).abs().max() < 1e-5
    kit.assert_equal(found.pred_masks, want["masks"])
    with torch.device("meta"):
        state = list(DETECTION.values())[second](num_classes=91, **BARE).state_dict()
    imported, cfg = kit.place("torchvision", state)
    assert not imported.left_out and len(imported.classes["instance"]) == cfg.MODEL.ROI_HEADS.NUM_CLASSES == 90


def filled(net: nn.Module) -> dict[str, Tensor]:
    """Its state dict, every row of a tensor another number."""
    net.to_empty(device="cpu")
    state = net.state_dict()
    for index, value in enumerate(state.values()):
        rows = torch.arange(len(value) if value.dim() else 1).view(-1, *[1] * max(value.dim() - 1, 0))
        value.copy_((rows + index).expand(value.shape) if value.dim() else rows[0])
    return state


def on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return SEMANTIC[name]() if name in SEMANTIC else DETECTION[name](num_classes=5, **BARE)


@pytest.mark.parametrize("name", [*SEMANTIC, *DETECTION])
def test_every_tensor_finds_its_place(kit: SimpleNamespace, name: str) -> None:
    imported, _ = kit.place("torchvision", on_meta(name).state_dict())
    assert not imported.left_out and imported.title == f"torchvision's {name}"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fcn_resnet50", "deeplabv3_resnet50", "maskrcnn_resnet50_fpn"])
def test_every_tensor_finds_the_way_back(kit: SimpleNamespace, name: str) -> None:
    state = filled(on_meta(name))
    imported, _ = kit.place("torchvision", state)
    title, back = _torchvision("test", imported.weights)
    assert title == imported.title and back.keys() == state.keys()
    for key, value in state.items():
        # What is of the background, which nothing reads.
        background = 4 if "bbox_pred" in key and "roi" in key else 1 if "fcn_logits" in key else 0
        assert torch.equal(back[key][background:], value[background:]) if value.dim() else back[key] == value


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    ours = tmp_path / "ours.safetensors"
    write_safetensors(
        ours, {"backbone.stem.conv1.weight": torch.arange(3.0)}, sidecar={"format": 1, "task": "semantic"}
    )
    for target, output, text in (
        ("torchvision", "x.pth", "not of a network that torchvision has"),
        ("onnx", "x.pth", "--to onnx: takes one of torchvision, safetensors"),
        ("safetensors", "new/x.pth", "x.pth: takes a name that ends in .safetensors"),
        ("safetensors", "ours.safetensors", "ours.safetensors: is the checkpoint itself; give another name"),
    ):
        with pytest.raises(UserError, match=text):
            export_weights(str(ours), target, str(tmp_path / output))
    assert [file.name for file in tmp_path.iterdir()] == ["ours.safetensors"]
    export_weights(str(ours), "safetensors", str(tmp_path / "new" / "x.safetensors"))
    [there, here] = [read_checkpoint(file) for file in (tmp_path / "new" / "x.safetensors", ours)]
    assert there["sidecar"] == here["sidecar"] and there["model"]["backbone.stem.conv1.weight"].tolist() == [0, 1, 2]
