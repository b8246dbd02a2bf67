"""Every network learns four small images by heart: one narrow model a decoder and, slow, every shipped one in full."""

import time
from math import log
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from fvcore.nn.precise_bn import update_bn_stats
from torch import Tensor, nn

import seg_ext.modeling  # noqa: F401  registers models
from seg_ext.config import embeds_instances, has_instances, has_semantics, load_config
from seg_ext.decoders import DECODERS
from seg_ext.metrics import confusion_matrix, semantic_scores

ENOUGH = 0.95  # mean IoU
SIDE = 64  # pixels
CONFIGS = Path(__file__).parents[1] / "configs"
RESULTS = Path(__file__).with_suffix(".md")
ELSEWHERE = ("camvid/unet_R_18_cpu.yaml", "nuclei/panoptic_unet_R_18_FPN.yaml")  # trained on real images

POOLS = ["pool2", "pool3", "pool4", "pool5"]
CONVS = ["conv1", "conv2", "conv3", "conv4"]
REDUCED: dict[str, tuple[str, list[str], dict[str, Any]]] = {  # variant of a narrow VGG, its maps, arguments
    "fcn": ("plain", ["pool3", "pool4", "pool5"], {"replicate_border": True}),
    "fcn_head": ("deeplab", ["pool4", "pool5"], {"aux": "pool4"}),
    "fcn_sum": ("plain", POOLS, {}),
    "unet": ("plain", CONVS, {}),
    "unetpp": ("plain", CONVS, {}),
    "unet3p": ("plain", CONVS, {"channels": 8}),
    "refinenet": ("plain", POOLS, {"channels": 16, "deepest_channels": 32}),
    "gcn": ("plain", POOLS, {"kernel_size": 5}),
    "deeplabv3plus": ("plain", ["pool2", "pool4"], {"channels": 32, "low_level_channels": 8}),
    "pspnet": ("deeplab", ["pool4", "pool5"], {"channels": 32}),
    "segnet": ("segnet", ["image", *(f"pool{i}_indices" for i in range(1, 6)), "pool5"], {}),
    "segnet_basic": ("segnet_basic", ["image", *(f"pool{i}_indices" for i in range(1, 5)), "pool4"], {}),
    "linknet": ("plain", POOLS, {"channels": 16}),
    "semantic_fpn": ("plain", POOLS, {"channels": 16, "pyramid": 16}),
    "deeplabv1": ("deeplab_largefov", ["fc7"], {}),
    "deeplabv2": ("deeplab", ["pool5"], {}),
    "deeplabv3": ("deeplab", ["pool5"], {"channels": 32}),
    "dilated_context": ("deeplab_largefov", ["fc7"], {}),
}
NEAR = 0.02  # nats
# By decoder or config: how far above ln K the first cross-entropy may lie, and why.
FIRST_LOSS: dict[str, tuple[float, str]] = {
    "fcn": (1e-4, "scores start at zero"),
    "dilated_context": (NEAR, "the context module starts as identity on scores of std 0.001"),
    "segnet": (1.0, "He's initialisation of the last convolution: scores of variance about 1 on normalised maps"),
    "unet3p": (1.0, "He's initialisation of the last convolution"),
    "dsb2018/unetpp.yaml": (0.6, "no norm, and dropout after every convolution doubles what the scores read"),
    "dsb2018/unetpp_deepsup.yaml": (0.6, "as above"),
    "gcn": (0.6, "torch's default initialisation throughout: four scores are added and refined"),
    "refinenet": (0.6, "torch's default initialisation throughout, no norm: residual maps add up"),
    "fcn_sum": (1.5, "score weights of std 0.01 on ResNet's sums of residual maps, added over the levels"),
    "voc/deeplabv3_cascade_R_101.yaml": (2.0, "score weights of std 0.01 on ResNet's sum of residual maps itself"),
    "deeplabv2": (1.5, "four sums of 9 C weights of std 0.01 over maps of many channels"),
}
SMALL = (0.15, "score weights of std 0.01 on normalised maps")


def semantic_configs() -> list[str]:
    """Every shipped yaml with a semantic head alone; those with instances: tests/test_overfit_panoptic.py."""
    names = sorted(file.relative_to(CONFIGS).as_posix() for file in CONFIGS.glob("*/*.yaml"))
    cfgs = {name: load_config(name) for name in names if name not in ELSEWHERE}
    alone = {name: not has_instances(cfg) and not embeds_instances(cfg) for name, cfg in cfgs.items()}
    return [name for name, cfg in cfgs.items() if has_semantics(cfg) and alone[name]]


def scene(index: int, ids: Tensor, channels: int, *, disc: bool) -> tuple[Tensor, Tensor]:
    """An image (channels, H, W), zero mean and unit scale, and its label map (H, W) of the classes `ids` (2 to 4).

    Four rectangles meet at a point near the middle; where `disc`, a disc lies at the lower right. Colours are
    steps, in another order in each channel, with noise. Scores on cells of 32 pixels can give the rectangles exactly.
    """
    draw = torch.Generator().manual_seed(index)
    y, x = torch.randint(3 * SIDE // 8, 5 * SIDE // 8, (2,), generator=draw)
    rows, columns = torch.arange(SIDE)[:, None], torch.arange(SIDE)
    label = (2 * (rows >= y) + (columns >= x) + index) % len(ids)
    if disc:
        inside = (rows - 3 * SIDE // 4) ** 2 + (columns - 3 * SIDE // 4) ** 2 < (3 * SIDE // 16) ** 2
        label[inside] = index % len(ids)
    colours = torch.stack([torch.linspace(-1.5, 1.5, len(ids)).roll(channel) for channel in range(channels)])
    return colours[:, label] + 0.2 * torch.randn(channels, SIDE, SIDE, generator=draw), ids[label]


def scenes(cfg: CfgNode, finest: int) -> list[dict[str, Any]]:
    """Four scenes as the config's model takes them, with a disc where its `finest` map has a stride of 8 or less.

    Of more than four classes they hold those whose weights in the loss are nearest to 1.
    """
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD))
    classes = max(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, 2)
    weights = cfg.MODEL.SEM_SEG_HEAD.LOSSES[0].get("class_weights") or [1.0] * classes
    ids = torch.tensor(sorted(range(classes), key=lambda k: abs(weights[k] - 1))[:4])
    pairs = [scene(index, ids, len(mean), disc=finest <= 8) for index in range(4)]
    extra = {"sem_seg_weight": torch.ones(SIDE, SIDE)} if cfg.INPUT.TARGETS else {}
    return [{"image": x * std + mean, "sem_seg": y, "height": SIDE, "width": SIDE, **extra} for x, y in pairs]


def batch_norms(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def mean_iou(model: nn.Module, inputs: list[dict[str, Any]]) -> float:
    """Of the model in eval mode, after its BatchNorms took their statistics anew from these images, without dropout.

    Running averages lag behind weights that change fast; statistics recomputed with the weights at rest do not
    (precise BN; Wu and Johnson, 2021, section 3).
    """
    model.eval()
    for norm in batch_norms(model):
        norm.train()
    with torch.no_grad():
        update_bn_stats(model, [inputs], 1)
        outputs = model.eval()(inputs)
    pairs = [(out["sem_seg"].argmax(0).numpy(), x["sem_seg"].numpy()) for out, x in zip(outputs, inputs, strict=True)]
    classes = outputs[0]["sem_seg"].shape[0]
    return semantic_scores(sum(confusion_matrix(*pair, classes, ignore=255) for pair in pairs)).miou


def fit(
    model: nn.Module, inputs: list[dict[str, Any]], *, lr: float, steps: int, warmup: int = 1, bf16: bool = False
) -> tuple[dict[str, float], int, float]:
    """Train with AdamW until the mean IoU, taken every 10 steps, is enough: the first losses, the steps, the IoU."""
    optimizer = torch.optim.AdamW(model.parameters(), lr)
    first: dict[str, float] = {}
    miou = 0.0
    for step in range(1, steps + 1):
        optimizer.param_groups[0]["lr"] = lr * min(1, step / warmup)
        with EventStorage(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            losses: dict[str, Tensor] = model.train()(inputs)
        first = first or {name: loss.item() for name, loss in losses.items()}
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        if step >= 30 and step % 10 == 0 or step == steps:
            miou = mean_iou(model, inputs)
            if miou > ENOUGH:
                break
    return first, step, miou


def check_first_loss(cfg: CfgNode, first: dict[str, float], config: str = "") -> None:
    """The cross-entropy of the decoder's main output, where the config has it, begins just above ln K."""
    head = cfg.MODEL.SEM_SEG_HEAD
    weights = [entry.get("WEIGHT", 1.0) for entry in head.LOSSES if entry["NAME"] == "cross_entropy"]
    if not weights:
        return
    name = "loss_sem_seg" if len(head.LOSSES) == 1 else "loss_sem_seg_cross_entropy"
    above = first[name] / weights[0] / head.LOSS_WEIGHT - log(max(head.NUM_CLASSES, 2))
    most, why = FIRST_LOSS.get(config) or FIRST_LOSS.get(head.DECODER.NAME, SMALL)
    assert -min(most, 0.1) < above < most, why


def reduced(decoder: str) -> CfgNode:
    """An eighth of VGG's width with BatchNorm, five classes.

    Without the encoder's dropout: an eighth of fc7 is too narrow to lose half, and the score layer is all there is
    behind it.
    """
    variant, features, args = REDUCED[decoder]
    cfg = load_config("Base-Semantic.yaml", ["MODEL.DEVICE", "cpu"])
    cfg.MODEL.BACKBONE.NAME = "build_seg_ext_vgg_backbone"
    maps = [name for name in features if name != "image"]
    cfg.MODEL.VGG.update({"VARIANT": variant, "WIDTH": 8, "NORM": "BN", "DROPOUT": 0.0, "OUT_FEATURES": maps})
    head = cfg.MODEL.SEM_SEG_HEAD
    head.NUM_CLASSES, head.IN_FEATURES, head.DECODER.NAME = 5, features, decoder
    head.DECODER.ARGS.update(args)
    return cfg


def finest_stride(model: nn.Module) -> int:
    shapes = model.backbone.output_shape()
    return min(shapes[name].stride for name in model.sem_seg_head.in_features)


def test_every_decoder_has_a_row() -> None:
    assert set(REDUCED) == set(DECODERS) and set(FIRST_LOSS) <= {*DECODERS, *semantic_configs()}


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("decoder", DECODERS)
def test_a_narrow_model_starts_at_ln_k_and_learns_four_images_by_heart(decoder: str) -> None:
    cfg = reduced(decoder)
    torch.manual_seed(0)
    model = build_model(cfg)
    first, _, miou = fit(model, scenes(cfg, finest_stride(model)), lr=5e-3, steps=300)
    check_first_loss(cfg, first)
    assert miou > ENOUGH


@pytest.mark.slow
@pytest.mark.parametrize("name", semantic_configs())
def test_a_shipped_model_starts_at_ln_k_and_learns_four_images_by_heart(name: str) -> None:
    cfg = load_config(name, ["MODEL.DEVICE", "cpu"])
    cfg.MODEL.BN.FROZEN = ""  # there is nothing yet to freeze
    for entry in cfg.MODEL.SEM_SEG_HEAD.LOSSES:
        entry.pop("reduction", None)  # the sum goes with a learning rate of its own
    torch.manual_seed(0)
    model = build_model(cfg)
    plain_vgg = cfg.MODEL.BACKBONE.NAME == "build_seg_ext_vgg_backbone" and not batch_norms(model)
    gentle = plain_vgg or cfg.MODEL.SEM_SEG_HEAD.DECODER.NAME == "refinenet"  # many layers without norm
    # Adam's first steps at 1e-4 throw fc6's 103 million weights about; bf16 halves VGG's 5 to 10 seconds a step.
    args: dict[str, Any] = {"lr": 1e-4 if gentle else 1e-3, "steps": 300}
    if plain_vgg:
        bf16 = torch.cpu.get_capabilities().get("amx_bf16", False)
        args = {"lr": 3e-5, "warmup": 10, "steps": 600, "bf16": bf16}
    begin = time.perf_counter()
    first, taken, miou = fit(model, scenes(cfg, finest_stride(model)), **args)
    seconds = time.perf_counter() - begin
    main = sum(loss for key, loss in first.items() if "_aux_" not in key and "_image_" not in key)
    record(
        name,
        f"{log(max(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, 2)):.3f} | {main:.3f} | {taken} | {miou:.3f} | {seconds:.0f}",
    )
    check_first_loss(cfg, first, name)
    assert miou > ENOUGH


HEADER = f"""# Four images by heart

What `make test-slow` measured last of every shipped model at full size: mean IoU in eval mode on the four generated
{SIDE}x{SIDE} images it was trained on from scratch, until above {ENOUGH}. The loss is the config's, of the main output;
seconds are of the machine it ran on, where VGG-16 without norm may have trained in bf16.

| config | ln K | first loss | steps | mIoU | seconds |
|---|---|---|---|---|---|
"""


def record(name: str, cells: str) -> None:
    """Write or replace the config's row; rows stay in order, those of configs that are gone go."""
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in lines if ".yaml | " in line}
    rows[name] = f"| {name} | {cells} |"
    known = semantic_configs()
    RESULTS.write_text(HEADER + "".join(f"{rows[key]}\n" for key in sorted(rows) if key in known))
