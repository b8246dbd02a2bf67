"""Border weights from the loader: of every kind of instances, moved with the label, into the loss."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.structures import BoxMode
from PIL import Image

import seg_ext.modeling  # noqa: F401  registers models
from seg_ext.config import load_config
from seg_ext.data.border_weight import border_weight
from seg_ext.data.mapper import SegMapper
from seg_ext.data.targets import BorderWeight, build_targets
from seg_ext.errors import UserError

IDS = np.zeros((40, 50), np.uint16)
IDS[5:20, 5:20], IDS[5:20, 23:40], IDS[25:35, 10:30] = 1, 2, 300


@pytest.fixture
def record(tmp_path: Path) -> dict[str, Any]:
    Image.fromarray(np.full((40, 50, 3), 90, np.uint8)).save(tmp_path / "image.png")
    Image.fromarray(IDS).save(tmp_path / "label.png")
    names = {"file_name": str(tmp_path / "image.png"), "sem_seg_file_name": str(tmp_path / "label.png")}
    return {**names, "height": 40, "width": 50, "sem_seg_label_map": {"1-65535": 1}}


def label() -> np.ndarray:
    return (IDS > 0).astype(np.int32)


def test_ids_annotations_and_components_are_the_same_instances(record: dict[str, Any]) -> None:
    boxes = [[5, 5, 20, 20], [23, 5, 40, 20], [10, 25, 30, 35]]
    record["annotations"] = [
        {"bbox": b, "bbox_mode": BoxMode.XYXY_ABS, "segmentation": [[b[0], b[1], b[2], b[1], b[2], b[3], b[0], b[3]]]}
        for b in boxes
    ]
    maps = [BorderWeight(kind, balance=False)(record, label()) for kind in ("ids", "annotations", [1])]
    assert np.array_equal(maps[0], border_weight(IDS.astype(np.int32)))
    assert all(np.array_equal(x, maps[0]) for x in maps)  # to the last bit, so that runs repeat
    assert maps[0][12, 21] > 8 and maps[0][39, 49] == pytest.approx(1, abs=0.2)  # between two nuclei, and far away


def test_balanced_classes_weigh_the_same_and_one_a_pixel(record: dict[str, Any]) -> None:
    partly = label()
    partly[:2] = 255
    weights = BorderWeight("ids", w0=0)(record, partly)
    assert weights[partly == 0].sum() == pytest.approx(weights[partly == 1].sum(), rel=1e-5)
    assert weights[partly != 255].mean() == pytest.approx(1, rel=1e-5) and not weights[partly == 255].any()


def test_a_map_is_computed_once(record: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    target = BorderWeight("ids")
    first = target(record, label())
    monkeypatch.setattr("seg_ext.data.targets.border_weight", None)
    assert target(record, label()) is first


def test_only_what_fits_is_kept(record: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("seg_ext.data.targets.CACHED_BYTES", 2 * 4 * IDS.size)
    target = BorderWeight([1])
    for i in range(5):
        target(record | {"sem_seg_file_name": f"{i}.png"}, label())
    assert list(target._cache) == ["3.png", "4.png"]


def mapper(augmentations: list[dict[str, Any]], **target: Any) -> SegMapper:
    cfg = load_config("Base-Semantic.yaml")
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 2
    cfg.INPUT.AUGMENTATIONS = augmentations
    cfg.INPUT.TARGETS = [{"NAME": "border_weight", **target}]
    return SegMapper(cfg, is_train=True)


def test_the_map_moves_with_the_label(record: dict[str, Any]) -> None:
    flip = {"NAME": "RandomFlip", "prob": 1.0}
    mapped = mapper([flip], instances="ids")(record)
    want = BorderWeight("ids")(record, label())
    assert mapped["sem_seg_weight"].dtype == torch.float32
    assert np.array_equal(mapped["sem_seg_weight"].numpy(), want[:, ::-1])


def test_the_loss_weighs_the_pixels(record: dict[str, Any]) -> None:
    from detectron2.modeling import build_model
    from detectron2.utils.events import EventStorage

    cfg = load_config("Base-Semantic.yaml", ["MODEL.DEVICE", "cpu"])
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS, cfg.MODEL.RESNETS.NORM = 18, 64, "GN"
    head = cfg.MODEL.SEM_SEG_HEAD
    head.NUM_CLASSES, head.NORM, head.DECODER.NAME = 2, "GN", "fcn_sum"
    head.LOSSES = [{"NAME": "border_weighted_cross_entropy"}]
    with pytest.raises(UserError, match="border_weighted_cross_entropy: needs border_weight in INPUT.TARGETS"):
        build_model(cfg)
    cfg.INPUT.TARGETS = [{"NAME": "border_weight"}]
    model = build_model(cfg).train()
    inputs = SegMapper(cfg, is_train=True)(record)
    losses = []
    with EventStorage():
        for factor in (1, 3):
            weight = factor * inputs["sem_seg_weight"]
            losses.append(model([inputs | {"sem_seg_weight": weight}])["loss_sem_seg"].item())
    assert losses[0] > 0 and losses[1] == pytest.approx(3 * losses[0], rel=1e-5)


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ({"NAME": "borders"}, r"INPUT.TARGETS\[0\]: NAME is 'borders'; known: border_weight"),
        ({"NAME": "border_weight", "w1": 2}, "border_weight has no argument w1; known: instances, w0, sigma, balance"),
        ({"NAME": "border_weight", "instances": "all"}, "instances is 'all'; it is ids, annotations or a list"),
        ({"NAME": "border_weight", "instances": []}, r"instances is \[\]"),
        ({"NAME": "border_weight", "sigma": 0}, "w0 10.0, sigma 0: they are >= 0 and > 0"),
        ("border_weight", "NAME is None"),
    ],
)
def test_wrong_entries_are_refused(entry: Any, text: str) -> None:
    with pytest.raises(UserError, match=text):
        build_targets([entry])


def test_annotations_that_are_not_there_are_named(record: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="image.png: border_weight of annotations needs a data set with instances"):
        BorderWeight("annotations")(record, label())
