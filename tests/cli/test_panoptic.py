"""Semantic, instance and panoptic together, end to end, on a generated nuclei-like tree."""

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from seg_ext.cli.main import main

SMALL = (
    "MODEL.FPN.OUT_CHANNELS", "32", "MODEL.ROI_BOX_HEAD.FC_DIM", "32", "MODEL.ROI_MASK_HEAD.CONV_DIM", "32",
    "MODEL.RPN.POST_NMS_TOPK_TRAIN", "64", "INPUT.MIN_SIZE_TEST", "64", "DATALOADER.NUM_WORKERS", "0",
    "INPUT.AUGMENTATIONS", "[{'NAME': 'RandomScaleCrop', 'size': [64, 64], 'scale': [1.0, 1.2]}]",
    "SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "2", "MODEL.DEVICE", "cpu",
)  # fmt: skip


@pytest.fixture
def tree(nuclei_tree: Callable[..., Path]) -> Path:
    """Discs of several sizes, two of them touching."""
    labels = []
    for index in range(2):
        labels.append(np.zeros((64, 64), np.uint16))
        for number, (x, y, r) in enumerate([(16, 16, 9), (34, 16, 9), (40 + 3 * index, 45, 12)], start=1):
            cv2.circle(labels[-1], (x, y), r, number, cv2.FILLED)
    return nuclei_tree({"train": labels, "test": labels})


def test_one_run_trains_scores_and_pictures_three_tasks(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tree / "run"
    config = ("--config-file", "nuclei/panoptic_unet_R_18_FPN.yaml")
    assert main(["train", *config, "OUTPUT_DIR", str(out), *SMALL]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("mIoU", "pix acc", "AP50", "PQ", "SQ", "RQ"))
    results = json.loads((out / "results.json").read_text())
    assert set(results) == {"sem_seg", "bbox", "segm", "panoptic_seg", "about"}
    page = (out / "gallery" / "index.html").read_text()
    assert all(word in page for word in ("Semantic", "Instance", "Panoptic", "PQ"))

    images, destination = tree / "nuclei" / "test" / "images", tree / "predictions"
    command = [
        "predict",
        "--weights",
        str(out / "model_final.pth"),
        "--input",
        str(images),
        "--output",
        str(destination),
    ]
    assert main(command) == 0
    coco = json.loads(next(destination.glob("*.json")).read_text())
    assert [image["file_name"] for image in coco["images"]] and "annotations" in coco


def test_a_panoptic_model_on_a_semantic_set_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    config = ("--config-file", "nuclei/panoptic_unet_R_18_FPN.yaml", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "11")
    assert main(["train", *config, "DATASETS.TRAIN", "('camvid_train',)", "MODEL.DEVICE", "cpu"]) == 2
    assert "data set camvid_train has no instances" in capsys.readouterr().err
