"""Archives that a user downloads by hand, put where their data set reads them, and checked."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from seg_ext.data.datasets.catalog import Records
from seg_ext.data.label_io import image_size, read_record_label
from seg_ext.data.prepare.archive import Member, copy, members
from seg_ext.data.prepare.outputs import WORKERS, count_files, finish, is_finished, made, write
from seg_ext.data.prepare.report import Report
from seg_ext.errors import UserError

NAME = r"[^/.][^/]*"  # of a file that is not hidden


@dataclass(frozen=True)
class Download:
    """An archive of a data set.

    Attributes:
        file: its name.
        page: where it is to be had.
        places: regular expression of the end of a member's path -> where it goes below the data set's folder, with the
            expression's groups as ``\\1``. Other members are left out.
        nested: the same for archives inside it, whose own members are looked up in ``places``.
    """

    file: str
    page: str
    places: Mapping[str, str]
    nested: str | None = None


def wanted(root: Path, downloads: Sequence[Download]) -> str:
    """What to do about data that are not there: which file, from where, to where."""
    pages = dict.fromkeys(download.page for download in downloads)
    files = {page: ", ".join(d.file for d in downloads if d.page == page) for page in pages}
    listed = " and ".join(f"{listed} from {page}" for page, listed in files.items())
    return f"download {listed} into {root}, or name archive or folder with --source"


def unpack_downloads(place: Path, source: Path | None, downloads: Sequence[Download]) -> int:
    """Put the wanted members of the downloads below ``place``; a file that is there in its full size stays.

    A source that was unpacked already is copied. Files appear whole or not at all, so that an interrupted call is
    taken up by the next one.

    Args:
        place: folder of the data set.
        source: an archive, or a folder that holds the archives, or their unpacked files at any depth; None to look
            for the archives in the folder of all data sets, and in that of the data set.
        downloads: what is wanted.

    Returns:
        The number of files written.

    Raises:
        UserError: a source without a wanted file, a damaged archive, or a place that cannot be written.
    """
    matched = written = 0
    try:
        for found in _found(place, source, downloads):
            for fresh in _take(found, made(place), downloads):
                matched, written = matched + 1, written + fresh
    except OSError as error:
        raise UserError(f"{error.filename or place} cannot be written or read: {error.strerror or error}") from error
    if source is not None and not matched:
        raise UserError(f"{source} holds no file of this data set: {wanted(place.parent, downloads)}")
    return written


@dataclass(frozen=True)
class Split:
    """A registered split: its name, a folder that is empty without it, what loads it, its official number of images."""

    name: str
    folder: Path
    load: Callable[[], Records]
    official: int


def counted(name: str, count: int, official: int) -> str:
    """What a report says of a split and its images."""
    return f"{name}: {count} images{'' if count == official else f' of {official}'}"


def prepare_downloads(
    place: Path,
    source: Path | None,
    downloads: Sequence[Download],
    splits: Sequence[Split],
    *,
    num_classes: int,
    label_map: Mapping[Any, int] | None = None,
) -> Report:
    """Unpack, then read every label map once; splits that are not there at all are left out.

    Args:
        place: folder of the data set.
        source: see :func:`unpack_downloads`.
        downloads: likewise.
        splits: all of them.
        num_classes: see :func:`seg_ext.data.label_io.read_label`.
        label_map: likewise.

    Raises:
        UserError: see :func:`unpack_downloads` and :func:`verify`; or no split is there, or an image has no label map.
    """
    note = splits[0].folder.parent
    finished = is_finished(note)
    whole = finished and all(count_files(split.folder) for split in splits)
    written = 0 if whole and source is None else unpack_downloads(place, source, downloads)
    there = [split for split in splits if count_files(split.folder)]
    if not there:
        raise UserError(f"{place} holds nothing of it: {wanted(place.parent, downloads)}")
    records = {split.name: split.load() for split in there}
    if written or not finished:
        for name, found in records.items():
            verify(found, name, num_classes=num_classes, label_map=label_map)
        if os.access(note, os.W_OK):
            finish(note, [split.folder / "any" for split in there])
    return Report(place, written > 0, [counted(s.name, len(records.get(s.name, ())), s.official) for s in splits])


def verify(records: Records, title: str, *, num_classes: int, label_map: Mapping[Any, int] | None = None) -> None:
    """Read every label map, under a progress bar.

    Raises:
        UserError: the first one that cannot be read, holds ids that are no class, or has not its image's size.
    """

    def check(record: Mapping[str, Any]) -> None:
        label = read_record_label(record, {"label_map": label_map or {}}, num_classes=num_classes)
        size = image_size(record["file_name"])
        if label.shape != size:
            path = record["sem_seg_file_name"]
            raise UserError(f"{path} is {label.shape[1]}x{label.shape[0]}, its image {size[1]}x{size[0]}")

    with ThreadPoolExecutor(WORKERS) as pool:
        done = pool.map(check, records)
        for _ in tqdm(done, f"verify {title}", len(records), unit="file", disable=None, leave=False):
            pass


def _found(place: Path, source: Path | None, downloads: Sequence[Download]) -> list[Path]:
    homes = [place.parent, place] if source is None else [source] if source.is_dir() else []
    archives = [home / download.file for home in homes for download in downloads if (home / download.file).is_file()]
    return archives if source is None else [*archives, source]


def _take(found: Path, place: Path, downloads: Sequence[Download]) -> Iterator[bool]:
    """Whether each wanted member was written."""
    if found.is_dir():
        yield from _take_all(_files(found), place, downloads)
        return
    with members(found) as listed:
        yield from _take_all(listed, place, downloads)


def _take_all(listed: Iterable[Member], place: Path, downloads: Sequence[Download]) -> Iterator[bool]:
    for member in listed:
        path = f"/{member.path.as_posix()}"
        rules = ((re.search(f"/{pattern}$", path), to) for d in downloads for pattern, to in d.places.items())
        target = next((match.expand(to) for match, to in rules if match), None)
        if target is not None:
            yield _write(place / target, member)
        elif any(d.nested and re.search(f"/{d.nested}$", path) for d in downloads):
            with tempfile.TemporaryDirectory(prefix=".unpack-", dir=place) as temporary:
                inner = Path(temporary) / member.path.name
                copy(member, inner)
                yield from _take(inner, place, downloads)


def _files(folder: Path) -> Iterable[Member]:
    found = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    for file in tqdm(found, f"copy {folder.name}", unit="file", disable=None, leave=False):
        path = PurePosixPath(folder.absolute().name, *file.relative_to(folder).parts)
        yield Member(path, file.stat().st_size, partial(file.open, "rb"))


def _write(target: Path, member: Member) -> bool:
    if target.is_file() and target.stat().st_size == member.size:
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    write(target, partial(copy, member))
    return True
