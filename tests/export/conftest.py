"""A tiny trained-looking model in a run folder, and its ONNX file, made once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from seg_ext.cli.main import main

NAME = "export_toy"


@pytest.fixture(scope="session")
def run_folder(toy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """config.yaml and model_final.pth of a two-level U-Net with random weights, whose images are resized to 64."""
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.modeling import build_model

    import seg_ext.modeling  # noqa: F401  registers models
    from seg_ext.config import parse_config

    folder = tmp_path_factory.mktemp("run")
    cfg = parse_config(CONFIG.format(folder=toy_folder, name=NAME), "the toy", base="Base-Semantic.yaml")
    cfg.OUTPUT_DIR = str(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model(cfg)
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.running_mean.uniform_(-0.1, 0.1)
    with torch.no_grad():
        scores = model.eval()([{"image": torch.full((3, 64, 64), 110.0)}])[0]["sem_seg"]
        model.sem_seg_head.decoder.score.bias -= scores.mean((1, 2))  # so that neither class has every pixel
    torch.save({"model": model.state_dict()}, folder / "model_final.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    yield folder
    if NAME in DatasetCatalog.list():
        DatasetCatalog.remove(NAME)
        MetadataCatalog.remove(NAME)


@pytest.fixture(scope="session")
def onnx_file(run_folder: Path) -> Path:
    """What ``seg-ext export`` makes of it."""
    pytest.importorskip("onnxruntime", reason="needs the extra `export`")
    pytest.importorskip("onnxscript", reason="needs the extra `export`")
    file = run_folder / "exported" / "toy.onnx"
    assert main(["export", "--weights", str(run_folder / "model_final.pth"), "--output", str(file)]) == 0
    return file


CONFIG = """
MODEL:
  DEVICE: cpu
  PIXEL_MEAN: [120.0, 110.0, 100.0]
  PIXEL_STD: [58.0, 57.0, 56.0]
  BACKBONE: {{NAME: build_seg_ext_unet_backbone}}
  UNET: {{DEPTH: 2, WIDTH: 8, NORM: BN, OUT_FEATURES: [level1, level2]}}
  SEM_SEG_HEAD: {{NUM_CLASSES: 2, IN_FEATURES: [level1, level2], DECODER: {{NAME: unet}}}}
DATASETS:
  FOLDERS: [{{NAME: {name}, IMAGES: {folder}/images, LABELS: {folder}/labels, CLASSES: [ground, box]}}]
  TRAIN: [{name}]
  TEST: [{name}]
INPUT: {{FORMAT: BGR, MIN_SIZE_TEST: 64, MAX_SIZE_TEST: 70}}
DATALOADER: {{NUM_WORKERS: 0}}
"""
