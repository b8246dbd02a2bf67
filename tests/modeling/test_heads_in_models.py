"""Every decoder, through SegHead, trains a step and infers in detectron2's models and in ours."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Instances, Keypoints
from detectron2.utils.events import EventStorage
from torch import Tensor

import seg_ext.modeling  # noqa: F401  registers models
from seg_ext.config import load_config
from seg_ext.decoders import DECODERS
from seg_ext.errors import UserError
from seg_ext.modeling.seg_head import SegHead

ARGS: dict[str, dict[str, Any]] = {
    "fcn": {},
    "fcn_head": {"aux": "res4"},
    "fcn_sum": {},
    "unet": {"channels": [32, 16, 16]},
    "unetpp": {"depth": 2},
    "unet3p": {"channels": 8},
    "linknet": {"channels": 8},
    "semantic_fpn": {"channels": 16, "pyramid": 16},
    "refinenet": {"channels": 16, "deepest_channels": 16, "pool_stages": 2},
    "gcn": {"kernel_size": 5},
    "deeplabv3plus": {"channels": 16, "low_level_channels": 8},
    "pspnet": {"channels": 16},
    "segnet": {"dropout": 0.5},
    "segnet_basic": {"kernel_size": 3},
    "deeplabv1": {"channels": 8},
    "deeplabv2": {"hidden": 8},
    "deeplabv3": {"channels": 16, "aux": "res4"},
    "dilated_context": {"pad_layers": True},
}
FEATURES = {"deeplabv3plus": ["res2", "res5"]}  # the others read res2..res5
UNPOOLS = {"segnet": 5, "segnet_basic": 4}  # these need the indices of as many poolings, as VGG's variants give them
CLASSES = 5


def test_every_decoder_has_a_row() -> None:
    assert set(ARGS) == set(DECODERS)


def config(decoder: str, meta_arch: str, **head: Any) -> CfgNode:
    """A reduced model: ResNet-18 with GroupNorm, 32-channel FPN and ROI heads."""
    cfg = load_config("Base-Panoptic.yaml", ["MODEL.DEVICE", "cpu"])
    model = cfg.MODEL
    model.META_ARCHITECTURE = meta_arch
    model.RESNETS.DEPTH, model.RESNETS.RES2_OUT_CHANNELS, model.RESNETS.NORM = 18, 64, "GN"
    model.FPN.OUT_CHANNELS, model.FPN.NORM = 32, "GN"
    model.ROI_HEADS.NUM_CLASSES, model.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 3, 16
    model.ROI_BOX_HEAD.FC_DIM, model.ROI_MASK_HEAD.CONV_DIM = 32, 32
    model.SEM_SEG_HEAD.NUM_CLASSES, model.SEM_SEG_HEAD.NORM = CLASSES, "GN"
    model.SEM_SEG_HEAD.DECODER.NAME = decoder
    model.SEM_SEG_HEAD.DECODER.ARGS.update(ARGS[decoder])
    model.SEM_SEG_HEAD.IN_FEATURES = FEATURES.get(decoder, model.SEM_SEG_HEAD.IN_FEATURES)
    if decoder in UNPOOLS:
        indices = [f"pool{i}_indices" for i in range(1, UNPOOLS[decoder] + 1)]
        pools = [f"pool{i}" for i in (UNPOOLS[decoder] - 1, UNPOOLS[decoder])]
        model.BACKBONE.NAME, model.VGG.VARIANT = "build_seg_ext_vgg_backbone", decoder
        model.VGG.WIDTH, model.VGG.NORM, model.VGG.OUT_FEATURES = 4, "GN", [*indices, *pools]
        model.SEM_SEG_HEAD.IN_FEATURES = ["image", *indices, pools[-1]]
        model.RPN.IN_FEATURES = model.ROI_HEADS.IN_FEATURES = pools
        model.ANCHOR_GENERATOR.SIZES = [[32], [64]]
    model.SEM_SEG_HEAD.update(head)
    return cfg


def sample(height: int = 100, width: int = 90, *, semantic: bool = True, instances: int | None = 2) -> dict[str, Any]:
    out = {"image": torch.rand(3, height, width) * 255, "height": height, "width": width}
    if semantic:
        out["sem_seg"] = torch.randint(0, CLASSES, (height, width))
    if instances is not None:
        masks = torch.zeros(instances, height, width, dtype=torch.bool)
        for i in range(instances):
            masks[i, 10 * i + 5 : 10 * i + 45, 20:60] = True
        out["instances"] = Instances((height, width), gt_masks=BitMasks(masks), gt_classes=torch.arange(instances) % 3)
        out["instances"].gt_boxes = out["instances"].gt_masks.get_bounding_boxes()
    return out


def step(model: torch.nn.Module, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Losses of a training step whose gradients are finite."""
    with EventStorage():
        losses = model.train()(batch)
    sum(losses.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    return losses


@pytest.mark.parametrize(
    ("meta_arch", "batch"),
    [("SemanticSegmentor", 2), ("PanopticFPN", 1), ("PanopticSegmentor", 1), ("PanopticSegmentor", 2)],
)
@pytest.mark.parametrize("decoder", DECODERS)
def test_trains_and_infers_at_odd_sizes(decoder: str, meta_arch: str, batch: int) -> None:
    torch.manual_seed(0)
    model = build_model(config(decoder, meta_arch))
    losses = step(model, [sample() for _ in range(batch)])
    assert all(loss.isfinite() for loss in losses.values())
    used = model.sem_seg_head if meta_arch == "SemanticSegmentor" else model  # the FPN is the region heads'
    assert [name for name, p in used.named_parameters() if p.requires_grad and p.grad is None] == []
    with torch.no_grad():
        output = model.eval()([sample()])[0]
    assert output["sem_seg"].shape == (CLASSES, 100, 90)
    if meta_arch != "SemanticSegmentor":
        assert "loss_mask" in losses and output["panoptic_seg"][0].shape == (100, 90)


@pytest.mark.parametrize("decoder", [name for name in DECODERS if name not in UNPOOLS])
def test_runs_on_detectron2s_own_backbone(decoder: str) -> None:
    cfg = config(decoder, "SemanticSegmentor")
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.RESNETS.NORM = "build_resnet_backbone", "BN"
    model = build_model(cfg)
    step(model, [sample(), sample()])
    with torch.no_grad():
        assert model.eval()([sample()])[0]["sem_seg"].shape == (CLASSES, 100, 90)


def test_first_losses_are_those_of_knowing_nothing() -> None:
    torch.manual_seed(0)
    cfg = config("pspnet", "PanopticSegmentor")
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 80
    losses = step(build_model(cfg), [sample(128, 128)])
    assert losses["loss_sem_seg"].item() == pytest.approx(math.log(5), abs=0.35)
    assert losses["loss_mask"].item() == pytest.approx(math.log(2), abs=0.01)
    assert losses["loss_rpn_cls"].item() == pytest.approx(math.log(2), abs=0.01)
    assert losses["loss_cls"].item() == pytest.approx(math.log(81), abs=0.05)


def test_aux_losses_are_scaled_and_go_at_inference() -> None:
    model = build_model(config("pspnet", "SemanticSegmentor", AUX_WEIGHT=0.0))
    losses = step(model, [sample()])
    aux = [name for name in losses if "aux" in name]
    assert aux and all(losses[name].item() == 0 for name in aux) and losses["loss_sem_seg"].item() > 0


@pytest.mark.parametrize("meta_arch", ["SemanticSegmentor", "PanopticSegmentor"])
@pytest.mark.parametrize("decoder", DECODERS)
def test_one_class_leaves_as_two_scores_whose_softmax_is_the_sigmoid(decoder: str, meta_arch: str) -> None:
    model = build_model(config(decoder, meta_arch, NUM_CLASSES=1))
    batch = sample(64, 64)
    batch["sem_seg"] %= 2
    losses = step(model, [batch])
    assert all(loss.isfinite() for loss in losses.values())
    with torch.no_grad():
        scores = model.eval()([batch])[0]["sem_seg"]
    assert scores.shape == (2, 64, 64) and scores[0].eq(0).all()


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_model_comes_back_from_a_file_whole(decoder: str, tmp_path: Path) -> None:
    saved, fresh = (build_model(config(decoder, "SemanticSegmentor")).eval() for _ in range(2))
    for parameter in saved.parameters():
        parameter.data += 0.01 * torch.randn_like(parameter)  # not what any initialisation gives
    torch.save(saved.state_dict(), tmp_path / "model.pth")
    inputs = [sample(64, 64)]
    with torch.no_grad():
        expected = saved(inputs)[0]["sem_seg"]
        assert not torch.allclose(fresh(inputs)[0]["sem_seg"], expected)
        fresh.load_state_dict(torch.load(tmp_path / "model.pth", weights_only=True), strict=True)
        assert torch.equal(fresh(inputs)[0]["sem_seg"], expected)


BOTH = {"loss_sem_seg", "loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_mask"}
NO_TRUTH: dict[str, Any] = {"semantic": False, "instances": None}


@pytest.mark.parametrize(
    ("kinds", "semantic", "instances"),
    [
        ([{}, {"semantic": False}], True, True),
        ([{"instances": None}, {"semantic": False}], True, True),
        ([{}, NO_TRUTH], True, True),
        ([{"instances": None}, {"instances": None}], True, False),
        ([{"semantic": False}], False, True),
        ([{"instances": 0}, {"instances": 0}], True, True),
        ([NO_TRUTH, NO_TRUTH], False, False),
    ],
    ids=["one without labels", "each its own", "one with neither", "labels alone", "instances alone", "empty", "none"],
)
def test_mixed_batches_train_with_the_losses_that_apply(kinds: list[dict], semantic: bool, instances: bool) -> None:
    model = build_model(config("fcn_sum", "PanopticSegmentor"))
    losses = step(model, [sample(**kind) for kind in kinds])
    assert set(losses) == BOTH and all(loss.isfinite() for loss in losses.values())
    assert (losses["loss_sem_seg"].item() > 0) == semantic and (losses["loss_rpn_cls"].item() > 0) == instances
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []  # another process may have gradients for them
    reached = {name: any(p.grad.ne(0).any() for p in part.parameters()) for name, part in model.named_children()}
    assert reached == {
        "backbone": semantic or instances, "sem_seg_head": semantic, "proposal_generator": instances,
        "roi_heads": instances,
    }  # fmt: skip


def test_an_image_without_instances_teaches_no_background() -> None:
    model = build_model(config("fcn", "PanopticSegmentor"))
    known, unknown = sample(), sample(**NO_TRUTH)
    torch.manual_seed(0)
    alone = step(model, [known])["loss_rpn_cls"].item()
    torch.manual_seed(0)
    assert step(model, [known, unknown])["loss_rpn_cls"].item() == pytest.approx(alone, rel=1e-5)


def test_one_head_alone_needs_its_ground_truth() -> None:
    cfg = config("fcn", "PanopticSegmentor", NAME="")
    with pytest.raises(UserError, match="instance training needs 'instances' in the inputs"):
        step(build_model(cfg), [sample(instances=None)])
    cfg = config("fcn", "PanopticSegmentor")
    cfg.MODEL.ROI_HEADS.NAME = cfg.MODEL.PROPOSAL_GENERATOR.NAME = ""
    with pytest.raises(UserError, match="semantic training needs 'sem_seg' in the inputs"):
        step(build_model(cfg), [sample(semantic=False)])


def test_keypoints_train_beside_masks_and_instances_without_them_are_refused() -> None:
    cfg = config("fcn", "PanopticSegmentor")
    cfg.MODEL.KEYPOINT_ON, cfg.MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS = True, [16]
    cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE = 1
    model, inputs = build_model(cfg), sample(96, 96)
    with pytest.raises(UserError, match="^an input: MODEL.KEYPOINT_ON trains on instances with 'gt_keypoints'"):
        step(model, [inputs])
    points = torch.rand(2, 17, 3) * torch.tensor([40.0, 40, 0]) + torch.tensor([20.0, 10, 2])
    inputs["instances"].gt_keypoints = Keypoints(points)
    losses = step(model, [inputs, sample(96, 96, instances=None)])
    assert losses["loss_keypoint"].isfinite() and losses["loss_mask"] > 0


def test_an_instance_of_a_class_that_the_heads_lack_is_named_with_its_file() -> None:
    inputs = sample() | {"file_name": "a.png"}
    inputs["instances"].gt_classes[1] = 7
    with pytest.raises(UserError, match="^a.png: an instance of class 7; MODEL.ROI_HEADS.NUM_CLASSES 3 takes 0 to 2$"):
        step(build_model(config("fcn", "PanopticSegmentor")), [inputs])


@pytest.mark.parametrize(("semantic", "instances"), [("", "StandardROIHeads"), ("SegHead", "")])
def test_empty_names_leave_heads_out(semantic: str, instances: str) -> None:
    cfg = config("fcn", "PanopticSegmentor", NAME=semantic)
    cfg.MODEL.ROI_HEADS.NAME, cfg.MODEL.PROPOSAL_GENERATOR.NAME = instances, "RPN" if instances else ""
    model = build_model(cfg)
    losses = step(model, [sample()])
    assert ("loss_sem_seg" in losses, "loss_mask" in losses) == (bool(semantic), bool(instances))
    with torch.no_grad():
        assert set(model.eval()([sample()])[0]) == ({"sem_seg"} if semantic else {"instances"})


def refusal(cfg: CfgNode) -> str:
    with pytest.raises(UserError) as caught:
        build_model(cfg)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_cannot_be_built_says_why() -> None:
    cfg = config("unet", "PanopticSegmentor")
    cfg.MODEL.SEM_SEG_HEAD.DECODER.NAME = "u_net"
    assert "MODEL.SEM_SEG_HEAD.DECODER.NAME 'u_net'" in refusal(cfg) and "did you mean unet?" in refusal(cfg)
    cfg.MODEL.SEM_SEG_HEAD.DECODER.NAME = "subprocess:Popen"
    assert "takes a torch.nn.Module subclass" in refusal(cfg)
    for nowhere in (":UNet", ".decoders:UNet"):
        cfg.MODEL.SEM_SEG_HEAD.DECODER.NAME = nowhere
        assert refusal(cfg).startswith(f"MODEL.SEM_SEG_HEAD.DECODER.NAME '{nowhere}': ")
    cfg = config("unet", "PanopticSegmentor")
    cfg.MODEL.SEM_SEG_HEAD.DECODER.ARGS.chanels = [1]
    assert "unknown argument chanels; takes up, channels" in refusal(cfg)
    assert "is empty" in refusal(config("unet", "PanopticSegmentor", IN_FEATURES=[]))
    assert "res9 not given by the backbone" in refusal(config("unet", "PanopticSegmentor", IN_FEATURES=["res9"]))
    assert "NAME takes one of cross_entropy" in refusal(config("unet", "PanopticSegmentor", LOSSES=[{"NAME": "ce"}]))
    losses = [{"NAME": "cross_entropy", "gamma": 2}]
    assert "unknown argument gamma; takes class_weights" in refusal(config("unet", "PanopticSegmentor", LOSSES=losses))
    assert "takes one of '', 'BN'" in refusal(config("unet", "PanopticSegmentor", NORM="XN"))
    cfg = config("unet", "PanopticSegmentor", NAME="")
    cfg.MODEL.ROI_HEADS.NAME = cfg.MODEL.PROPOSAL_GENERATOR.NAME = ""
    assert "both are empty" in refusal(cfg)


@pytest.mark.parametrize(
    ("decoder", "name", "value", "takes"),
    [
        ("deeplabv3plus", "separable", "false", "'false' takes True or False"),  # text counts as True
        ("deeplabv3plus", "aspp_separable", 2, "2 takes True or False or None"),
        ("deeplabv3", "rates", 0, "0 takes a list of whole numbers or None"),
        ("deeplabv3", "rates", [6, True], "[6, True] takes a list of whole numbers or None"),
        ("deeplabv3", "dropout", "0.5", "'0.5' takes a number"),
        ("fcn", "skip_scale", ["a", 1], "['a', 1] takes a list of numbers or None"),
        ("unet", "channels", 64, "64 takes a list of whole numbers or None"),
        ("gcn", "final_ups", 2.0, "2.0 takes a whole number"),
        ("gcn", "up", 3, "3 takes text"),
    ],
)
def test_an_argument_of_another_type_than_the_decoders_is_refused(decoder: str, name: str, value: Any, takes: str):
    cfg = config(decoder, "SemanticSegmentor")
    cfg.MODEL.SEM_SEG_HEAD.DECODER.ARGS[name] = value
    assert refusal(cfg) == f"MODEL.SEM_SEG_HEAD.DECODER.ARGS of {decoder}: {name} {takes}"


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("SEM_SEG_HEAD.AUX_WEIGHT", -1.0, "MODEL.SEM_SEG_HEAD.AUX_WEIGHT -1.0: takes a number >= 0"),
        ("SEM_SEG_HEAD.LOSS_WEIGHT", float("nan"), "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT nan: takes a number >= 0"),
        ("PIXEL_MEAN", [], "MODEL.PIXEL_MEAN [] and PIXEL_STD [1.0, 1.0, 1.0]: take a number for each channel"),
        ("PIXEL_MEAN", ["a", 1, 2], "MODEL.PIXEL_MEAN ['a', 1, 2] and PIXEL_STD"),
        ("PIXEL_STD", [1.0, 2.0], "PIXEL_STD [1.0, 2.0]: take a number for each channel of the image"),
        ("PIXEL_STD", [1.0, 0.0, 1.0], "of the image, PIXEL_STD above 0"),
    ],
)
def test_numbers_that_no_model_can_have_are_refused(key: str, value: Any, line: str) -> None:
    cfg = config("fcn", "PanopticSegmentor")
    cfg.MODEL.PIXEL_STD = [1.0] * 3
    node, _, leaf = key.rpartition(".")
    (cfg.MODEL[node] if node else cfg.MODEL)[leaf] = value
    assert line in refusal(cfg)


def test_batch_norm_on_a_single_value_names_norm() -> None:
    model = build_model(config("pspnet", "SemanticSegmentor", NORM="BN"))
    with pytest.raises(UserError, match='MODEL.SEM_SEG_HEAD: .*use NORM "GN"'):
        step(model, [sample()])


def test_logits_short_of_the_image_go_on_at_its_border() -> None:
    cfg = load_config("Base-Semantic.yaml", ["MODEL.DEVICE", "cpu"])
    cfg.MODEL.BACKBONE.NAME = "build_seg_ext_vgg_backbone"
    cfg.MODEL.VGG.WIDTH = 4  # plain VGG rounds its sizes down: 90 pixels leave 2 cells of stride 32
    head = cfg.MODEL.SEM_SEG_HEAD
    head.NUM_CLASSES, head.IN_FEATURES, head.DECODER.NAME = CLASSES, ["pool5"], "fcn"
    model = build_model(cfg).eval()
    torch.nn.init.normal_(model.sem_seg_head.decoder.scores["pool5"].weight)
    with torch.no_grad():
        scores = model([sample(90, 96)])[0]["sem_seg"]
    assert scores.shape == (CLASSES, 90, 96)
    assert torch.equal(scores[:, -1], scores[:, -5]) and not torch.equal(scores[:, 40], scores[:, 44])


def unet_config(valid: bool, mirror: bool) -> CfgNode:
    cfg = load_config("Base-Semantic.yaml", ["MODEL.DEVICE", "cpu"])
    cfg.MODEL.BACKBONE.NAME = "build_seg_ext_unet_backbone"
    cfg.MODEL.UNET.update({"WIDTH": 4, "VALID": valid, "MIRROR": mirror})
    head = cfg.MODEL.SEM_SEG_HEAD
    head.NUM_CLASSES, head.NORM, head.IN_FEATURES = CLASSES, "", [f"level{i}" for i in range(1, 6)]
    head.DECODER.NAME, head.DECODER.ARGS.padding = "unet", "valid"
    return cfg


@pytest.mark.parametrize("size", [(100, 90), (33, 50)])
def test_a_mirrored_valid_unet_covers_the_image(size: tuple[int, int]) -> None:
    model = build_model(unet_config(valid=True, mirror=True))
    losses = step(model, [sample(*size, instances=None)])
    assert losses["loss_sem_seg"].isfinite()
    with torch.no_grad():
        inputs = sample(*size)
        scores = model.eval()([inputs])[0]["sem_seg"]
        features = model.backbone(((inputs["image"] - model.pixel_mean) / model.pixel_std)[None])
        logits = model.sem_seg_head.decoder(features)["logits"][0]
    assert scores.shape == (CLASSES, *size) and torch.allclose(scores, logits[:, : size[0], : size[1]], atol=1e-5)


def test_a_valid_unet_learns_from_the_part_it_covers_and_says_how_to_cover_all() -> None:
    model = build_model(unet_config(valid=True, mirror=False))
    inputs = sample(200, 220, instances=None)
    inputs["sem_seg"] = torch.full((200, 220), 255)
    inputs["sem_seg"][92, 92] = 1  # where the logits begin
    assert step(model, [inputs])["loss_sem_seg"] > 0
    inputs["sem_seg"][92, 92] = 255
    inputs["sem_seg"][91, 91] = 1
    assert step(model, [inputs])["loss_sem_seg"] == 0
    with torch.no_grad(), pytest.raises(UserError, match="mirror its border"):
        model.eval()([inputs])


def test_classification_guidance_needs_and_takes_its_own_loss() -> None:
    cfg = config("unet3p", "SemanticSegmentor")
    cfg.MODEL.SEM_SEG_HEAD.DECODER.ARGS.cgm = True
    assert "none for the decoder's output 'image_cgm': add one of presence" in refusal(cfg)
    cfg.MODEL.SEM_SEG_HEAD.LOSSES = [{"NAME": "cross_entropy"}, {"NAME": "presence", "WEIGHT": 0.5}]
    cfg.MODEL.SEM_SEG_HEAD.DECODER.ARGS.cgm = False
    assert "LOSSES presence: takes a decoder with an image-level output (unet3p with cgm True)" in refusal(cfg)
    cfg.MODEL.SEM_SEG_HEAD.DECODER.ARGS.cgm = True
    model = build_model(cfg)
    losses = step(model, [sample(), sample()])
    assert {"loss_sem_seg_cross_entropy", "loss_sem_seg_presence_image_cgm"} <= set(losses)
    assert model.sem_seg_head.decoder.cgm[1].weight.grad.ne(0).any()


class OutsideDecoder(torch.nn.Module):
    """A decoder that lives outside the package."""

    out_stride = 4

    def __init__(self, in_features, num_classes: int, *, norm, bias: bool = True) -> None:
        super().__init__()
        self.name, spec = next(iter(in_features.items()))
        self.score = torch.nn.Conv2d(spec.channels, num_classes, 1, bias=bias)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"logits": self.score(features[self.name])}


def test_a_decoder_may_live_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "my_package", type(sys)("my_package"))
    sys.modules["my_package"].OutsideDecoder = OutsideDecoder
    cfg = config("fcn", "SemanticSegmentor")
    cfg.MODEL.SEM_SEG_HEAD.DECODER.NAME = "my_package:OutsideDecoder"
    cfg.MODEL.SEM_SEG_HEAD.DECODER.ARGS.bias = False
    head = build_model(cfg).sem_seg_head
    assert isinstance(head, SegHead) and isinstance(head.decoder, OutsideDecoder) and head.decoder.score.bias is None
