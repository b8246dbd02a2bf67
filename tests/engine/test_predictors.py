"""The stack of predictors against its parts, and what a config may ask of it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.modeling.meta_arch.panoptic_fpn import combine_semantic_and_instance_outputs
from detectron2.structures import BitMasks, Instances
from torch import Tensor, nn

import seg_ext.modeling  # noqa: F401  registers models
from seg_ext.config import get_cfg, load_config
from seg_ext.data.datasets.folder import register_from_config_list
from seg_ext.engine.checks import complete_config
from seg_ext.engine.evaluate import evaluate_on
from seg_ext.engine.predictors import build_predictor, check_predictor
from seg_ext.errors import UserError
from seg_ext.inference.sliding_window import SlidingWindow
from seg_ext.modeling.panoptic_deeplab import InstanceEmbeddingHead
from seg_ext.modeling.seg_head import SegHead
from seg_ext.postprocess import fuse_panoptic

Segmentor: Any = META_ARCH_REGISTRY.get("PanopticSegmentor")


class Backbone(nn.Module):
    """The padded image as the only feature."""

    size_divisibility, padding_constraints = 0, {}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"image": x}


class Head(nn.Module):
    """Scores of 3 classes, of each pixel and of where it lies; dropout, for samples of it, changes them."""

    ignore_value = 255

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)

    def forward(self, features: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        x = self.dropout(features["image"])
        ramp = torch.linspace(-1, 1, x.shape[3]) + torch.linspace(-1, 1, x.shape[2])[:, None]
        return torch.cat([x[:, :1] / 2, ramp.expand_as(x[:, :1]), x[:, 2:] / 3], 1), {}


class Proposals(nn.Module):
    def forward(self, images: Any, features: Any, truth: None) -> tuple[None, dict[str, Tensor]]:
        return None, {}


class Regions(nn.Module):
    """What is bright in the second channel is an instance, of a mask as large as the image."""

    def forward(self, images: Any, features: Any, proposals: None, truth: None) -> tuple[list[Instances], dict]:
        found = []
        for x, size in zip(features["image"], images.image_sizes, strict=True):
            masks = (x[1, : size[0], : size[1]] > 50)[None]
            masks = masks[masks.flatten(1).any(1)]
            boxes = BitMasks(masks).get_bounding_boxes()
            fields = {"scores": torch.full((len(masks),), 0.9), "pred_classes": torch.zeros(len(masks)).long()}
            found.append(Instances(tuple(size), pred_boxes=boxes, **fields, whole=masks))
        return found, {}


@pytest.fixture(autouse=True)
def whole_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks that are not pasted into boxes."""

    def postprocess(found: Instances, height: int, width: int) -> Instances:
        fields = found.get_fields()
        masks = nn.functional.interpolate(fields["whole"][:, None].float(), (height, width), mode="nearest-exact")
        masks = masks[:, 0] > 0.5
        kept = {key: fields[key] for key in ("scores", "pred_classes")}
        boxes = BitMasks(masks).get_bounding_boxes()
        return Instances((height, width), pred_masks=masks, pred_boxes=boxes, **kept)

    monkeypatch.setattr("seg_ext.modeling.meta_arch.detector_postprocess", postprocess)


def model(**heads: Any) -> Any:
    """Panoptic, where ``heads`` say nothing else: class 2 denotes things."""
    parts = {"sem_seg_head": Head(), "proposal_generator": Proposals(), "roi_heads": Regions()} | heads
    made = Segmentor(
        backbone=Backbone(), pixel_mean=[0.0] * 3, pixel_std=[1.0] * 3, thing_ids=[2], stuff_area=1, **parts
    )
    return made.eval()


def inputs() -> dict[str, Any]:
    image = 4 * torch.randn(3, 40, 48, generator=torch.Generator().manual_seed(0))
    image[1, 8:36, 6:44] = 99
    return {"image": image, "height": 40, "width": 48}


def config(**keys: Any) -> Any:
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "PanopticSegmentor"
    for key, value in keys.items():
        node, *path = cfg.TEST, *key.split("__")
        for name in path[:-1]:
            node = node[name]
        node[path[-1]] = value
    return cfg


@torch.no_grad()
def run(cfg: Any, made: Any) -> dict[str, Any]:
    found: dict[str, Any] = build_predictor(cfg, made)([inputs()])[0]
    return found


def test_no_wrapper_gives_the_model_itself() -> None:
    made = model()
    assert build_predictor(config(), made) is made


def test_the_stack_equals_its_parts_one_around_the_other() -> None:
    """Windows inside scales and flips, panoptic fusion once at the end, of the means."""
    made, image = model(), inputs()["image"]
    keys = {"SLIDING_WINDOW__SIZE": [24, 32], "TTA__SCALES": [1.0, 0.75], "TTA__FLIP": True}
    found = run(config(**keys), made)
    views = []
    for scale in (1.0, 0.75):
        size = [round(40 * scale), round(48 * scale)]
        small = nn.functional.interpolate(image[None], size, mode="bilinear", antialias=True)[0] if scale < 1 else image
        for mirrored in (False, True):
            view = {"image": small.flip(2) if mirrored else small, "height": 40, "width": 48}
            with torch.no_grad():
                scores = SlidingWindow(made, [24, 32])([view])[0]["sem_seg"]
            views.append(scores.softmax(0).flip(2) if mirrored else scores.softmax(0))
    assert torch.allclose(found["sem_seg"].softmax(0), torch.stack(views).mean(0), atol=1e-6)
    things = found["instances"]
    assert len(things) == 1 and (things.pred_masks[0, 10:34, 8:42]).all()
    assert int(things.pred_masks.sum()) == pytest.approx(28 * 38, rel=0.1)
    segments, info = fuse_panoptic(
        found["sem_seg"].argmax(0), things.pred_masks, scores=things.scores, classes=things.pred_classes,
        thing_ids=[2], stuff_area=1,
    )  # fmt: skip
    assert torch.equal(found["panoptic_seg"][0], segments) and found["panoptic_seg"][1] == info
    assert [s["isthing"] for s in info] == [True, False, False]


def test_an_object_over_four_windows_is_one_segment() -> None:
    whole, tiled = run(config(), model()), run(config(SLIDING_WINDOW__SIZE=[28, 32]), model())
    assert torch.equal(tiled["instances"].pred_masks, whole["instances"].pred_masks)
    things = [s for s in tiled["panoptic_seg"][1] if s["isthing"]]
    assert len(things) == 1
    mask = tiled["panoptic_seg"][0] == things[0]["id"]
    assert torch.equal(mask, whole["instances"].pred_masks[0])


def test_dropout_is_sampled_inside_the_windows() -> None:
    keys = {"MC_DROPOUT__SAMPLES": 3, "SLIDING_WINDOW__SIZE": [40, 32]}
    semantic = {"proposal_generator": None, "roi_heads": None}
    found = run(config(**keys), model(**semantic))
    assert found["uncertainty"]["entropy"].shape == (40, 48) and "panoptic_seg" not in found
    plain = run(config(SLIDING_WINDOW__SIZE=[40, 32]), model(**semantic))
    assert not torch.allclose(found["sem_seg"], plain["sem_seg"])


def test_detectron2s_own_panoptic_model_is_fused_with_its_thresholds() -> None:
    ours = model()

    class Theirs(nn.Module):
        combine_overlap_thresh, combine_stuff_area_thresh, combine_instances_score_thresh = 0.5, 100, 0.5

        def forward(self, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
            return [x | {"panoptic_seg": None} for x in ours([x | {"fuse": False} for x in batch])]

    found = run(config(TTA__FLIP=True), Theirs())
    wanted = combine_semantic_and_instance_outputs(found["instances"], found["sem_seg"].argmax(0), 0.5, 100, 0.5)
    assert torch.equal(found["panoptic_seg"][0], wanted[0]) and found["panoptic_seg"][1] == wanted[1]


@pytest.mark.parametrize("wrapped", [False, True])
def test_labels_alone_are_those_of_the_scores(wrapped: bool) -> None:
    keys = {"TTA__FLIP": wrapped}
    scores, labels = run(config(**keys), model()), run(config(**keys), model(labels_only=True))
    assert "sem_seg" not in labels
    assert torch.equal(labels["sem_seg_labels"], scores["sem_seg"].argmax(0))
    assert torch.equal(labels["panoptic_seg"][0], scores["panoptic_seg"][0])


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("channels", [1, 4])
def test_labels_come_from_scores_that_are_not_yet_resized(channels: int, align_corners: bool) -> None:
    class Decoder(nn.Module):
        out_stride = 4

        def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
            x = nn.functional.avg_pool2d(features["image"], 4)
            return {"logits": torch.cat([x, x[:, :1] - x[:, 1:2]], 1)[:, :channels]}

    head = SegHead(Decoder(), ["image"], losses=[], align_corners=align_corners)
    semantic = {"sem_seg_head": head, "proposal_generator": None, "roi_heads": None}
    batch = [{"image": 9 * torch.randn(3, *size), "height": 70, "width": 30} for size in ((40, 48), (36, 33))]
    with torch.no_grad():
        scores, labels = model(**semantic)(batch), model(**semantic, labels_only=True)(batch)
    for wanted, found in zip(scores, labels, strict=True):
        assert found["sem_seg_labels"].shape == (70, 30) and "sem_seg" not in found
        assert (found["sem_seg_labels"] != wanted["sem_seg"].argmax(0)).sum() <= 1


def test_labels_of_diverged_scores_are_refused() -> None:
    made = model(labels_only=True)
    made.pixel_std.zero_()
    with pytest.raises(UserError, match="sem_seg holds NaN"):
        made([{"image": torch.zeros(3, 8, 8)}])


def test_centres_and_offsets_are_grouped_once_at_the_end() -> None:
    class Branch(nn.Module):
        out_stride = 1

        def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
            x = features["image"]
            return {"centre": x[:, 1:2], "offset": torch.zeros_like(x[:, :2])}

    embed = InstanceEmbeddingHead(Branch(), ["image"], grouping={"thing_ids": (1,), "stuff_area": 1})
    heads = {"proposal_generator": None, "roi_heads": None, "ins_embed_head": embed}
    found, made = run(config(TTA__FLIP=True), model(**heads)), model(**heads)
    means = {
        "sem_seg": found["sem_seg"],
        "center_heat": inputs()["image"][1:2],
        "center_offset": torch.zeros(2, 40, 48),
    }
    wanted = made.finish(means)["panoptic_seg"]
    assert torch.equal(found["panoptic_seg"][0], wanted[0]) and found["panoptic_seg"][1] == wanted[1]
    assert len(found["instances"]) > 1 and "center_heat" not in found


def test_an_evaluation_sees_the_windows_that_the_config_asks_for(toy_config: Path) -> None:
    cfg, seen = load_config(toy_config, ["TEST.SLIDING_WINDOW.SIZE", "[32, 40]"]), []
    register_from_config_list(cfg.DATASETS.FOLDERS)
    complete_config(cfg)
    made = build_model(cfg)
    made.register_forward_pre_hook(lambda _, args: seen.extend(tuple(x["image"].shape[1:]) for x in args[0]))
    results = evaluate_on(cfg, made, cfg.DATASETS.TEST[0], limit=1)
    assert seen == [(32, 40)] * 2 and 0 <= results["sem_seg"]["mIoU"] <= 100


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"SLIDING_WINDOW__SIZE": [8]}, "TEST.SLIDING_WINDOW.SIZE"),
        ({"TTA__SCALES": [-1.0]}, "TEST.TTA.SCALES"),
        ({"LABELS_ONLY": True, "SEMANTIC_METRICS": ["calibration"]}, "SEMANTIC_METRICS calibration needs scores"),
    ],
)
def test_keys_that_cannot_be_served_are_refused_before_there_is_a_model(keys: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line):
        check_predictor(config(**keys))


def test_keys_that_the_model_cannot_serve_are_refused() -> None:
    cfg = config(LABELS_ONLY=True)
    cfg.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
    with pytest.raises(UserError, match="LABELS_ONLY is for MODEL.META_ARCHITECTURE PanopticSegmentor, not Semantic"):
        check_predictor(cfg)
    cfg = config(TTA__FLIP=True)
    cfg.MODEL.KEYPOINT_ON = True
    with pytest.raises(UserError, match="FLIP does not go with MODEL.KEYPOINT_ON"):
        check_predictor(cfg)
