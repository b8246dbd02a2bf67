"""segmentation_models_pytorch's networks and detectron2's Semantic FPN: same weights, same features, same scores.

The peers' networks are the papers' with other choices; each choice is an argument here.
"""

from functools import partial

import pytest
import segmentation_models_pytorch as smp
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from torch import nn

from seg_ext.decoders import DeepLabV3, DeepLabV3Plus, PSPNet, SemanticFPN, UNetPP
from seg_ext.layers import ConvNormAct, FeatureSpec, SeparableConv, group_norm

CLASSES = 5
SIZE = (64, 96)


def randomise(module):
    """Weights and statistics that no two layers share, scores of order 1."""
    torch.manual_seed(0)
    for name, value in module.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2)
        elif value.is_floating_point():
            value.normal_(std=(1.5 / value[0].numel()) ** 0.5 if value.dim() > 1 else 0.3)
            value.add_(1 if name.endswith("weight") and value.dim() == 1 else 0)
    return module.eval()


def smp_pair(network, backbone, **options):
    """A network of segmentation_models_pytorch, its encoder's maps of a random image, and ours to read them."""
    peer = randomise(network(backbone, encoder_weights=None, classes=CLASSES, **options))
    with torch.no_grad():
        maps = peer.encoder(torch.randn(2, 3, *SIZE))
    names = ("image", "conv1", "res2", "res3", "res4", "res5")
    specs = {name: FeatureSpec(x.shape[1], SIZE[0] // x.shape[2]) for name, x in zip(names, maps, strict=False)}
    return peer, maps, specs, dict(zip(names, maps, strict=False))


def conv_norm(ours: ConvNormAct, conv, norm=None):
    ours.conv.load_state_dict(conv.state_dict())
    if ours.norm is not None:
        ours.norm.load_state_dict(norm.state_dict())
    else:
        assert norm is None or isinstance(norm, nn.Identity)


def separable(ours: SeparableConv, convs, norm):
    conv_norm(ours.depthwise, convs[0])
    conv_norm(ours.pointwise, convs[1], norm)


def assert_equal_scores(ours, features, peer, maps):
    with torch.no_grad():
        scores = peer.segmentation_head[0](peer.decoder(maps))
        torch.testing.assert_close(ours.eval()(features)["logits"], scores, atol=1e-5, rtol=1e-5)
    assert scores.std() > 1e-2 and sum(p.numel() for p in ours.parameters()) == sum(
        p.numel() for part in (peer.decoder, peer.segmentation_head) for p in part.parameters()
    )


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
def test_unetpp(backbone):
    peer, maps, specs, features = smp_pair(smp.UnetPlusPlus, backbone)
    del specs["image"]
    ours = UNetPP(
        specs,
        CLASSES,
        norm=nn.BatchNorm2d,
        deep_supervision=False,
        up="nearest",
        skip_first=False,
        channels=(256, 128, 64, 32),
        extra_ups=(16,),
    )
    for i in range(4):
        for j in range(1, 5 - i):  # X(i, j) is their x_{4 - i - j}_{3 - i}
            block = peer.decoder.blocks[f"x_{4 - i - j}_{3 - i}"]
            for conv, theirs in zip(ours.nodes[f"x{i}{j}"].convs, (block.conv1, block.conv2), strict=True):
                conv_norm(conv, *list(theirs)[:2])
    last = peer.decoder.blocks["x_0_4"]
    for conv, theirs in zip(ours.extra[0].convs, (last.conv1, last.conv2), strict=True):
        conv_norm(conv, *list(theirs)[:2])
    ours.heads["x04"] = peer.segmentation_head[0]
    assert_equal_scores(ours, features, peer, maps)


def copy_aspp(ours, theirs, branch):
    conv_norm(ours.point, *list(theirs.convs[0])[:2])
    for conv, peer in zip(ours.atrous, theirs.convs[1:4], strict=True):
        branch(conv, *list(peer)[:2])
    conv_norm(ours.image, *list(theirs.convs[4])[1:3])
    conv_norm(ours.project, *list(theirs.project)[:2])


@pytest.mark.parametrize("stride", [8, 16])
def test_deeplabv3plus(stride):
    peer, maps, specs, features = smp_pair(smp.DeepLabV3Plus, "resnet18", encoder_output_stride=stride)
    ours = DeepLabV3Plus(
        {name: specs[name] for name in ("res2", "res5")},
        CLASSES,
        norm=nn.BatchNorm2d,
        rates=(12, 24, 36),
        separable=True,
        bare_depthwise=True,
        aspp_conv=True,
        refine_convs=1,
        align_corners=True,
    )
    decoder = peer.decoder
    copy_aspp(ours.aspp, decoder.aspp[0], separable)
    separable(ours.aspp_conv, *list(decoder.aspp)[1:3])
    conv_norm(ours.low_level, *list(decoder.block1)[:2])
    separable(ours.refine[0], *list(decoder.block2)[:2])
    ours.score = peer.segmentation_head[0]
    assert_equal_scores(ours, features, peer, maps)


def test_deeplabv3():
    peer, maps, specs, features = smp_pair(smp.DeepLabV3, "resnet18", aspp_separable=False)
    specs = {"res5": specs["res5"]}
    ours = DeepLabV3(specs, CLASSES, norm=nn.BatchNorm2d, rates=(12, 24, 36), channels=256, head_conv=True)
    copy_aspp(ours.aspp, peer.decoder.aspp, conv_norm)
    conv_norm(ours.refine, peer.decoder.conv, peer.decoder.bn)
    ours.score = peer.segmentation_head[0]
    assert_equal_scores(ours, features, peer, maps)


def test_pspnet():
    peer, maps, specs, features = smp_pair(smp.PSPNet, "resnet18")
    ours = PSPNet(
        {"res3": specs["res3"]},
        CLASSES,
        norm=nn.BatchNorm2d,
        kernel_size=1,
        score_kernel_size=3,
        norm_mean=False,
        aux=None,
    )
    for projection, block in zip(ours.pyramid.projections, peer.decoder.psp.blocks, strict=True):
        conv_norm(projection, *list(block.pool[1])[:2])
    # Their concatenation ends with the map itself, ours begins with it.
    weight = peer.decoder.conv[0].weight.data
    means = weight.shape[1] - specs["res3"].channels
    conv_norm(ours.head[0], *list(peer.decoder.conv)[:2])
    ours.head[0].conv.weight.data = torch.cat((weight[:, means:], weight[:, :means]), dim=1)
    ours.head[-1] = peer.segmentation_head[0]
    assert_equal_scores(ours, features, peer, maps)


def test_fpn():
    peer, maps, specs, features = smp_pair(smp.FPN, "resnet18")
    specs = {name: specs[name] for name in ("res2", "res3", "res4", "res5")}
    norm = partial(nn.GroupNorm, 32)
    ours = SemanticFPN(specs, CLASSES, norm=norm, pyramid=256, align_corners=True)
    decoder = peer.decoder
    ours.laterals["res5"].load_state_dict(decoder.p5.state_dict())
    for name, level in (("res2", decoder.p2), ("res3", decoder.p3), ("res4", decoder.p4)):
        ours.laterals[name].load_state_dict(level.skip_conv.state_dict())
    for name, branch in zip(("res5", "res4", "res3", "res2"), decoder.seg_blocks, strict=True):
        for conv, theirs in zip(ours.branches[name], branch.block, strict=True):
            conv_norm(conv, *list(theirs.block)[:2])
    ours.score = peer.segmentation_head[0]
    assert_equal_scores(ours, features, peer, maps)


@pytest.mark.parametrize("norm", ["GN", ""])
def test_detectron2s_semantic_fpn_head(norm, make_features):
    specs = {f"p{i}": FeatureSpec(32, 2**i) for i in (2, 3, 4, 5)}
    shapes = {name: ShapeSpec(channels=32, stride=spec.stride) for name, spec in specs.items()}
    peer = randomise(SemSegFPNHead(shapes, num_classes=CLASSES, conv_dims=64, common_stride=4, norm=norm))
    ours = SemanticFPN(specs, CLASSES, norm=group_norm if norm else None, channels=64).eval()
    for name, convs in ours.branches.items():
        theirs = [layer for layer in getattr(peer, name) if isinstance(layer, nn.Conv2d)]
        for conv, layer in zip(convs, theirs, strict=True):
            conv.load_state_dict(
                {f"{'' if k.startswith('norm') else 'conv.'}{k}": v for k, v in layer.state_dict().items()}
            )
    ours.score.load_state_dict(peer.predictor.state_dict())
    features = make_features(specs, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(ours(features)["logits"], peer.layers(features), atol=1e-5, rtol=1e-5)
