"""Toy data sets on disk: rectangles on noise, with labels that belong to them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import cv2
import hypothesis
import numpy as np
import pytest
import torch

torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)
hypothesis.settings.register_profile("loaded", deadline=None)  # time per example says how busy the machine is
hypothesis.settings.load_profile("loaded")
os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start, which would else wait for each other's threads


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Maps this small are not worth the threads' meetings, and the order of sums is part of the bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def nuclei_tree(tmp_path: Path) -> Iterator[Callable[[Mapping[str, Sequence[np.ndarray]]], Path]]:
    """Takes maps of ids by split: bright nuclei on a dark ground, as nuclei_train and nuclei_test."""
    from seg_ext.data.datasets import data_root, nuclei
    from seg_ext.data.derive import derive_coco

    def make(labels: Mapping[str, Sequence[np.ndarray]]) -> Path:
        root = tmp_path / "nuclei"
        for split, maps in labels.items():
            for folder in ("images", "labels"):
                (root / split / folder).mkdir(parents=True)
            for index, label in enumerate(maps):
                ground = np.random.default_rng(index).integers(0, 40, label.shape, np.uint8)
                cv2.imwrite(str(root / split / "images" / f"{index}.png"), ground + (label > 0) * np.uint8(150))
                cv2.imwrite(str(root / split / "labels" / f"{index}.png"), label)
            derive_coco(root, split, thing_class="nucleus")
        nuclei.register(tmp_path)
        return tmp_path

    yield make
    nuclei.register(data_root())


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
