"""Panoptic-DeepLab in the meta-architecture: losses, refusals, segments from perfect outputs, and from learnt ones."""

from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import Tensor

import seg_ext.modeling  # noqa: F401  registers models
from seg_ext.config import load_config
from seg_ext.errors import UserError

SIDE = 64
NARROW = {"channels": 16, "head_channels": 16, "project_channels": [8, 8], "aspp_channels": 16, "rates": [1, 2, 3]}


def config(**keys: Any) -> CfgNode:
    """On ResNet-18 of stride 16 with GroupNorm: class 0 is stuff, 1 and 2 are things."""
    cfg = load_config("cityscapes/panoptic_deeplab_R_52_os16.yaml", ["MODEL.DEVICE", "cpu"])
    model = cfg.MODEL
    model.RESNETS.DEPTH, model.RESNETS.RES2_OUT_CHANNELS, model.RESNETS.NORM = 18, 64, "GN"
    model.RESNETS.DEEP_STEM, model.RESNETS.STEM_OUT_CHANNELS = False, 64
    model.SEM_SEG_HEAD.NUM_CLASSES, model.SEM_SEG_HEAD.NORM, model.SEM_SEG_HEAD.THING_IDS = 3, "GN", [1, 2]
    model.SEM_SEG_HEAD.DECODER.ARGS.update(NARROW)
    model.INS_EMBED_HEAD.NORM, model.INS_EMBED_HEAD.SIGMA, model.INS_EMBED_HEAD.STUFF_AREA = "GN", 3.0, 16
    model.INS_EMBED_HEAD.ARGS.update(NARROW)
    model.INS_EMBED_HEAD.update(keys)
    return cfg


def scene(index: int) -> dict[str, Any]:
    """Four rectangles of two classes on stuff; the first row is a crowd, its semantic class known."""
    ids, label = torch.ones(SIDE, SIDE), torch.zeros(SIDE, SIDE, dtype=torch.long)
    for number, (top, left) in enumerate([(8, 4), (8, 36), (36, 8), (40, 40)], start=2):
        size = 12 + 4 * ((number + index) % 3)
        ids[top : top + size, left : left + size] = number
        label[top : top + size, left : left + size] = 1 + (number + index) % 2
    ids[:1] = 0
    colours = torch.tensor([[40.0, 130, 220], [130, 220, 40], [220, 40, 130]])
    noise = 10 * torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(index))
    image = colours[:, label] + noise
    return {"image": image, "sem_seg": label, "panoptic_ids": ids, "height": SIDE, "width": SIDE}


def step(model: torch.nn.Module, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
    with EventStorage():
        losses: dict[str, Tensor] = model.train()(batch)
    sum(losses.values()).backward()
    return losses


def test_a_step_reaches_every_parameter_with_its_three_losses() -> None:
    torch.manual_seed(0)
    model = build_model(config())
    losses = step(model, [scene(0), scene(1)])
    assert set(losses) == {"loss_sem_seg", "loss_center", "loss_offset"}
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.parametrize(("key", "loss"), [("CENTER_WEIGHT", "loss_center"), ("OFFSET_WEIGHT", "loss_offset")])
def test_losses_are_means_times_their_weights(key: str, loss: str) -> None:
    torch.manual_seed(0)
    model = build_model(config(**{key: 1.0}))
    model.ins_embed_head.branch.centre[-1].weight.data.zero_()
    model.ins_embed_head.branch.offset[-1].weight.data.zero_()
    inputs = scene(0)
    got = step(model, [inputs])[loss].item()  # of outputs that are 0
    ids = inputs["panoptic_ids"].long()
    wanted = model.ins_embed_head.targets(ids[None])
    if loss == "loss_center":
        want = wanted["heat"][0, 0][ids != 0].square().mean()
    else:
        want = wanted["offset"][0][:, ids > 1].abs().sum(0).mean()
    assert got == pytest.approx(want.item(), rel=1e-5)
    assert load_config("cityscapes/panoptic_deeplab_R_52_os16.yaml").MODEL.INS_EMBED_HEAD[key] == (
        200.0 if key == "CENTER_WEIGHT" else 0.01
    )


@pytest.mark.parametrize("name", ["panoptic_deeplab_R_52_os16", "deeplabv3_R_103_os16", "deeplabv3plus_R_103_os16"])
def test_shipped_image_level_branches_average_the_map_of_a_training_crop_as_detectron2s_do(name: str) -> None:
    cfg = load_config(f"cityscapes/{name}.yaml")
    (crop,) = [entry["size"] for entry in cfg.INPUT.AUGMENTATIONS if entry["NAME"] == "RandomScaleCrop"]
    heads = [cfg.MODEL.SEM_SEG_HEAD.DECODER, *([cfg.MODEL.INS_EMBED_HEAD] if cfg.MODEL.INS_EMBED_HEAD.NAME else [])]
    cells = [side // cfg.MODEL.RESNETS.OUTPUT_STRIDE for side in crop]
    assert all(head.ARGS.pool == cells for head in heads)


def test_small_instances_weigh_more_and_what_was_padded_is_void() -> None:
    model = build_model(config(SMALL_AREA=200))
    ids = scene(0)["panoptic_ids"].long()
    weight = model.ins_embed_head.targets(ids[None])["semantic"][0]
    small = [i for i in range(2, 6) if (ids == i).sum() < 200]
    assert small and torch.equal(weight == 3, torch.isin(ids, torch.tensor(small))) and weight.min() == 1
    inputs = scene(0)
    torch.manual_seed(0)  # the ASPP drops
    plain = step(model, [inputs])
    padded = {k: v.clone() if isinstance(v, Tensor) else v for k, v in inputs.items()}
    padded["sem_seg"][ids == 0] = padded["panoptic_ids"][ids == 0] = 255  # as a crop pads both
    torch.manual_seed(0)
    again = step(model, [padded])
    assert all(again[k].item() == pytest.approx(plain[k].item()) for k in ("loss_center", "loss_offset"))


@pytest.mark.parametrize("scale", [1, 2])
def test_perfect_outputs_give_the_ground_truth_at_any_output_size(scale: int) -> None:
    inputs = scene(0)
    model = build_model(config())
    ids = inputs["panoptic_ids"].long()
    wanted = model.ins_embed_head.targets(ids[None])
    size = (scale * SIDE, scale * SIDE)
    label = inputs["sem_seg"].repeat_interleave(scale, 0).repeat_interleave(scale, 1)
    scores = 9.0 * torch.nn.functional.one_hot(label, 3).permute(2, 0, 1).float()
    maps = model.ins_embed_head.resized(wanted["heat"][0], wanted["offset"][0], (SIDE, SIDE), size)
    (segments, info), instances = model.ins_embed_head.segments(scores, *maps)
    assert segments.shape == size and len(instances) == 4
    assert sorted(s["category_id"] for s in info if s["isthing"]) == [0, 0, 1, 1]  # classes of instances
    truth = ids.repeat_interleave(scale, 0).repeat_interleave(scale, 1)
    for mask, kind in zip(instances.pred_masks, instances.pred_classes.tolist(), strict=True):
        number = truth[mask].mode().values
        union = (mask | (truth == number)).sum()
        assert (mask & (truth == number)).sum() / union > 0.97 and label[mask][0] == kind + 1
    found = zip(instances.pred_masks, instances.pred_classes, strict=True)
    likely = torch.stack([scores.softmax(0)[kind + 1][mask].mean() for mask, kind in found])
    hot = torch.tensor([s["score"] for s in info if s["isthing"]])
    torch.testing.assert_close(instances.scores, hot * likely)
    assert (instances.scores > 0.5).all()


def test_what_does_not_go_together_is_refused() -> None:
    def refusal(**changes: Any) -> str:
        cfg = config()
        for key, value in changes.items():
            node, _, leaf = key.rpartition("__")
            (cfg.MODEL[node] if node else cfg.INPUT)[leaf] = value
        with pytest.raises(UserError) as caught:
            build_model(cfg)
        return str(caught.value)

    assert "needs {NAME: panoptic_ids} in INPUT.TARGETS" in refusal(TARGETS=["panoptic_ids"])
    assert "goes with MODEL.SEM_SEG_HEAD.NAME" in refusal(SEM_SEG_HEAD__NAME="")
    assert "goes with SegHead, not SemSegFPNHead" in refusal(SEM_SEG_HEAD__NAME="SemSegFPNHead")
    assert "NMS_KERNEL 4: takes an odd number" in refusal(INS_EMBED_HEAD__NMS_KERNEL=4)
    assert "INS_EMBED_HEAD.IN_FEATURES ['res4']: res4 not given" in refusal(INS_EMBED_HEAD__IN_FEATURES=["res4"])
    assert "NAME 'Head': takes InstanceEmbeddingHead" in refusal(INS_EMBED_HEAD__NAME="Head")
    assert "THING_CLASSES [0]: takes one for each of THING_IDS [1, 2]" in refusal(INS_EMBED_HEAD__THING_CLASSES=[0])
    assert "SIGMA 0: takes pixels above 0" in refusal(INS_EMBED_HEAD__SIGMA=0)
    assert "INS_EMBED_HEAD.CENTER_WEIGHT -1: takes a number >= 0" in refusal(INS_EMBED_HEAD__CENTER_WEIGHT=-1)
    assert "INS_EMBED_HEAD.ARGS: separable 'no' takes True or False" in refusal(
        INS_EMBED_HEAD__ARGS={"separable": "no"}
    )
    assert refusal(INS_EMBED_HEAD__NORM="B").startswith("MODEL.INS_EMBED_HEAD.NORM 'B': takes one of")
    inputs = scene(0)
    del inputs["panoptic_ids"]
    with pytest.raises(UserError, match="needs 'panoptic_ids' in the inputs"):
        step(build_model(config()), [inputs])


@pytest.mark.slow
def test_four_images_are_learnt_by_heart() -> None:
    torch.manual_seed(0)
    model, inputs = build_model(config()), [scene(index) for index in range(4)]
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    for _ in range(300):
        optimizer.zero_grad()
        step(model, inputs)
        optimizer.step()
    with torch.no_grad():
        outputs = model.eval()(inputs)
    for output, x in zip(outputs, inputs, strict=True):
        assert (output["sem_seg"].argmax(0) == x["sem_seg"]).float().mean() > 0.97
        for number in range(2, 6):
            truth = x["panoptic_ids"] == number
            ious = [(m & truth).sum() / (m | truth).sum() for m in output["instances"].pred_masks]
            assert max(ious) > 0.8
