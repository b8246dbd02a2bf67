"""The shipped configs on real images: what the README promises, at full size."""

import json
from pathlib import Path

import pytest

from seg_ext.cli.main import main
from seg_ext.data.datasets import data_root

pytestmark = pytest.mark.slow


def require(folder: str) -> None:
    if not (data_root() / folder).is_dir():
        pytest.skip(f"{data_root() / folder} is not there (DETECTRON2_DATASETS, seg-ext data prepare)")


def test_the_demo_reaches_its_scores(tmp_path: Path) -> None:
    require("nuclei")
    assert main(["train", "--config-file", "nuclei/panoptic_unet_R_18_FPN.yaml", "OUTPUT_DIR", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["segm"]["AP50"] >= 70
    assert results["sem_seg"]["IoU-nucleus"] >= 80
    assert results["panoptic_seg"]["PQ"] >= 50


def test_camvid_learns_road_and_sky_in_a_hundred_iterations(tmp_path: Path) -> None:
    require("camvid")
    short = ["SOLVER.MAX_ITER", "100", "SOLVER.WARMUP_ITERS", "10", "TEST.GALLERY", "0", "OUTPUT_DIR", str(tmp_path)]
    assert main(["train", "--config-file", "camvid/unet_R_18_cpu.yaml", *short]) == 0
    scores = json.loads((tmp_path / "results.json").read_text())["sem_seg"]
    assert scores["IoU-road"] > 60 and scores["IoU-sky"] > 60
