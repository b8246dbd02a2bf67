"""``seg-ext data view`` draws what the mapper gives, the same for the same seed."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from seg_ext.cli.contact_sheet import mapped_sheet
from seg_ext.cli.main import main
from seg_ext.data.augmentation import build_augmentations
from seg_ext.data.mapper import SegMapper
from seg_ext.data.targets import build_targets


def decoded(content: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)


def test_a_config_draws_its_augmented_training_data(toy_config: Path, tmp_path: Path, capsys) -> None:
    crops = "[{'NAME': 'RandomScaleCrop', 'scale': [0.5, 2.0], 'size': [32, 32]}]"
    common = ["data", "view", "--config-file", str(toy_config), "INPUT.AUGMENTATIONS", crops, "--count", "3"]
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert main([*common, "--output", str(tmp_path / f"{name}.png"), "--seed", str(seed)]) == 0
    assert "3 of 5 images of toy_" in capsys.readouterr().out
    first, again, other = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert first == again != other
    assert decoded(first).shape == (2 * 268 + 8, 2 * 648 + 8, 3)  # three images beside their labels, two a row


def test_test_data_are_the_images_alone(toy_config: Path, tmp_path: Path) -> None:
    output = tmp_path / "test.png"
    assert main(["data", "view", "--config-file", str(toy_config), "--test", "--output", str(output)]) == 0
    assert decoded(output.read_bytes()).shape == (2 * 268 + 8, 4 * 328 + 8, 3)  # five images, four a row


def test_instances_of_either_mask_format_and_targets_are_drawn(toy_folder: Path) -> None:
    box = {"bbox": [4, 4, 30, 30], "bbox_mode": 0, "category_id": 0, "segmentation": [[4, 4, 30, 4, 30, 30, 4, 30]]}
    label = str(toy_folder / "labels" / "0.png")
    record = {"file_name": str(toy_folder / "images" / "0.png"), "sem_seg_file_name": label, "annotations": [box]}
    sheets = []
    for masks in ("bitmask", "polygon", "none"):
        targets = build_targets([{"NAME": "border_weight", "instances": [1]}])
        mapper = SegMapper(True, augmentations=[], num_classes=2, masks=masks, targets=targets)
        sheets.append(decoded(mapped_sheet([("toy_without_names", record)], mapper, count=1, seed=0)))
    assert {sheet.shape for sheet in sheets} == {(276, 4 * 320 + 16, 3)}
    panels = [[sheet[8:248, 8 + 320 * i : 328 + 320 * i] for i in range(4)] for sheet in sheets]
    instances = [row[2] for row in panels]
    assert np.array_equal(instances[0], instances[1]) and not np.array_equal(instances[0], instances[2])
    assert not np.array_equal(instances[2], panels[0][0])  # boxes alone are drawn too
    assert panels[0][3].std() > 0


def test_an_image_looks_the_same_in_a_longer_sheet_and_numpys_state_stays(toy_folder: Path) -> None:
    files = [{"file_name": str(toy_folder / "images" / f"{i}.png")} for i in range(5)]
    records = [("toy_without_names", file) for file in files]
    mapper = SegMapper(
        True, augmentations=build_augmentations([{"NAME": "RandomRotate90"}, {"NAME": "RandomFlip"}], ignore=255)
    )
    np.random.seed(3)
    before = np.random.get_state()[1].copy()
    short, long = (decoded(mapped_sheet(records, mapper, count=n, seed=4)) for n in (2, 4))
    assert np.array_equal(np.random.get_state()[1], before)
    assert np.array_equal(short[:, :656], long[:, :656])


def test_another_seed_augments_the_same_image_otherwise(toy_folder: Path) -> None:
    records = [("toy_without_names", {"file_name": str(toy_folder / "images" / "0.png")})]
    mapper = SegMapper(True, augmentations=build_augmentations([{"NAME": "RandomRotate90"}], ignore=255))
    assert len({mapped_sheet(records, mapper, count=1, seed=seed) for seed in range(8)}) > 1


def test_images_of_many_bands_are_drawn(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(0, 1000, (20, 30, 7)).astype(np.float32))
    mapper = SegMapper(False, augmentations=[], image_format="BANDS", bands=7)
    sheet = decoded(
        mapped_sheet([("toy_without_names", {"file_name": str(tmp_path / "a.npy")})], mapper, count=1, seed=0)
    )
    assert sheet[8:248].std() > 20


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["camvid_trian"], "did you mean camvid_train?"),
        (["camvid_train", "camvid_val"], "seg-ext data view takes one data set"),
        ([], "give the name of a data set"),
        (["camvid_train", "--count", "0"], "--count 0: takes a whole number of at least 1"),
        (["camvid_train", "--seed", "-1"], "--seed -1: takes a whole number of at least 0"),
        (["camvid_train", "--output", "grid.jpg"], "end the name in .png"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(capsys: pytest.CaptureFixture[str], argv: list[str], line: str) -> None:
    assert main(["data", "view", *argv]) == 2
    assert line in capsys.readouterr().err.splitlines()[-1]


def test_a_set_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["data", "view", "voc_2007_val", "--output", str(tmp_path / "x.png")]) == 2
    assert "data set voc_2007_val cannot be loaded" in capsys.readouterr().err
