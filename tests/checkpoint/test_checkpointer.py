"""Checkpoints: written whole or not at all, read without running code."""

import pickle
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
    nn.init.zeros_(model.weight)
    checkpointer.resume_or_load("", resume=True)
    assert torch.equal(model.weight, before)


class _Malicious:
    def __reduce__(self):
        return (Path.touch, (Path("touched"),))


@pytest.mark.parametrize("suffix", ["pkl", "pth"])
def test_a_pickle_that_runs_code_is_refused_by_the_name_it_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / f"x.{suffix}"
    file.write_bytes(pickle.dumps({"model": _Malicious()}))
    with pytest.raises(UserError, match=f"x.{suffix}"):
        Checkpointer(nn.Linear(1, 1)).load(str(file))
    assert not Path("touched").exists()


def test_a_model_zoo_pickle_of_arrays_loads(tmp_path: Path) -> None:
    model = nn.Linear(2, 1, bias=False)
    data = {"model": {"weight": np.array([[1.0, 2.0]], dtype=np.float32)}, "__author__": "zoo"}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(data))
    Checkpointer(model).load(str(tmp_path / "x.pkl"))
    assert model.weight.tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize("content", [b"", b"no checkpoint", pickle.dumps([1])[:4]])
@pytest.mark.parametrize("suffix", ["pkl", "pth"])
def test_what_is_no_checkpoint_is_named(tmp_path: Path, suffix: str, content: bytes) -> None:
    file = tmp_path / f"x.{suffix}"
    file.write_bytes(content)
    with pytest.raises(UserError, match=f"x.{suffix}: not a readable checkpoint"):
        Checkpointer(nn.Linear(1, 1)).load(str(file))


def test_a_missing_file_is_named() -> None:
    with pytest.raises(UserError, match="weights nowhere.pth not found"):
        Checkpointer(nn.Linear(1, 1)).load("nowhere.pth")
