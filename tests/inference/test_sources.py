"""Sources: what arguments stand for, once each, under names of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from seg_ext.errors import UserError
from seg_ext.inference.sources import find_sources


def names(*inputs: object, **options: bool) -> list[tuple[str, str]]:
    return [(source.kind, source.name) for source in find_sources([str(x) for x in inputs], **options)]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for path in ("b.png", "a.JPG", "notes.txt", "ride.mp4", "deep/c.tif", "deep/er/d.npy"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    return tmp_path


def test_folders_give_what_lies_directly_in_them_and_patterns_go_deeper(tree: Path) -> None:
    assert names(tree) == [("image", "a"), ("image", "b"), ("video", "ride")]
    assert names(f"{tree}/**/*.*", tree / "b.png") == [
        ("image", "a"),
        ("image", "b"),
        ("image", "c"),
        ("image", "d"),
        ("video", "ride"),
    ]
    assert names(tree / "b.png", tree) == [("image", "b"), ("image", "a"), ("video", "ride")], "in the order given"
    assert names(tree / "notes.txt") == [("image", "notes")], "a file that is named is tried"


def test_cameras_and_urls(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert names("0") == [("camera", "camera0")]
    assert names("http://a.b/c/x%20y.png?size=3", allow_urls=True) == [("url", "x y")]
    assert names("https://a.b/..%2F..%2Fetc", allow_urls=True)[0][1].strip("._") == "etc", "never a path"
    monkeypatch.chdir(tree)
    (tree / "0").touch()
    assert names("0") == [("image", "0")], "a file of that name goes before the camera"


@pytest.mark.parametrize(
    "files",
    [("a/x.1.png", "b/x.1.png"), ("x.png", "x.tif"), ("v.mp4", "v_000001.png"), ("s.tif", "s_000000.png", "s.png")],
)
def test_no_two_inputs_write_the_same_file(tmp_path: Path, files: tuple[str, ...]) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    found = [name for _, name in names(*(tmp_path / file for file in files))]
    written = {name for name in found} | {f"{name}_{number:06d}" for name in found for number in range(3)}
    assert len(set(found)) == len(files) and len(written) == 4 * len(files)
    assert found == [name for _, name in names(*(tmp_path / file for file in files))], "the same in every run"


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    for given, text in (
        ("nowhere.png", "no such file or folder"),
        (str(tmp_path), "no image in this folder; takes .bmp"),
    ):
        with pytest.raises(UserError, match=f"{given}: {text}"):
            find_sources([given])
