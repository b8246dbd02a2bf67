"""Toy data sets on disk: rectangles on noise, with labels that belong to them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

torch.set_num_threads(2)


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """images/N.png and labels/N.png: a bright rectangle (class 1) on a dark ground (class 0), 5 of 48x40 pixels."""
    root = tmp_path_factory.mktemp("toy")
    rng = np.random.default_rng(0)
    for folder in ("images", "labels"):
        (root / folder).mkdir()
    for index in range(5):
        image = rng.integers(0, 60, (48, 40, 3), dtype=np.uint8)
        label = np.zeros((48, 40), np.uint8)
        y, x = rng.integers(0, 20, 2)
        image[y : y + 20, x : x + 18] += 150
        label[y : y + 20, x : x + 18] = 1
        cv2.imwrite(str(root / "images" / f"{index}.png"), image)
        cv2.imwrite(str(root / "labels" / f"{index}.png"), label)
    return root


@pytest.fixture
def toy_config(toy_folder: Path, tmp_path: Path) -> Iterator[Path]:
    """A yaml that trains a tiny U-Net on the toy folder for 4 iterations, with its run folder below tmp_path."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    name = f"toy_{tmp_path.name}"
    file = tmp_path / "toy.yaml"
    file.write_text(f"""
VERSION: 2
MODEL:
  META_ARCHITECTURE: PanopticSegmentor
  DEVICE: cpu
  BACKBONE: {{NAME: build_seg_ext_resnet_backbone, FREEZE_AT: 0}}
  RESNETS: {{DEPTH: 18, RES2_OUT_CHANNELS: 64, NORM: BN, OUT_FEATURES: [conv1, res2, res3]}}
  SEM_SEG_HEAD:
    NAME: SegHead
    NUM_CLASSES: 2
    NORM: BN
    LOSS_WEIGHT: 1.0
    IN_FEATURES: [conv1, res2, res3]
    DECODER: {{NAME: unet, ARGS: {{channels: [16, 16]}}}}
  PROPOSAL_GENERATOR: {{NAME: ""}}
  ROI_HEADS: {{NAME: ""}}
DATASETS:
  FOLDERS: [{{NAME: {name}, IMAGES: {toy_folder}/images, LABELS: {toy_folder}/labels, CLASSES: [ground, box]}}]
  TRAIN: [{name}]
  TEST: [{name}]
INPUT: {{MIN_SIZE_TRAIN: [40], MIN_SIZE_TEST: 0}}
SOLVER:
  {{IMS_PER_BATCH: 2, MAX_ITER: 4, CHECKPOINT_PERIOD: 2,
   LR_SCHEDULER_NAME: WarmupPolyLR, WARMUP_ITERS: 0, BASE_LR: 0.05}}
DATALOADER: {{NUM_WORKERS: 0}}
OUTPUT_DIR: {tmp_path}/run
SEED: 0
""")
    yield file
    if name in DatasetCatalog.list():
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
