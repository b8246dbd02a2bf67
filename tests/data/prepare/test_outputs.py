"""Files are whole or absent, a second call makes what is missing, and strangers are left alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from seg_ext.data.prepare.outputs import count_files, finish, is_finished, made, make
from seg_ext.errors import UserError


def writing(log: list[str]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        log.append(path.name)
        path.write_text("whole")

    return write


def failing(path: Path) -> None:
    path.write_text("half")
    raise KeyboardInterrupt


def test_a_second_call_makes_only_what_is_missing(tmp_path: Path) -> None:
    log: list[str] = []
    outputs = {tmp_path / "to" / f"{i}.txt": writing(log) for i in range(20)}
    assert make(outputs, "toy") == 20 and sorted(p.name for p in (tmp_path / "to").iterdir()) == sorted(
        p.name for p in outputs
    )
    (tmp_path / "to" / "7.txt").unlink()
    log.clear()
    assert make(outputs, "toy") == 1 and log == [".partial-7.txt"]
    assert make(outputs, "toy") == 0


def test_an_interrupted_call_leaves_whole_files_only(tmp_path: Path) -> None:
    log: list[str] = []
    outputs = {tmp_path / "0.txt": writing(log), tmp_path / "1.txt": failing}
    with pytest.raises(KeyboardInterrupt):
        make(outputs, "toy")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("0.txt", "whole")]


def test_what_an_earlier_process_left_half_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / ".partial-a.txt").write_text("half")
    assert make({tmp_path / "a.txt": writing([])}, "toy") == 1
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.txt", "whole")]


def test_a_stranger_in_the_folder_is_named_unless_it_may_be_there(tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("mine")
    with pytest.raises(UserError, match=r"own\.txt does not come from this source; move .* away"):
        make({tmp_path / "a.txt": writing([])}, "toy")
    assert not (tmp_path / "a.txt").exists()
    assert make({tmp_path / "a.txt": writing([])}, "toy", alone=False) == 1
    assert (tmp_path / "own.txt").read_text() == "mine"


def test_finished_means_noted_and_as_many_files(tmp_path: Path) -> None:
    outputs = {tmp_path / "images" / f"{i}.txt": writing([]) for i in range(3)}
    make(outputs, "toy")
    assert not is_finished(tmp_path)
    finish(tmp_path, outputs)
    assert is_finished(tmp_path) and count_files(tmp_path / "images") == 3
    (tmp_path / "images" / "0.txt").unlink()
    assert not is_finished(tmp_path)


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/to.*: Not a directory"):
        make({tmp_path / "file" / "to" / "a.txt": writing([])}, "toy")
    with pytest.raises(UserError, match=r"file/to cannot be made: .*--root"):
        made(tmp_path / "file" / "to")


def test_no_progress_bar_is_printed_into_a_pipe(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    make({tmp_path / f"{i}.txt": partial(Path.write_text, data="whole") for i in range(5)}, "toy")
    assert capfd.readouterr() == ("", "")
