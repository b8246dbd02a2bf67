"""Whole networks against torchvision's with the same weights: image in, scores at the image's size out."""

from collections.abc import Mapping

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn
from torchvision.models import segmentation
from torchvision.transforms.functional import normalize

import seg_ext.modeling  # noqa: F401  registers the networks
from seg_ext.checkpoint.imagenet import fit
from seg_ext.config import load_config
from seg_ext.layers import resize_to

SIZE = (97, 65)
DECODERS = {
    "fcn": {},
    "deeplabv3": {
        "NAME": "deeplabv3",
        "ARGS": {"rates": [12, 24, 36], "dropout": 0.5, "head_conv": True, "aux": "res4"},
    },
}


def config(kind: str, depth: int) -> CfgNode:
    cfg = load_config("voc/fcn_R_50_d8.yaml", ["MODEL.RESNETS.DEPTH", str(depth), "MODEL.DEVICE", "meta"])
    if DECODERS[kind]:
        cfg.MODEL.SEM_SEG_HEAD.DECODER = CfgNode(DECODERS[kind])
    return cfg


def built(kind: str, depth: int, peer: nn.Module) -> nn.Module:
    """Our network with the peer's weights, and nothing else: the rest of the memory is left as it was found."""
    cfg = config(kind, depth)
    with torch.device("meta"):
        model = build_model(cfg)
    model.to_empty(device="cpu")
    for name, values in (("pixel_mean", cfg.MODEL.PIXEL_MEAN), ("pixel_std", cfg.MODEL.PIXEL_STD)):
        getattr(model, name).copy_(torch.tensor(values).view(-1, 1, 1))
    ours = model.state_dict()
    weights = fit(peer.backbone.state_dict(), ours)
    decoder = [key for key in ours if key.startswith("sem_seg_head.")]
    heads = [*peer.classifier.state_dict().values(), *peer.aux_classifier.state_dict().values()]
    model.load_state_dict({**(weights or {}), **dict(zip(decoder, heads, strict=True))}, strict=True)
    return model.eval()


def peer_of(kind: str, depth: int) -> nn.Module:
    """torchvision's network with random weights, BatchNorm statistics that are not the initial ones, in eval."""
    make = getattr(segmentation, f"{kind}_resnet{depth}")
    with torch.device("meta"):
        net = make(weights=None, weights_backbone=None, num_classes=21, aux_loss=True)
    net.to_empty(device="cpu")
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.uniform_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            for values in (module.weight, module.bias, module.running_mean):
                nn.init.uniform_(values, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            module.num_batches_tracked.zero_()
    return net.eval()


def assert_equal(got: Tensor, want: Tensor) -> None:
    assert got.shape == want.shape
    assert want.std() > 1e-3 and want.isfinite().all()
    assert (got - want).abs().max() <= 1e-5 * want.abs().max()


def training_outputs(model: nn.Module, image: Tensor) -> Mapping[str, Tensor]:
    """What the decoder gives in training, with BatchNorm and dropout as in inference."""
    model.train()
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.Dropout)):
            module.eval()
    features = model.backbone(((image - model.pixel_mean) / model.pixel_std)[None])
    return model.sem_seg_head.decoder({name: features[name] for name in model.sem_seg_head.in_features})


@pytest.mark.parametrize("depth", [50, 101])
@pytest.mark.parametrize("kind", DECODERS)
@torch.no_grad()
def test_equals_torchvision_with_the_same_weights(kind: str, depth: int) -> None:
    peer = peer_of(kind, depth)
    model = built(kind, depth, peer)
    image = torch.randint(0, 256, (3, *SIZE)).float()
    want = peer(normalize(image / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])[None])
    [got] = model([{"image": image, "height": SIZE[0], "width": SIZE[1]}])
    assert_equal(got["sem_seg"], want["out"][0])
    outputs = training_outputs(model, image)
    assert_equal(resize_to(outputs["aux_res4"], SIZE), want["aux"])
    assert_equal(resize_to(outputs["logits"], SIZE), want["out"])
