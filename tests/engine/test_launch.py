"""Several processes: one that dies takes the run with it, with its traceback, soon."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUN = """
import argparse, os, signal, sys
from detectron2.config import get_cfg
from detectron2.utils import comm
from seg_ext.engine.launch import launch
def main(cfg, args):
    signal.signal(signal.SIGTERM, lambda number, frame: None)  # as in a training
    if comm.get_rank() == 1:
        raise ValueError("rank 1 is at fault")
    comm.synchronize()
if __name__ == "__main__":
    cfg = get_cfg()
    cfg.MODEL.DEVICE, cfg.DATASETS.FOLDERS, cfg.DATASETS.FILES = "cpu", [], []
    args = dict(num_gpus=2, num_machines=1, machine_rank=0, dist_url="auto", debug=False)
    sys.exit(launch(main, cfg, argparse.Namespace(**args)))
"""


@pytest.mark.parametrize(
    "launcher",
    [
        [],
        pytest.param(["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"], marks=pytest.mark.slow),
    ],
    ids=["--num-gpus", "torchrun"],
)
def test_a_process_that_fails_ends_the_run_with_its_traceback_alone(tmp_path: Path, launcher: list[str]) -> None:
    script = tmp_path / "run.py"
    script.write_text(RUN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *launcher, str(script)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1
    assert ended.stderr.count("Traceback") == 1 + bool(launcher), "torchrun adds its own"
    assert "seg-ext: error: process 1 failed:" in ended.stderr and "ValueError: rank 1 is at fault" in ended.stderr
