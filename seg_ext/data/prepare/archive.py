"""Sources as folders: zip and tar archives are unpacked aside, and nothing of them lands anywhere else."""

from __future__ import annotations

import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

from tqdm import tqdm

from seg_ext.errors import UserError

Members = Generator[tuple[str, IO[bytes]], None, None]

_BROKEN = (zipfile.BadZipFile, tarfile.TarError, EOFError)


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
        UserError: no such file, no archive, a damaged one, or a member that is a link, a device, absolute, or climbs
            out with "..". Members before that one have been written.
    """
    if not archive.is_file():
        raise UserError(f"{archive}: no such file or folder")
    members = _zip if zipfile.is_zipfile(archive) else _tar
    try:
        with closing(members(archive)) as found:
            for name, content in found:
                with content:
                    target = folder / _checked(archive, name)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with target.open("wb") as file:
                        shutil.copyfileobj(content, file)
    except _BROKEN as error:
        raise UserError(f"{archive}: no zip or tar archive, or damaged ({error})") from error


def _zip(archive: Path) -> Members:
    with zipfile.ZipFile(archive) as opened_archive:
        for member in _bar(archive, opened_archive.infolist()):
            if stat.S_ISLNK(member.external_attr >> 16):
                raise _refused(archive, member.filename, "is a link")
            if not member.is_dir():
                yield member.filename, opened_archive.open(member)


def _tar(archive: Path) -> Members:
    with tarfile.open(archive) as opened_archive:
        for member in _bar(archive, opened_archive):
            content = opened_archive.extractfile(member) if member.isfile() else None
            if content is not None:
                yield member.name, content
            elif not member.isdir():
                raise _refused(archive, member.name, "is a link or a device")


def _checked(archive: Path, name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in path.parts[0]:
        raise _refused(archive, name, "leads out of the folder")
    return path


def _refused(archive: Path, member: str, reason: str) -> UserError:
    return UserError(f"{archive}: its member {member!r} {reason}; only plain files are unpacked")


def _bar(archive: Path, members: Iterable[Any]) -> Iterable[Any]:
    return tqdm(members, desc=f"unpack {archive.name}", unit="file", disable=None, leave=False)
