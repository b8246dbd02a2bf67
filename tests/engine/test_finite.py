"""A loss that is not finite: one line, exit status 1, and a batch that can be run again to find out why."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from torch import nn

from seg_ext.cli.main import main
from seg_ext.engine.finite import NotFinite, explain, write_metrics
from seg_ext.engine.plain import from_plain, to_plain
from seg_ext.errors import UserError


def run(*argv: Any) -> int:
    return main([str(arg) for arg in argv])


@pytest.mark.usefixtures("one_thread")
def test_a_loss_that_is_not_finite_is_explained_and_replayed(
    toy_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    command = ("train", "--config-file", toy_config, "DATASETS.TEST", "()", "SOLVER.MAX_ITER", "1")
    assert run(*command) == 0
    weights = torch.load(out / "model_final.pth")
    poisoned = next(name for name in weights["model"] if "decoder" in name and name.endswith("weight"))
    weights["model"][poisoned].view(-1)[3] = math.inf
    torch.save({"model": weights["model"]}, tmp_path / "poisoned.pth")

    capsys.readouterr()
    assert run(*command, "MODEL.WEIGHTS", tmp_path / "poisoned.pth", "OUTPUT_DIR", out) == 1
    error = capsys.readouterr().err
    line = [line for line in error.splitlines() if line.startswith("seg-ext: error: ")]
    assert len(line) == 1 and "Traceback" not in error
    kept = out / "nonfinite_0000000.pth"
    for part in (
        "iteration 0: loss_sem_seg nan",
        "learning rate 0.05",
        "images/",
        str(kept),
        "weights were not finite",
    ):
        assert part in line[0]
    assert line[0].count(".png") == 2

    assert run("train", "--replay", kept) == 0
    printed = capsys.readouterr().out
    module = poisoned.removesuffix(".weight")
    assert f"first parameter that is not finite: {poisoned}, 1 of" in printed
    assert f"first module whose output is not finite: {module} (Conv" in printed and "its input is finite" in printed
    assert "losses in the run: loss_sem_seg nan" in printed and "losses now: loss_sem_seg nan" in printed


@pytest.mark.parametrize("content", [None, b"", b"nothing", {"model": {}}, "code"])
def test_a_replay_of_anything_else_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: Any
) -> None:
    file = tmp_path / "nonfinite_0000001.pth"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content:
        torch.save({"format": 1, "batch": Path("x")} if content == "code" else content, file)
    assert run("train", "--replay", file) == 2
    assert f"--replay {file}: " in capsys.readouterr().err


def test_all_processes_stop_and_the_first_one_concerned_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    others = [({"a": 1.0, "b": 2.0}, 0.1), ({"a": math.nan, "b": -math.inf}, 0.1), ({"a": math.inf, "b": 0.0}, 0.1)]
    monkeypatch.setattr("detectron2.utils.comm.all_gather", lambda own: others)
    for rank in (0, 1, 2):
        monkeypatch.setattr("detectron2.utils.comm.get_rank", lambda rank=rank: rank)
        losses = {name: torch.tensor(value) for name, value in others[rank][0].items()}
        with EventStorage(), pytest.raises(NotFinite, match="^a nan, b -inf$") as caught:
            write_metrics(losses, 0.1, 7)
        assert caught.value.told_here == (rank == 1)


def test_finite_losses_are_written_as_their_means_over_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = [({"a": 1.0, "b": 2.0}, 0.1), ({"a": 3.0, "b": 6.0}, 0.3)]
    monkeypatch.setattr("detectron2.utils.comm.all_gather", lambda own: ranks)
    with EventStorage() as storage:
        write_metrics({"a": torch.tensor(1.0), "b": torch.tensor(2.0)}, 0.1, 7)
    latest = {name: value for name, (value, iteration) in storage.latest().items() if iteration == 7}
    assert latest == {"a": 2, "b": 4, "total_loss": 6, "data_time": 0.3, "rank_data_time": 0.1}


def test_a_loss_that_some_processes_lack_is_their_mean_that_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = [({"a": 1.0}, 0.1), ({"a": 3.0, "b": 6.0}, 0.3)]
    monkeypatch.setattr("detectron2.utils.comm.all_gather", lambda own: ranks)
    with EventStorage() as storage:
        write_metrics({"a": torch.tensor(1.0)}, 0.1, 7)
    latest = {name: value for name, (value, _) in storage.latest().items() if "time" not in name}
    assert latest == {"a": 2, "b": 6, "total_loss": 5}


def test_what_a_model_raises_itself_is_explained_too(tmp_path: Path) -> None:
    model = nn.Linear(2, 1)
    files = [{"file_name": f"{i}.png"} for i in range(10)]
    told = explain(
        FloatingPointError("Predicted boxes or scores contain Inf/NaN."),
        files,
        iteration=5,
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.25),
        rng={},
        folder=tmp_path,
    )
    assert told.told_here and "iteration 5: Predicted boxes" in told.line and "learning rate 0.25" in told.line
    assert "7.png and 2 more" in told.line and "weights were not" not in told.line
    assert torch.load(tmp_path / "nonfinite_0000005.pth", weights_only=True)["batch"] == files


def test_a_batch_survives_as_tensors_and_containers(tmp_path: Path) -> None:
    instances = Instances((4, 6))
    instances.gt_boxes = Boxes(torch.tensor([[0.0, 1, 2, 3]]))
    instances.gt_masks = BitMasks(torch.eye(4)[None] > 0)
    polygons = Instances((4, 6), gt_masks=PolygonMasks([[np.array([0.0, 0, 1, 0, 1, 1])]]))
    batch = [{"image": torch.rand(3, 4, 6), "file_name": "a.png", "height": np.int64(4), "instances": instances}]
    batch.append({"instances": polygons, "sizes": (1, [2.5, None])})
    torch.save(to_plain(batch), tmp_path / "batch.pth")
    first, second = from_plain(torch.load(tmp_path / "batch.pth", weights_only=True))
    assert torch.equal(first["image"], batch[0]["image"]) and first["height"] == 4
    assert first["instances"].image_size == (4, 6)
    assert torch.equal(first["instances"].gt_boxes.tensor, instances.gt_boxes.tensor)
    assert torch.equal(first["instances"].gt_masks.tensor, instances.gt_masks.tensor)
    assert second["instances"].gt_masks.polygons[0][0].tolist() == [0, 0, 1, 0, 1, 1]
    assert second["sizes"] == (1, [2.5, None])
    with pytest.raises(UserError, match="holds a PosixPath"):
        from_plain(to_plain([Path("x")]))
