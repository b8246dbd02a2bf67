"""Class weights by name: counted from the label files once, then numbers in the config."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from seg_ext.config import get_cfg, load_config
from seg_ext.data.datasets.folder import register_from_config_list
from seg_ext.engine import class_weights
from seg_ext.engine.checks import complete_config
from seg_ext.engine.class_weights import CLASS_WEIGHTS, count_classes, resolve_class_weights
from seg_ext.errors import UserError

MAPS = [  # raw ids; 9 is ignored
    np.array([[0, 0, 0, 0], [0, 0, 1, 1]]),
    np.array([[0, 0, 0, 9], [0, 9, 9, 9]]),
    np.array([[2, 2], [1, 0]]),
]
PIXELS = np.array([6 + 4 + 1, 2 + 1, 2, 0])
IMAGE_PIXELS = np.array([8 + 8 + 4, 8 + 4, 4, 0])
IMAGES = np.array([3, 2, 1, 0])
FREQUENCY = PIXELS[:3] / IMAGE_PIXELS[:3]
MEDIAN = [*(np.median(FREQUENCY) / FREQUENCY), 0]
INVERSE = [*(16 / (3 * PIXELS[:3])), 0]
SHARES = (1 - 0.9999) / (1 - 0.9999 ** IMAGES[:3])
EFFECTIVE = [*(SHARES / SHARES.mean()), 0]


@pytest.fixture
def name(tmp_path: Path) -> Iterator[str]:
    """A data set of MAPS, by a label map that ignores 9."""
    records = []
    for index, labels in enumerate(MAPS):
        file = tmp_path / f"{index}.png"
        cv2.imwrite(str(file), labels.astype(np.uint8))
        records.append({"sem_seg_file_name": str(file), "sem_seg_label_map": {9: 255}, "image_id": index})
    name = f"counted_{tmp_path.name}"
    DatasetCatalog.register(name, lambda: records)
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.pop(name, None)


def config(name: str, folder: Path, losses: list[dict[str, Any]], classes: int = 4) -> CfgNode:
    cfg = get_cfg()
    cfg.MODEL.SEM_SEG_HEAD.update({"NUM_CLASSES": classes, "LOSSES": losses})
    cfg.DATASETS.TRAIN = (name,)
    cfg.OUTPUT_DIR = str(folder / "run")
    return cfg


def test_counts_pixels_and_images_without_the_ignored(name: str) -> None:
    counts = count_classes(DatasetCatalog.get(name), num_classes=4, ignore=255)
    for got, want in zip(counts, (PIXELS, IMAGE_PIXELS, IMAGES), strict=True):
        assert got.tolist() == want.tolist()


@pytest.mark.parametrize(
    ("by", "want"), [("median_frequency", MEDIAN), ("inverse_frequency", INVERSE), ("effective_number", EFFECTIVE)]
)
def test_a_name_becomes_the_formulas_numbers(by: str, want: list[float], name: str, tmp_path: Path) -> None:
    cfg = config(name, tmp_path, [{"NAME": "dice"}, {"NAME": "cross_entropy", "WEIGHT": 0.5, "class_weights": by}])
    resolve_class_weights(cfg)
    dice, entropy = cfg.MODEL.SEM_SEG_HEAD.LOSSES
    assert dice == {"NAME": "dice"} and entropy["WEIGHT"] == 0.5
    assert entropy["class_weights"] == pytest.approx(want, rel=1e-5)
    assert all(type(weight) is float for weight in entropy["class_weights"])


def test_every_name_is_tested() -> None:
    assert set(CLASS_WEIGHTS) == {"median_frequency", "inverse_frequency", "effective_number"}


def test_one_class_gets_two_weights(tmp_path: Path, toy_config: Path) -> None:
    cfg = load_config(toy_config, ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", "1"])
    register_from_config_list(cfg.DATASETS.FOLDERS)
    complete_config(cfg)
    cfg.MODEL.SEM_SEG_HEAD.LOSSES = [{"NAME": "cross_entropy", "class_weights": "inverse_frequency"}]
    resolve_class_weights(cfg)
    box = 20 * 18 / (48 * 40)
    weights = cfg.MODEL.SEM_SEG_HEAD.LOSSES[0]["class_weights"]
    assert weights == pytest.approx([1 / (2 * (1 - box)), 1 / (2 * box)], rel=1e-5)
    (tmp_path / "dumped.yaml").write_text(cfg.dump())
    again = load_config(tmp_path / "dumped.yaml")
    (Path(cfg.OUTPUT_DIR) / "class_counts.json").unlink()
    resolve_class_weights(again)
    assert again.MODEL.SEM_SEG_HEAD.LOSSES[0]["class_weights"] == weights
    assert not (Path(cfg.OUTPUT_DIR) / "class_counts.json").exists(), "numbers need no counts"


NAMED = [{"NAME": "cross_entropy", "class_weights": "median_frequency"}]


def test_counts_once_until_the_files_change(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = []

    def count(records: Any, **kwargs: Any) -> Any:
        counted.append(len(records))
        return count_classes(records, **kwargs)

    monkeypatch.setattr(class_weights, "count_classes", count)
    seen = []

    def resolve(**changes: Any) -> list[float]:
        cfg = config(name, tmp_path, [dict(entry) for entry in NAMED], **changes)
        resolve_class_weights(cfg)
        seen.append(len(counted))
        return cfg.MODEL.SEM_SEG_HEAD.LOSSES[0]["class_weights"]

    first = resolve()
    assert resolve() == first and seen == [1, 1]
    os.utime(tmp_path / "1.png", ns=(0, 10**9))
    assert resolve() == first and seen[-1] == 2
    cv2.imwrite(str(tmp_path / "0.png"), np.full((3, 5), 3, np.uint8))
    assert resolve() != first and seen[-1] == 3
    assert len(resolve(classes=5)) == 5 and seen[-1] == 4
    DatasetCatalog.get(name).pop()
    resolve()
    assert seen[-1] == 5 and counted[-1] == 2
    (tmp_path / "run" / "class_counts.json").write_text('{"content": ')
    resolve()
    assert seen[-1] == 6 and json.loads((tmp_path / "run" / "class_counts.json").read_text())["pixels"]


def test_names_go_where_nothing_is_trained(name: str, tmp_path: Path) -> None:
    cfg = config(name, tmp_path, [dict(NAMED[0], reduction="sum")])
    resolve_class_weights(cfg, training=False)
    assert cfg.MODEL.SEM_SEG_HEAD.LOSSES == [{"NAME": "cross_entropy", "reduction": "sum"}]
    assert not Path(cfg.OUTPUT_DIR).exists()


def test_numbers_stay_and_nothing_is_read(tmp_path: Path) -> None:
    cfg = config("no such set", tmp_path, [{"NAME": "cross_entropy", "class_weights": [1.0, 2.0]}])
    resolve_class_weights(cfg)
    assert cfg.MODEL.SEM_SEG_HEAD.LOSSES == [{"NAME": "cross_entropy", "class_weights": [1.0, 2.0]}]


def test_what_is_no_loss_is_left_to_the_head_to_refuse(name: str, tmp_path: Path) -> None:
    cfg = config(name, tmp_path, ["dice"])
    resolve_class_weights(cfg)
    assert cfg.MODEL.SEM_SEG_HEAD.LOSSES == ["dice"]


def refusal(cfg: CfgNode) -> str:
    with pytest.raises(UserError) as refused:
        resolve_class_weights(cfg)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_refuses_in_a_line(name: str, tmp_path: Path) -> None:
    wrong = config(name, tmp_path, [{"NAME": "cross_entropy", "class_weights": "median"}])
    assert "'median' takes numbers or one of median_frequency, inverse_frequency, effective_number" in refusal(wrong)
    assert f"{tmp_path}/2.png: label ids 2 are neither in 0..1" in refusal(config(name, tmp_path, NAMED, classes=2))
    (tmp_path / "1.png").unlink()
    assert f"{tmp_path}/1.png: cannot be read: No such file" in refusal(config(name, tmp_path, NAMED))
    cv2.imwrite(str(tmp_path / "1.png"), np.full((2, 2), 9, np.uint8))
    DatasetCatalog.get(name)[:] = DatasetCatalog.get(name)[1:2]
    assert "every pixel is ignored" in refusal(config(name, tmp_path, NAMED))
    DatasetCatalog.get(name).clear()
    assert f"DATASETS.TRAIN {name}: no label maps" in refusal(config(name, tmp_path, NAMED))
