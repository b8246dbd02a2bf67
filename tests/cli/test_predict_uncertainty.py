"""``seg-ext predict --uncertainty``: maps of the samples, where the model has dropout."""

import math
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import yaml
from detectron2.modeling import build_model

from seg_ext.cli.main import main
from seg_ext.config import load_config


@pytest.fixture
def run(tmp_path: Path, toy_config: Path) -> Path:
    """Untrained weights of a model with dropout before its classifier, and their config."""
    toy = yaml.safe_load(toy_config.read_text())
    toy["MODEL"]["SEM_SEG_HEAD"]["DECODER"] = {"NAME": "semantic_fpn", "ARGS": {"channels": 8, "dropout": 0.5}}
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(toy))
    torch.manual_seed(0)
    model = build_model(load_config(folder / "config.yaml"))
    torch.nn.init.normal_(model.sem_seg_head.decoder.score.weight, std=0.01)  # probabilities away from 0 and 1
    torch.save({"model": model.state_dict()}, folder / "model_final.pth")
    return folder


def test_maps_come_as_floats_and_pictures_and_are_refused_without_samples_or_dropout(
    run: Path, toy_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run / "out"
    command = ["predict", "--input", str(toy_folder / "images" / "0.png"), "--output", str(out)]
    command += ["--weights", str(run / "model_final.pth"), "--save", "labels"]
    assert main([*command, "--uncertainty", "3"]) == 0
    names = {f"0_{name}.{kind}" for name in ("variance", "entropy", "mutual_information") for kind in ("tif", "png")}
    assert {file.name for file in (out / "uncertainty").iterdir()} == names and (out / "labels" / "0.png").exists()
    entropy, shared = (tifffile.imread(out / "uncertainty" / f"0_{x}.tif") for x in ("entropy", "mutual_information"))
    assert entropy.shape == (48, 40) and entropy.dtype == np.float32
    assert (entropy >= shared).all() and (shared > 0).mean() > 0.5 and entropy.max() <= math.log(2) + 1e-6
    capsys.readouterr()
    assert main([*command, "uncertainty"]) == 2
    assert "--save uncertainty needs samples: give --uncertainty N" in capsys.readouterr().err
    assert main([*command, "--uncertainty", "2", "MODEL.SEM_SEG_HEAD.DECODER.ARGS.dropout", "0.0"]) == 2
    assert "neither decoder nor backbone has dropout above 0" in capsys.readouterr().err
