"""A trainer of a tiny VGG and U-Net on the toy folder, without random augmentation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from seg_ext.config import load_config
from seg_ext.data.datasets.folder import register_from_config_list
from seg_ext.engine.checks import complete_config
from seg_ext.engine.trainer import Trainer

MAPS = str([f"pool{level}" for level in range(1, 6)])
TINY = (
    *("MODEL.BACKBONE.NAME", "build_seg_ext_vgg_backbone", "MODEL.VGG.WIDTH", "4", "MODEL.VGG.NORM", "BN"),
    *("MODEL.VGG.OUT_FEATURES", MAPS, "MODEL.SEM_SEG_HEAD.IN_FEATURES", MAPS),
    *("MODEL.SEM_SEG_HEAD.DECODER.ARGS.channels", "[8, 8, 8, 8]", "INPUT.RANDOM_FLIP", "none"),
)


def build(yaml: Path | str, *opts: Any) -> Trainer:
    """Of a yaml like ``toy_config``'s with overrides, from the same first weights each time."""
    cfg = load_config(yaml, [*TINY, *map(str, opts)])
    register_from_config_list(cfg.DATASETS.FOLDERS)
    complete_config(cfg)
    Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    return Trainer(cfg)


@pytest.fixture
def trainer(toy_config: Path) -> Callable[..., Trainer]:
    """Takes ``KEY, VALUE`` overrides."""
    return lambda *opts: build(toy_config, *opts)


@pytest.fixture
def tiny(toy_config: Path) -> list[str]:
    """``train``'s arguments for the same."""
    return ["train", "--config-file", str(toy_config), *TINY]
