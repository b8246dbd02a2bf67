"""Every shipped yaml builds on the meta device and counts the parameters it should."""

from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from seg_ext.config import load_config
from seg_ext.engine.checks import complete_config

ROOT = Path(__file__).parents[1] / "configs"
PARAMETERS = {
    "camvid/unet_R_18_cpu.yaml": 12_689_579,
    "nuclei/panoptic_unet_R_18_FPN.yaml": 15_280_952,
}


def test_every_config_has_a_row() -> None:
    assert {str(file.relative_to(ROOT)) for file in ROOT.glob("*/*.yaml")} == set(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_builds_and_counts(name: str) -> None:
    cfg = load_config(name)
    cfg.MODEL.DEVICE = "meta"
    complete_config(cfg)
    with torch.device("meta"):
        model = build_model(cfg)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
