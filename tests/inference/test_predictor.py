"""Predictor: a file and its array give the model's own output, at the image's size."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from seg_ext import Predictor, UserError
from seg_ext.cli.main import main
from seg_ext.config import load_config
from seg_ext.data.datasets.folder import register_from_config_list


@pytest.fixture
def predictor(toy_config: Path, tmp_path: Path) -> Predictor:
    assert main(["train", "--config-file", str(toy_config), "DATASETS.TEST", "()"]) == 0
    cfg = load_config(toy_config, ["MODEL.WEIGHTS", str(tmp_path / "run" / "model_final.pth")])
    register_from_config_list(cfg.DATASETS.FOLDERS)
    return Predictor(cfg)


def test_a_file_and_its_array_give_the_same_scores(predictor: Predictor, toy_folder: Path) -> None:
    file = toy_folder / "images" / "1.png"
    array = cv2.imread(str(file))  # BGR, INPUT.FORMAT of the toy config
    scores = predictor(file)["sem_seg"]
    assert scores.shape == (2, 48, 40) and not scores.requires_grad
    assert torch.equal(scores, predictor(array)["sem_seg"])
    inputs = {"image": torch.from_numpy(array.transpose(2, 0, 1).copy()), "height": 48, "width": 40}
    with torch.no_grad():
        assert torch.equal(scores, predictor.model([inputs])[0]["sem_seg"])


def test_the_output_has_the_size_of_the_image_whatever_the_test_size(predictor: Predictor) -> None:
    assert predictor(np.zeros((61, 37, 3), np.uint8))["sem_seg"].shape == (2, 61, 37)


def test_class_names_come_with_it(predictor: Predictor) -> None:
    assert predictor.metadata.stuff_classes == ["ground", "box"]


def test_no_weights_is_refused(toy_config: Path) -> None:
    cfg = load_config(toy_config)
    register_from_config_list(cfg.DATASETS.FOLDERS)
    with pytest.raises(UserError, match="MODEL.WEIGHTS is empty"):
        Predictor(cfg)
