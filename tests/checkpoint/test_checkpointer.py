"""Checkpoints: written whole or not at all, read without running code."""

import logging
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from seg_ext.checkpoint import Checkpointer
from seg_ext.errors import UserError


def test_a_failed_write_keeps_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Linear(2, 2)
    checkpointer = Checkpointer(model, str(tmp_path))
    checkpointer.save("model_1")
    before = model.weight.detach().clone()

    def interrupted(data, stream):
        stream.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkpointer.save("model_1")
    monkeypatch.undo()
    assert {file.name for file in tmp_path.iterdir()} == {"model_1.pth", "last_checkpoint"}
    nn.init.zeros_(model.weight)
    checkpointer.resume_or_load("", resume=True)
    assert torch.equal(model.weight, before)


def _saved(folder: Path, *names: str, keep: int = 0) -> Checkpointer:
    """A model whose weights are 1 in the first of the checkpoints, 2 in the next, ..."""
    checkpointer = Checkpointer(nn.Linear(2, 2), str(folder), keep=keep)
    for number, name in enumerate(names, start=1):
        nn.init.constant_(checkpointer.model.weight, number)
        checkpointer.save(name)
    nn.init.zeros_(checkpointer.model.weight)
    return checkpointer


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    place = content.index(struct.pack("<4f", 2, 2, 2, 2))  # of the weights themselves: torch.load would not notice
    content[place + 2] ^= 1
    file.write_bytes(content)


def _flip_in_directory(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[content.index(b"PK\x01\x02") + 10] ^= 8  # the way of compression, so that zlib reads what is not its own
    file.write_bytes(content)


@pytest.mark.parametrize(
    "harm", [_truncate, _flip, _flip_in_directory, Path.unlink, lambda file: file.write_bytes(b"")]
)
def test_a_damaged_last_checkpoint_is_named_and_the_one_before_it_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, harm: Callable[[Path], None]
) -> None:
    checkpointer = _saved(tmp_path, "model_0000001", "model_0000003")
    harm(tmp_path / "model_0000003.pth")
    monkeypatch.setattr(logging.getLogger("seg_ext"), "propagate", True)
    with caplog.at_level("WARNING", "seg_ext.checkpoint"):
        checkpointer.resume_or_load("", resume=True)
    assert checkpointer.model.weight.unique().tolist() == [1]
    (line,) = [record.getMessage() for record in caplog.records if record.name.startswith("seg_ext.checkpoint")][:1]
    assert "model_0000003.pth: missing, truncated or damaged" in line and "from" in line and "model_0000001.pth" in line


def test_a_run_does_not_begin_anew_over_checkpoints_that_are_all_damaged(tmp_path: Path) -> None:
    checkpointer = _saved(tmp_path, "model_0000001", "model_final")
    for file in tmp_path.glob("*.pth"):
        _truncate(file)
    with pytest.raises(UserError, match="model_final.pth, .*model_0000001.pth: .* there is no other"):
        checkpointer.resume_or_load("", resume=True)


def test_a_run_goes_on_without_the_note_of_its_last_checkpoint_too(tmp_path: Path) -> None:
    checkpointer = _saved(tmp_path, "model_0000001", "model_0000003")
    (tmp_path / "last_checkpoint").unlink()  # a kill between the first checkpoint and its note
    checkpointer.resume_or_load("", resume=True)
    assert checkpointer.model.weight.unique().tolist() == [2]


def test_the_best_checkpoint_is_not_what_a_run_goes_on_from(tmp_path: Path) -> None:
    checkpointer = _saved(tmp_path, "model_0000001", "model_best")
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "model_0000001.pth")
    (tmp_path / "model_0000001.pth").unlink()
    (tmp_path / "last_checkpoint").unlink()
    assert not checkpointer.has_checkpoint()


def test_keep_bounds_the_numbered_checkpoints_and_spares_the_others(tmp_path: Path) -> None:
    (tmp_path / "model_of_mine.pth").touch()
    numbered = [f"model_{i:07d}" for i in range(4)]
    _saved(tmp_path, "model_best", "model_final", *numbered, keep=2)
    left = {"model_best", "model_final", "model_of_mine", *numbered[2:]}
    assert {file.stem for file in tmp_path.glob("*.pth")} == left
    _saved(tmp_path, "model_0000001", keep=1)  # gone back: it is what the run would go on from
    assert {file.stem for file in tmp_path.glob("*.pth")} == {"model_best", "model_final", "model_of_mine", numbered[1]}


def test_a_negative_number_to_keep_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="SOLVER.CHECKPOINT_KEEP -1"):
        Checkpointer(nn.Linear(1, 1), str(tmp_path), keep=-1)


def test_a_model_zoo_pickle_of_arrays_loads(tmp_path: Path) -> None:
    model = nn.Linear(2, 1, bias=False)
    data = {"model": {"weight": np.array([[1.0, 2.0]], dtype=np.float32)}, "__author__": "zoo"}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(data))
    Checkpointer(model).load(str(tmp_path / "x.pkl"))
    assert model.weight.tolist() == [[1.0, 2.0]]


def test_a_missing_file_is_named() -> None:
    with pytest.raises(UserError, match="weights nowhere.pth not found"):
        Checkpointer(nn.Linear(1, 1)).load("nowhere.pth")
