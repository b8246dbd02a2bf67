"""Figures of papers, of fvcore's and torch's other counters, of real allocations and of perturbed pixels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from fvcore.nn import FlopCountAnalysis
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

import seg_ext.modeling  # noqa: F401  registers models
from seg_ext.config import load_config
from seg_ext.decoders import DECODERS
from seg_ext.encoders import VGG, VGG_VARIANTS
from seg_ext.engine.analyze import PROBE_ROWS, analyze, measure_memory, training_size
from seg_ext.engine.multiply_adds import count_multiply_adds
from seg_ext.engine.network import Network
from seg_ext.engine.probes import PeakMemory, receptive_fields
from seg_ext.errors import UserError
from seg_ext.layers import FeatureSpec

V3, V3PLUS, XCEPTION = (
    f"voc/{name}.yaml" for name in ("deeplabv3_R_101", "deeplabv3plus_R_101", "deeplabv3plus_xception65")
)
RATES = ("MODEL.SEM_SEG_HEAD.DECODER.ARGS.rates", "[12,24,36]")
STRIDE_8 = ("MODEL.RESNETS.OUTPUT_STRIDE", "8", *RATES)
RELEASED_STEM = ("MODEL.RESNETS.DEEP_STEM", "True", "MODEL.RESNETS.STEM_OUT_CHANNELS", "128")
RELEASED = (*RELEASED_STEM, "MODEL.RESNETS.MULTI_GRID", "[1,2,4]")
ON_XCEPTION = ("MODEL.BACKBONE.NAME", "build_seg_ext_xception_backbone", "MODEL.SEM_SEG_HEAD.IN_FEATURES", "['exit']")


def on_meta(name: str, *opts: str) -> Network:
    cfg = load_config(name, ["MODEL.DEVICE", "meta", *opts])
    with torch.device("meta"):
        return Network(build_model(cfg).eval()).eval()


def blank(side: int) -> Tensor:
    return torch.zeros(1, 3, side, side, device="meta")


def giga(network: nn.Module, side: int = 513) -> float:
    return count_multiply_adds(network, blank(side)).total() / 1e9


@pytest.mark.parametrize(
    ("name", "opts", "paper", "tolerance"),
    [
        (V3, (), 71.26, 0.005),
        (V3PLUS, (), 93.05, 0.005),
        (V3, STRIDE_8, 246.69, 0.005),
        (V3PLUS, STRIDE_8, 268.46, 0.005),
        (V3PLUS, RELEASED_STEM, 101.28, 0.02),
        (XCEPTION, (), 54.17, 0.005),
        (XCEPTION, ("MODEL.XCEPTION.OUTPUT_STRIDE", "8", *RATES), 177.10, 0.005),
    ],
)
def test_multiply_adds_are_those_of_deeplab_v3_plus(name: str, opts: tuple[str, ...], paper: float, tolerance: float):
    assert giga(on_meta(name, *opts)) == pytest.approx(paper, rel=tolerance)


@pytest.mark.parametrize(
    ("name", "opts", "paper", "tolerance"),
    [
        (V3, RELEASED, 81.02, 0.003),
        (V3, (*RELEASED, *STRIDE_8), 276.18, 0.003),
        (V3PLUS, RELEASED, 101.28, 0.015),  # 20.26 above the row without a decoder; at stride 8, and on Xception, 21.75
        (V3PLUS, (*RELEASED, *STRIDE_8), 297.92, 0.003),
        (V3, ON_XCEPTION, 68.00, 0.003),
        (XCEPTION, ("MODEL.SEM_SEG_HEAD.DECODER.ARGS.separable", "False"), 89.76, 0.003),
    ],
)
def test_multiply_adds_as_the_released_network_does_them_are_the_papers(
    name: str, opts: tuple[str, ...], paper: float, tolerance: float
):
    """TensorFlow cuts a map into r x r ones for rate r, padded to a multiple of it, and its ResNet strides early.

    That is in the last unit of a stage (slim, resnet_v1_beta), where ours does in the first unit of the next.
    """
    network, side = on_meta(name, *opts), {}
    convolutions = {key: module for key, module in network.named_modules() if isinstance(module, nn.Conv2d)}
    for key, module in convolutions.items():
        module.register_forward_hook(lambda _, __, out, key=key: side.update({key: out.shape[2]}))
    macs = giga(network)
    for key, module in convolutions.items():
        rate = module.dilation[0]
        macs += module.weight.numel() * ((-(-side[key] // rate) * rate) ** 2 - side[key] ** 2) / 1e9
    for stage, units in ((2, 3), (3, 4), (4, 23)):
        ahead = f"backbone.res{stage + 1}.0.conv"
        if f"{ahead}2" in convolutions and convolutions[f"{ahead}2"].stride == (2, 2):
            last = f"backbone.res{stage}.{units - 1}.conv"
            sooner = sum(convolutions[key].weight.numel() for key in (f"{last}2", f"{last}3", f"{ahead}1"))
            macs -= sooner * (side[f"{ahead}1"] ** 2 - side[f"{ahead}2"] ** 2) / 1e9
    assert macs == pytest.approx(paper, rel=tolerance)


@pytest.mark.parametrize(
    "name",
    ["voc/fcn8s_vgg16.yaml", "voc/pspnet_R_50.yaml", "camvid/segnet_basic.yaml"]
    + ["nuclei/panoptic_unet_R_18_FPN.yaml"],
)
def test_fvcore_on_meta_tensors_counts_as_torch_does(name: str):
    network = on_meta(name)
    with torch.no_grad(), FlopCounterMode(display=False) as peer:
        network(blank(96))
    assert 2 * giga(network, 96) * 1e9 == peer.get_total_flops()


def test_fvcore_counts_the_same_on_real_tensors():
    with torch.device("meta"):
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.ConvTranspose2d(8, 2, 4, 2, 1, groups=2, bias=False)
        )
    meta = count_multiply_adds(net, blank(33)).by_module()
    real = FlopCountAnalysis(net.to_empty(device="cpu"), torch.zeros(1, 3, 33, 33)).uncalled_modules_warnings(False)
    assert dict(meta) == dict(real.by_module())
    assert meta["0"] == 17 * 17 * 8 * 27


def test_padding_may_be_named():
    with torch.device("meta"):
        net = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding="same", dilation=2), nn.Conv2d(4, 8, 3, padding="valid", groups=2)
        )
    assert dict(count_multiply_adds(net, blank(20)).by_module()) == {"": 89_856, "0": 400 * 108, "1": 324 * 144}


RESNET = "voc/fcn_R_50_d8.yaml"
CLASSIFIER = ("MODEL.RESNETS.OUTPUT_STRIDE", "32")
MSRA = (*CLASSIFIER, "MODEL.RESNETS.STRIDE_IN_1X1", "True")


@pytest.mark.parametrize(
    ("name", "opts", "height", "fields"),
    [
        ("voc/fcn32s_vgg16.yaml", (), 601, {"fc7": 404}),
        ("voc/dilation_vgg16_large.yaml", (), 1201, {"fc7": 380, "logits": 908}),
        ("isbi2012/unet.yaml", (), 301, {"level5": 140}),
        (RESNET, MSRA, 601, {"res5": 483}),
        (RESNET, (*MSRA, "MODEL.RESNETS.DEPTH", "101"), 1201, {"res5": 1027}),
        ("camvid/segnet_basic.yaml", (), 301, {"pool4": 106}),
        ("voc/pspnet_R_50.yaml", (), 601, {"logits": 601}),
    ],
)
def test_receptive_fields_of_the_papers(name: str, opts: tuple[str, ...], height: int, fields: dict[str, int]):
    rows = receptive_fields(on_meta(name, *opts).maps, height, 65)
    assert {output: rows[output][1] - rows[output][0] + 1 for output in fields} == fields


@pytest.mark.parametrize(("average", "name", "field"), [(False, "pool5", 227), (False, "fc7", 419), (True, "fc7", 435)])
def test_the_receptive_field_of_largefov(average: bool, name: str, field: int):
    with torch.device("meta"):
        encoder = VGG(norm=None, **{**VGG_VARIANTS["deeplab_largefov"], "average": average}).eval()
    first, last = receptive_fields(lambda x: encoder(x, [name]), 801, 17)[name]
    assert last - first + 1 == field


def test_the_receptive_field_of_the_context_module():
    with torch.device("meta"):
        context = DECODERS["dilated_context"]({"x": FeatureSpec(8, 1)}, 5, norm=None).eval()
    first, last = receptive_fields(lambda x: context({"x": x}), 201, 201)["logits"]
    assert last - first + 1 == 67


def layers() -> st.SearchStrategy[list[nn.Module]]:
    conv = st.builds(
        lambda k, s, d: nn.Conv2d(2, 2, (k, 1), (s, 1), (d * (k // 2), 0), (d, 1)),
        st.sampled_from([1, 3, 5]),
        st.integers(1, 2),
        st.integers(1, 3),
    )
    pool = st.builds(
        lambda k, c: nn.MaxPool2d((k, 1), (2, 1), (k // 3, 0), ceil_mode=c), st.integers(2, 3), st.booleans()
    )
    other = st.sampled_from(
        [
            lambda: nn.ConvTranspose2d(2, 2, (4, 1), (2, 1), (1, 0)),
            lambda: nn.Upsample(scale_factor=(2, 1), mode="bilinear"),
            lambda: nn.AvgPool2d((3, 1), 1, (1, 0)),
            nn.ReLU,
            lambda: nn.BatchNorm2d(2),
            lambda: nn.GroupNorm(1, 2),
        ]
    ).map(lambda make: make())
    return st.lists(conv | pool | other, min_size=1, max_size=5)


def perturbed_rows(net: nn.Module, height: int) -> list[int]:
    """Rows whose increase changes the middle output cell."""
    for norm in net.modules():
        norm.requires_grad_(False)
        if isinstance(norm, nn.Conv2d | nn.ConvTranspose2d):
            norm.weight.fill_(1)
            norm.bias.zero_()  # type: ignore[union-attr]
    image = torch.zeros(height, 2, height, 1, dtype=torch.float64)
    image[range(height), :, range(height)] = 1  # one image a row
    kept = nn.Sequential(*(x for x in net.children() if not isinstance(x, nn.GroupNorm | nn.BatchNorm2d)))
    out = kept.double()(image)
    return out[:, :, out.shape[2] // 2, 0].sum(1).nonzero().flatten().tolist()


@settings(max_examples=30, deadline=None)
@given(layers(), st.integers(48, 64))
def test_a_cell_sees_exactly_the_rows_that_change_it(modules: list[nn.Module], height: int):
    net = nn.Sequential(*modules).eval()
    rows = perturbed_rows(net, height)
    assert receptive_fields(lambda x: {"out": net.to("meta")(x)}, height, 1) == {"out": (rows[0], rows[-1])}


@pytest.mark.parametrize("height", [32, 34])
def test_an_unpooled_cell_sees_the_window_wherever_the_maximum_lies(height: int):
    conv = nn.Conv2d(1, 1, (3, 1), padding=(1, 0), device="meta")

    def unpooled(x: Tensor) -> dict[str, Tensor]:
        pooled, places = F.max_pool2d(x, (2, 1), return_indices=True)
        flat = x.new_zeros(1, 1, height).scatter(2, places.flatten(2), pooled.flatten(2))
        return {"out": conv(flat[..., None])}

    first, last = receptive_fields(unpooled, height, 1)["out"]
    assert last - first + 1 == 4  # the rows around the middle lie in two windows


def tiny_config(*opts: str) -> CfgNode:
    return load_config("camvid/unet_R_18_cpu.yaml", ["MODEL.DEVICE", "cpu", *opts])


class Chain(nn.Module):
    """Two convolutions and a ReLU, with what `measure_memory` asks of a network."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 1, bias=False), nn.Conv2d(8, 4, 1, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        return self.second(self.first(image).relu())

    def loss(self, image: Tensor, target: Tensor) -> Tensor:
        return self(image).sum()


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_peak_memory_of_a_net_counted_by_hand(device: str):
    with torch.device(device):
        net: Any = Chain()
    pixel, weights = 4 * 40 * 50, 4 * (24 + 32)
    forward = measure_memory(net, 3, (40, 50), "inference", 1)
    assert forward.peak == weights + pixel * (3 + 8 + 8)  # image, convolution, ReLU of it
    training = measure_memory(net, 3, (40, 50), "training", 1)
    # ReLU's backward: the image, its target of 8 bytes, the ReLU's output and two gradients, of the second weight too
    assert training.peak == weights + 4 * 32 + pixel * (3 + 2 + 8 + 8 + 8) + 2 * 4


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_peak_memory_is_that_of_real_tensors(mode: str):
    network = Network(build_model(tiny_config()))
    twin = Network(build_model(tiny_config("MODEL.DEVICE", "meta")))
    real = measure_memory(network, 3, (64, 64), mode, 2).peak
    assert measure_memory(twin, 3, (64, 64), mode, 2).peak == pytest.approx(real, rel=0.02)


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_peak_memory_is_that_of_torchs_allocator(mode: str):
    """1x1 convolutions without oneDNN need no workspace."""
    net: Any = Chain()
    weights = sum(x.nbytes for x in net.parameters())
    (enabled, *_) = torch.backends.mkldnn.set_flags(False)
    try:
        peak = measure_memory(net, 3, (64, 64), mode, 2).peak
        assert peak is not None
        assert profiled_peak(net, mode) == pytest.approx(peak - weights, rel=0.02)
    finally:
        torch.backends.mkldnn.set_flags(enabled)


def profiled_peak(net: Any, mode: str) -> int:
    """The most that the CPU allocator had handed out during a pass over two images."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        image = torch.zeros(2, 3, 64, 64)
        if mode == "training":
            target = torch.zeros(2, 64, 64, dtype=torch.long)
            net.loss(image, target).backward()
        else:
            with torch.no_grad():
                net(image)
    now = most = 0
    for event in sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


def test_freed_memory_is_no_longer_counted_and_views_not_twice():
    with PeakMemory() as memory:
        x = torch.zeros(1000)
        assert (memory.live, memory.peak) == (4000, 4000)
        y = x.view(10, 100)[2:]
        del x
        assert memory.live == 4000
        del y
        torch.zeros(10)
    assert (memory.live, memory.peak) == (0, 4000)


def test_training_that_batch_norm_refuses_says_why():
    result = measure_memory(on_meta(V3PLUS), 3, (65, 65), "training", 1)
    assert result.peak is None and "BatchNorm cannot train on one value per channel" in result.reason
    assert measure_memory(on_meta(V3PLUS), 3, (65, 65), "training", 2).peak


def test_the_network_gives_what_the_model_gives():
    model = build_model(tiny_config()).eval()
    image = torch.rand(3, 50, 70) * 255
    with torch.no_grad():
        expected = model([{"image": image}])[0]["sem_seg"]
        found = Network(model).eval().maps(((image - model.pixel_mean) / model.pixel_std)[None])
    torch.testing.assert_close(found["sem_seg"][0], expected)
    assert set(found) == {"conv1", "res2", "res3", "res4", "res5", "logits", "sem_seg"}


def test_an_analysis_holds_the_sizes_and_counts_of_the_config():
    result = analyze(tiny_config(), batches=(1, 3))
    assert result.size == result.padded == (176, 240) == training_size(tiny_config())
    whole = result.modules[0]
    assert (whole.name, whole.parameters, whole.trainable) == ("", 12_689_579, 12_689_579)
    children = [m for m in result.modules[1:] if "." not in m.name]
    assert sum(m.multiply_adds for m in children) == whole.multiply_adds
    assert sum(m.parameters for m in children) == whole.parameters
    outputs = {x.name: (x.channels, x.height, x.width, x.stride, x.receptive_field) for x in result.outputs}
    assert outputs["res5"] == (512, 6, 8, 32, 435)
    assert outputs["sem_seg"][:4] == (11, 176, 240, 1)
    assert [(m.mode, m.batch) for m in result.memory] == [(a, b) for a in ("inference", "training") for b in (1, 3)]
    assert all(m.peak and m.peak > result.weights for m in result.memory)
    assert result.weights == 4 * whole.parameters + 4 * whole.buffers + 4 * 28  # num_batches_tracked has 8 bytes


def test_an_image_level_branch_sees_the_whole_image():
    fields = {x.name: x.receptive_field for x in analyze(load_config(V3PLUS), size=(65, 65)).outputs}
    assert (fields["res5"], fields["logits"], fields["sem_seg"]) == (1003, PROBE_ROWS, PROBE_ROWS)


def test_instance_heads_run_on_the_regions_that_the_config_allows():
    cfg = load_config("nuclei/panoptic_unet_R_18_FPN.yaml", ["MODEL.RPN.POST_NMS_TOPK_TEST", "30"])
    result = analyze(cfg, size=(70, 60))
    assert (result.proposals, result.masks, result.padded) == (30, 200, (96, 64))
    assert on_meta("nuclei/panoptic_unet_R_18_FPN.yaml").train().regions == (64, 32)
    counts = {m.name: m.multiply_adds for m in result.modules}
    assert counts["roi_heads.box_head.fc1"] == 30 * 128 * 49 * 256
    assert counts["roi_heads.mask_head.mask_fcn1"] == 200 * 14 * 14 * 128 * 128 * 9
    assert (
        counts["proposal_generator.rpn_head.objectness_logits"]
        == 3 * 128 * sum(24 * 16 // 4**i for i in range(4)) + 2 * 128 * 3
    )
    assert all(m.peak for m in result.memory)


def test_keypoints_and_the_regions_of_a_shared_res5_are_counted():
    opts = ["MODEL.RPN.POST_NMS_TOPK_TEST", "30", "TEST.DETECTIONS_PER_IMAGE", "20"]
    result = analyze(load_config("coco/keypoint_mask_rcnn_R_50_FPN_1x.yaml", opts), size=(64, 64))
    counts = {m.name: m.multiply_adds for m in result.modules}
    assert counts["roi_heads.keypoint_head.conv_fcn1"] == 20 * 14 * 14 * 256 * 512 * 9
    assert counts["roi_heads.mask_head.mask_fcn1"] == 20 * 14 * 14 * 256 * 256 * 9
    alone = analyze(load_config("coco/keypoint_rcnn_R_50_FPN_1x.yaml", opts), size=(64, 64))
    assert {m.name: m.multiply_adds for m in alone.modules}["roi_heads.keypoint_head.conv_fcn1"] > 0
    result = analyze(load_config("coco/panoptic_deeplabv3plus_R_50_C4_1x.yaml", opts), size=(64, 64))
    counts = {m.name: m.multiply_adds for m in result.modules}
    assert counts["roi_heads.res5.2.conv2"] == (30 + 20) * 7 * 7 * 512 * 512 * 9
    assert (result.proposals, result.masks, result.left_out) == (30, 20, [])
    assert all(m.peak for m in result.memory)


def test_heads_on_regions_of_another_kind_are_left_out_by_name():
    with torch.device("meta"):
        model = build_model(load_config("nuclei/panoptic_unet_R_18_FPN.yaml", ["MODEL.DEVICE", "meta"]))
    model.roi_heads = nn.Identity()
    assert (Network(model).regions, Network(model).left_out) == ((0, 0), ["proposal_generator", "roi_heads"])


def test_a_head_of_centres_and_offsets_is_counted_beside_the_semantic_one():
    cfg = load_config("cityscapes/panoptic_deeplab_R_52_os16.yaml")
    cfg.MODEL.INS_EMBED_HEAD.ARGS.pool = None  # the ASPP averages the image, not a window
    result = analyze(cfg, size=(64, 97))
    counts = {m.name: m.multiply_adds for m in result.modules}
    assert counts["ins_embed_head.branch.centre.1"] == 32 * 16 * 25
    assert counts["ins_embed_head.branch.offset.1"] == 2 * 32 * 16 * 25
    assert counts[""] == sum(counts[name] for name in ("backbone", "sem_seg_head", "ins_embed_head"))
    outputs = {x.name: (x.channels, x.height, x.width, x.stride, x.receptive_field) for x in result.outputs}
    assert (outputs["centre"], outputs["offset"]) == ((1, 64, 97, 1, PROBE_ROWS), (2, 64, 97, 1, PROBE_ROWS))
    assert not result.left_out
    training = result.memory[1]
    assert training.peak and training.peak > 2 * result.weights


def test_a_size_that_the_network_cannot_take_is_refused():
    valid = load_config("isbi2012/unet.yaml", ["MODEL.UNET.MIRROR", "False"])
    with pytest.raises(UserError, match="pixels"):
        analyze(valid, size=(40, 40))


@pytest.mark.parametrize("size", [None, ["a", "b"], [0, -1], [0.5, 0.5], [8]])
def test_the_default_size_without_a_crop_in_pixels(size: Any):
    cfg = load_config("camvid/segnet_vgg16.yaml")
    cfg.INPUT.AUGMENTATIONS = [{"NAME": "RandomCrop"} | ({"size": size} if size else {})]
    assert training_size(cfg) == (512, 512)


def test_a_training_that_needs_weights_of_the_pixels_is_measured():
    result = analyze(load_config("isbi2012/unet.yaml", ["MODEL.DEVICE", "meta"]), size=(20, 20))
    assert [(x.mode, bool(x.peak), x.reason) for x in result.memory] == [
        ("inference", True, ""),
        ("training", True, ""),
    ]


@pytest.mark.parametrize(("stride", "ceil"), [(1, False), (2, True)])
def test_a_dilated_pool_sees_its_dilated_window(stride: int, ceil: bool) -> None:
    pool = torch.nn.MaxPool2d(3, stride, padding=1, dilation=2, ceil_mode=ceil)
    fields = receptive_fields(lambda image: {"pool": pool(image)}, 40, 41)
    first, last = fields["pool"]
    assert last - first + 1 == 5
