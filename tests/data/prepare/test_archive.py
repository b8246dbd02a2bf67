"""Archives unpack into their folder and nowhere else."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from seg_ext.data.prepare.archive import opened, unpack
from seg_ext.errors import UserError


def make_zip(path: Path, names: list[str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, f"content of {name}")
    return path


def make_tar(path: Path, names: list[str]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name in names:
            content = f"content of {name}".encode()
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture(params=[("a.zip", make_zip), ("a.tgz", make_tar)], ids=["zip", "tar"])
def kind(request: pytest.FixtureRequest):
    return request.param


def test_members_land_in_the_folder_and_leave_with_it(tmp_path: Path, kind) -> None:
    name, make = kind
    archive = make(tmp_path / name, ["one.txt", "deep/er/two.txt", "./three.txt"])
    with opened(archive, tmp_path) as folder:
        assert (folder / "deep/er/two.txt").read_text() == "content of deep/er/two.txt"
        assert sorted(p.name for p in folder.rglob("*.txt")) == ["one.txt", "three.txt", "two.txt"]
        assert folder.parent == tmp_path
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("member", ["../out.txt", "in/../../out.txt", "/out.txt", "..\\out.txt", "C:/out.txt"])
def test_a_member_that_leads_out_is_refused_by_name(tmp_path: Path, kind, member: str) -> None:
    name, make = kind
    (tmp_path / "in").mkdir()
    archive = make(tmp_path / "in" / name, ["fine.txt", member])
    with pytest.raises(UserError) as error, opened(archive, tmp_path / "in"):
        pass
    assert f"its member {member!r} leads out of the folder" in str(error.value)
    assert [p.name for p in tmp_path.rglob("*.txt")] == [] and [p.name for p in (tmp_path / "in").iterdir()] == [name]


@pytest.mark.parametrize("type_", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar_are_refused(tmp_path: Path, type_: bytes) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        member = tarfile.TarInfo("link")
        member.type, member.linkname = type_, "/etc/passwd"
        archive.addfile(member)
    with pytest.raises(UserError, match="its member 'link' is a link or a device"):
        unpack(tmp_path / "a.tar", tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_links_in_a_zip_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        member = zipfile.ZipInfo("link")
        member.external_attr = 0o120777 << 16
        archive.writestr(member, "/etc/passwd")
    with pytest.raises(UserError, match="its member 'link' is a link"):
        unpack(tmp_path / "a.zip", tmp_path / "to")


def test_what_is_no_archive_is_named(tmp_path: Path, kind) -> None:
    name, make = kind
    (tmp_path / "text").write_text("no archive")
    whole = make(tmp_path / name, [f"{i}" * 50 for i in range(30)]).read_bytes()
    (tmp_path / "cut").write_bytes(whole[: len(whole) // 2])
    for file in ("text", "cut"):
        with pytest.raises(UserError, match=rf"{file}: no zip or tar archive, or damaged"):
            unpack(tmp_path / file, tmp_path / "to")
    with pytest.raises(UserError, match=r"none\.zip: no such file or folder"):
        unpack(tmp_path / "none.zip", tmp_path / "to")


def test_a_folder_is_taken_as_it_is_and_stays(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    with opened(tmp_path / "source", tmp_path) as folder:
        assert folder == tmp_path / "source"
    assert folder.is_dir()
