"""Sources as folders: zip and tar archives are unpacked aside, and nothing of them lands anywhere else."""

from __future__ import annotations

import gzip
import lzma
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from tqdm import tqdm

from seg_ext.errors import UserError

_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError)
_FOREIGN = (NotImplementedError, RuntimeError)  # a compression that Python does not know; a password


class Member(NamedTuple):
    """A plain file of an archive: its path, its size in bytes, and what opens it until the next one is asked for."""

    path: PurePosixPath
    size: int
    open: Callable[[], IO[bytes]]


@contextmanager
def opened(source: Path, beside: Path) -> Iterator[Path]:
    """``source`` where it is a folder; of an archive, its unpacked content, which is removed at the end.

    Args:
        source: folder, or zip or tar archive (also compressed).
        beside: existing folder whose disk takes the unpacked content.

    Raises:
        UserError: there is no such source, it is neither, it is damaged, or see :func:`unpack`.
    """
    if source.is_dir():
        yield source
        return
    with tempfile.TemporaryDirectory(prefix=".unpack-", dir=beside) as temporary:
        unpack(source, Path(temporary))
        yield Path(temporary)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip or tar archive into a folder.

    Raises:
        UserError: see :func:`members`. Members before the faulty one have been written.
    """
    with members(archive) as found:
        for member in found:
            target = folder / member.path
            target.parent.mkdir(parents=True, exist_ok=True)
            copy(member, target)


def copy(member: Member, target: Path) -> None:
    """Write a member's content; a zip's checksum is compared."""
    with member.open() as content, target.open("wb") as file:
        shutil.copyfileobj(content, file)


@contextmanager
def members(archive: Path) -> Iterator[Iterable[Member]]:
    """The plain files of a zip or tar archive, under a progress bar.

    Raises:
        UserError: no such file, no archive, a damaged one, one with a password, or a member that is a link, a device,
            absolute, or climbs out with "..".
    """
    if not archive.is_file():
        raise UserError(f"{archive}: no such file or folder")
    try:
        with closing(_zip(archive) if zipfile.is_zipfile(archive) else _tar(archive)) as found:
            yield found
    except _DAMAGED as error:
        raise UserError(f"{archive}: no zip or tar archive, or damaged ({error}); download it again") from error
    except _FOREIGN as error:
        raise UserError(f"{archive}: cannot be unpacked here ({error}); unpack it and name the folder") from error


def _zip(archive: Path) -> Generator[Member, None, None]:
    with zipfile.ZipFile(archive) as opened_archive:
        for info in _bar(archive, opened_archive.infolist()):
            if stat.S_ISLNK(info.external_attr >> 16):
                raise _refused(archive, info.filename, "is a link")
            if not info.is_dir():
                yield Member(_checked(archive, info.filename), info.file_size, partial(opened_archive.open, info))


def _tar(archive: Path) -> Generator[Member, None, None]:
    with tarfile.open(archive) as opened_archive:
        for info in _bar(archive, opened_archive):
            if info.isfile():
                content: Any = partial(opened_archive.extractfile, info)
                yield Member(_checked(archive, info.name), info.size, content)
            elif not info.isdir():
                raise _refused(archive, info.name, "is a link or a device")


def _checked(archive: Path, name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in path.parts[0]:
        raise _refused(archive, name, "leads out of the folder")
    return path


def _refused(archive: Path, member: str, reason: str) -> UserError:
    return UserError(f"{archive}: its member {member!r} {reason}; only plain files are unpacked")


def _bar(archive: Path, members: Iterable[Any]) -> Iterable[Any]:
    return tqdm(members, desc=f"unpack {archive.name}", unit="file", disable=None, leave=False)
