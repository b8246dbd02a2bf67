"""What a run folder tells of its run, and what it says when the run goes on otherwise."""

from __future__ import annotations

import copy
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from detectron2.structures import BoxMode

from seg_ext.cli.main import main
from seg_ext.config import get_cfg
from seg_ext.engine.run_folder import data_fingerprint, differences, git_commit


@pytest.mark.usefixtures("one_thread")
def test_a_run_that_goes_on_keeps_its_seed_and_says_what_changed(
    toy_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "--config-file", str(toy_config), "DATASETS.TEST", "()", "SEED", "-1", "SOLVER.MAX_ITER"]
    out = tmp_path / "run"
    assert main([*command, "2"]) == 0
    seed = yaml.safe_load((out / "config.yaml").read_text())["SEED"]
    data = json.loads((out / "data.json").read_text())
    assert seed >= 0 and [(x["images"], x["objects"]) for x in data.values()] == [(5, 0)]

    data[next(iter(data))]["images"] = 6
    (out / "data.json").write_text(json.dumps(data))
    capsys.readouterr()
    assert main([command[0], "--resume", *command[1:], "3"]) == 0
    stored = yaml.safe_load((out / "config.yaml").read_text())
    assert stored["SEED"] == seed and stored["SOLVER"]["MAX_ITER"] == 3
    log, shown = (out / "run.log").read_text(), capsys.readouterr().err
    for text in (log, shown):
        assert "the run goes on with another config than it had: SOLVER.MAX_ITER 2 -> 3\n" in text
        assert "is not what this run folder had: 6 images, 0 objects" in text
    environment = (out / "environment.txt").read_text()
    assert environment.count("PyTorch  ") == 2 and environment.count("\nfolder ") == 2
    assert [json.loads(line)["iteration"] for line in (out / "metrics.json").read_text().splitlines()] == [1, 2]

    assert main([*command, "1"]) == 0  # another run in the same folder
    assert len((out / "metrics.json").read_text().splitlines()) == 1
    assert len((out / "metrics_1.json").read_text().splitlines()) == 2


def test_only_keys_whose_values_differ_are_told() -> None:
    cfg = get_cfg()
    stored = yaml.safe_load(cfg.dump())
    cfg.OUTPUT_DIR = "elsewhere"
    assert differences(stored, cfg) == []
    del stored["SOLVER"]["CHECKPOINT_KEEP"]  # as a version stored it that had no such key
    assert differences(stored, cfg) == []
    cfg.SOLVER.CHECKPOINT_KEEP, cfg.MODEL.SEM_SEG_HEAD.DECODER.ARGS.bins = 3, [1, 2]
    cfg.INPUT.MIN_SIZE_TRAIN = (1,) * 40
    found = differences(stored, cfg)
    assert found[1:] == ["MODEL.SEM_SEG_HEAD.DECODER.ARGS.bins None -> [1, 2]", "SOLVER.CHECKPOINT_KEEP 0 -> 3"]
    assert found[0].startswith("INPUT.MIN_SIZE_TRAIN [800] -> [1, 1, 1") and found[0].endswith("...")


def _records(root: str) -> list[dict[str, Any]]:
    box = {"bbox": [0.0, 1.0, 2.0, 3.0], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1}
    return [
        {"file_name": f"{root}/images/{i}.png", "sem_seg_file_name": f"{root}/labels/{i}.png", "annotations": [box] * i}
        for i in range(3)
    ]


def test_a_fingerprint_follows_the_records_and_not_where_they_lie() -> None:
    records = _records("/a")
    found = data_fingerprint(records)
    assert (found["images"], found["objects"]) == (3, 3)
    assert data_fingerprint(_records("/somewhere/else")) == found
    apart = [{**record, "annotations": copy.deepcopy(record["annotations"])} for record in records]
    apart[2]["annotations"] = [dict(box) for box in apart[2]["annotations"]]
    assert data_fingerprint(apart) == found  # equal objects, but not the same ones
    apart[2]["annotations"][1]["bbox"] = [0.0, 1.0, 2.0, 3.5]
    renamed = [*records[:2], {**records[2], "file_name": "/a/images/3.png"}]
    others = [data_fingerprint(other)["sha256"] for other in (apart, records[::-1], records[:2], renamed)]
    assert len({found["sha256"], *others}) == 5


def test_the_commit_of_a_git_tree_is_named_with_what_differs_from_it(tmp_path: Path) -> None:
    assert git_commit(tmp_path) == ""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "file").write_text("1")
    for arguments in (["init", "-q"], ["add", "file"], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *arguments], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert git_commit(tmp_path) == f"git commit {head}, 0 files changed"
    (tmp_path / "file").write_text("2")
    assert git_commit(tmp_path) == f"git commit {head}, 1 file changed"
