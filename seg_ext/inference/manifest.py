"""The manifest of a prediction run: what is done, image by image, in JSON lines that survive any end of the process."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from seg_ext.errors import UserError

Entry = dict[str, Any]


class Manifest:
    """``manifest/<process>-of-<processes>.jsonl`` below the output folder: each process appends to its own.

    The first line of a file says what the run was asked for, each other one what became of one input: {"input": key}
    with the rows of its JSON, with "frames" for one that was a sequence, or with "error". Of several entries with one
    key the last counts; a line that a crash cut off counts for nothing.
    """

    def __init__(
        self, folder: Path, about: Mapping[str, Any], *, resume: bool = False, rank: int = 0, processes: int = 1
    ) -> None:
        """Open this process's file; without ``resume`` it begins anew.

        Args:
            folder: of the output.
            about: what the predictions depend on, JSON's types.
            resume: go on where all processes of earlier runs have been.
            rank: of this process.
            processes: of the run.

        Raises:
            UserError: what is there was made with something else, or nothing can be written.
        """
        self._folder = folder / "manifest"
        self._file = self._folder / f"{rank:05d}-of-{processes:05d}.jsonl"
        self._about = json.loads(json.dumps(about))
        self.settled: frozenset[str] = frozenset()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if resume:
                self._check()
                self.settled = frozenset(key for key, well in self._outcomes().items() if well)
            else:
                for other in self._folder.glob("*-of-*.jsonl"):
                    if other == self._file or other.name.split("-of-")[1] != self._file.name.split("-of-")[1]:
                        other.unlink(missing_ok=True)
            self._stream = _appending(self._file)
        except OSError as error:
            raise UserError(f"{self._file} cannot be written: {error.strerror or error}") from error
        if not self._file.stat().st_size:
            self._append({"about": self._about})

    def add(self, key: str, **entry: Any) -> None:
        """Note what became of an input; in the file when this returns.

        Raises:
            UserError: it cannot be written.
        """
        self._append({"input": key, **entry})

    def close(self) -> None:
        """Close the file."""
        os.close(self._stream)

    def covers(self, keys: list[str]) -> bool:
        """Whether the processes together have settled every key, well or not."""
        return set(keys) <= self._outcomes().keys()

    def entries(self) -> Iterator[Entry]:
        """The entry that counts of every input, of all processes, in the order of their keys."""
        places: dict[str, tuple[Path, int]] = {}
        for file, offset, entry in self._lines():
            if "input" in entry:
                places[entry["input"]] = file, offset
        with ExitStack() as stack:
            streams = {file: stack.enter_context(file.open("rb")) for file in {file for file, _ in places.values()}}
            for key in sorted(places):
                file, offset = places[key]
                streams[file].seek(offset)
                yield json.loads(streams[file].readline())

    def _outcomes(self) -> dict[str, bool]:
        """Whether each input was settled well."""
        return {entry["input"]: "error" not in entry for _, _, entry in self._lines() if "input" in entry}

    def _lines(self) -> Iterator[tuple[Path, int, Entry]]:
        for file in sorted(self._folder.glob("*-of-*.jsonl"), key=lambda file: (file.stat().st_mtime_ns, file.name)):
            offset = 0
            with file.open("rb") as stream:
                for line in stream:
                    if line.endswith(b"\n"):
                        yield file, offset, json.loads(line)
                    offset += len(line)

    def _check(self) -> None:
        for file, _, entry in self._lines():
            stored = entry.get("about", self._about)
            differ = [key for key in self._about if stored.get(key) != self._about[key]]
            if differ:
                what = " and ".join(differ)
                raise UserError(f"{file}: of a run with other {what}; leave --resume out, or give another --output")

    def _append(self, entry: Entry) -> None:
        try:
            _write_all(self._stream, json.dumps(entry).encode() + b"\n")
        except OSError as error:
            raise UserError(f"{self._file} cannot be written: {error.strerror or error}") from error


def _appending(file: Path) -> int:
    """A file open for lines at its end; what a crash left of a last line is cut away."""
    stream = os.open(file, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
    end = os.lseek(stream, 0, os.SEEK_END)
    whole = end
    while whole:
        start = max(0, whole - 2**16)
        os.lseek(stream, start, os.SEEK_SET)
        found = os.read(stream, whole - start).rfind(b"\n")
        if found >= 0:
            whole = start + found + 1
            break
        whole = start
    os.ftruncate(stream, whole)
    os.lseek(stream, whole, os.SEEK_SET)
    return stream


def _write_all(stream: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(stream, view) :]
