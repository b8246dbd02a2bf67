"""Installing: the wheel, the command line before anything heavy is imported, detectron2's installer, the Makefile."""

import ast
import hashlib
import importlib
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from base64 import urlsafe_b64encode
from importlib.metadata import Distribution, PathDistribution
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement

import seg_ext
from seg_ext import _compat
from seg_ext.cli import install_detectron2
from seg_ext.cli.main import main

ROOT = Path(__file__).parents[1]
DISTRIBUTION = {"PIL": "pillow", "cv2": "opencv-python-headless", "yaml": "pyyaml"}  # where names differ
MODULES = [file.relative_to(ROOT).as_posix() for file in sorted((ROOT / "seg_ext").rglob("*.py"))]
CONFIGS = [file.relative_to(ROOT).as_posix() for file in sorted((ROOT / "configs").rglob("*.yaml"))]


def python(*args: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *args], cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


# --- the wheel ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the sources without pip and network."""
    source, dist = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in ("seg_ext", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    done = python("-c", f"from setuptools.build_meta import build_wheel; build_wheel({str(dist)!r})", cwd=source)
    assert done.returncode == 0, done.stderr
    return next(dist.glob("*.whl"))


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Distribution:
    info = next(name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".dist-info/METADATA"))
    return PathDistribution(zipfile.Path(wheel, info.removesuffix("METADATA")))


def test_the_wheel_holds_every_module_and_config_and_nothing_else_at_the_top(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert MODULES and CONFIGS
    assert {*MODULES, *(f"seg_ext/{name}" for name in CONFIGS), "seg_ext/py.typed"} <= set(names)
    assert {name.split("/")[0] for name in names} == {"seg_ext", f"seg_ext-{seg_ext.__version__}.dist-info"}


def test_a_config_is_found_without_the_checkout(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    name = CONFIGS[-1].removeprefix("configs/")
    code = f"from seg_ext.config import find_config; print(find_config({name!r}))"
    found = python("-c", code, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert found.stdout.strip() == str(tmp_path / "seg_ext" / CONFIGS[-1]), found.stderr


def test_the_version_stands_in_one_place(metadata: Distribution) -> None:
    assert metadata.version == seg_ext.__version__


def test_every_import_is_a_requirement_and_detectron2_is_none(metadata: Distribution) -> None:
    required = {Requirement(line).name.lower() for line in metadata.requires or ()}
    imported = {name for path in MODULES for name in _top_level_imports(ast.parse((ROOT / path).read_text()))}
    outside = imported - sys.stdlib_module_names - {"seg_ext", "detectron2"}
    assert {"torch", "PIL", "cv2"} <= outside
    assert {DISTRIBUTION.get(name, name.replace("_", "-")).lower() for name in outside} - required == set()
    assert "detectron2" not in required


def _top_level_imports(tree: ast.AST) -> set[str]:
    nodes = list(ast.walk(tree))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    froms = {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    return {name.split(".")[0] for name in plain | froms}


def test_what_make_installs_are_extras(metadata: Distribution) -> None:
    extras = re.search(r"^EXTRAS := (.+)$", (ROOT / "Makefile").read_text(), re.M)[1].split(",")
    assert set(extras) <= set(metadata.metadata.get_all("Provides-Extra"))


def test_every_pin_is_exact_and_every_requirement_of_make_is_pinned(metadata: Distribution) -> None:
    pins = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line[0] != "#"]
    assert all(re.fullmatch(r"==[\w.]+", str(pin.specifier)) for pin in pins)
    here = {pin.name for pin in pins if pin.marker is None or pin.marker.evaluate()}
    required = [Requirement(line) for line in metadata.requires or ()]
    made = [
        item for item in required if not item.marker or any(item.marker.evaluate({"extra": e}) for e in ("dev", "timm"))
    ]
    assert {item.name.lower() for item in made} - here == set()


# --- the command line, before anything heavy is there ---------------------------------------------------------------


def test_help_needs_no_installed_package_and_is_fast() -> None:
    start = time.perf_counter()
    done = python("-S", "-m", "seg_ext", "--help")
    assert done.returncode == 0, done.stderr
    assert time.perf_counter() - start < 2
    assert "install-detectron2" in done.stdout


def test_help_is_the_same_as_a_module_and_as_a_script(metadata: Distribution) -> None:
    script = next(entry for entry in metadata.entry_points if entry.group == "console_scripts")
    assert script.name == "seg-ext"
    code = f"import sys, {script.module} as m; sys.argv = ['seg-ext', '--help']; sys.exit(m.{script.attr}())"
    as_script, as_module = python("-c", code), python("-m", "seg_ext", "--help")
    assert as_script.returncode == as_module.returncode == 0
    assert as_script.stdout == as_module.stdout != ""


# --- seg-ext install-detectron2 -------------------------------------------------------------------------------------

WHEEL_FILES = {
    "detectron2/__init__.py": '__version__ = "0.7.2"\n',
    "detectron2/_C.cpython-310-x86_64-linux-gnu.so": "compiled",
    "detectron2/model_zoo/configs/Base.yaml": "MODEL: {}\n",
    "tools/__init__.py": "",
    f"{install_detectron2.INFO}/METADATA": "Name: sal-detectron2\nVersion: 0.7.2\nRequires-Dist: numpy<2\n",
    f"{install_detectron2.INFO}/WHEEL": "Wheel-Version: 1.0\nTag: cp310-cp310-linux_x86_64\n",
    f"{install_detectron2.INFO}/top_level.txt": "detectron2\ntools\n",
    f"{install_detectron2.INFO}/RECORD": "tools/__init__.py,,\n",
}


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place where pip looks: a folder with a wheel of the right name."""
    folder = tmp_path / "index"
    folder.mkdir()
    with zipfile.ZipFile(folder / "sal_detectron2-0.7.2-cp310-none-any.whl", "w") as archive:
        for name, text in WHEEL_FILES.items():
            archive.writestr(name, text)
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(folder), "CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    return folder


@pytest.fixture
def right_hash(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = next(index.glob("*.whl")).read_bytes()
    monkeypatch.setattr(install_detectron2, "SHA256", hashlib.sha256(content).hexdigest())


@pytest.fixture
def site_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the command would install, in a Python that has no detectron2."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    monkeypatch.setattr(install_detectron2, "find_detectron2", lambda: None)
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(folder))
    return folder


@pytest.mark.usefixtures("right_hash")
def test_only_the_python_part_of_detectron2_is_installed_with_a_true_record(site_packages: Path, capsys) -> None:
    assert main(["install-detectron2"]) == 0
    assert capsys.readouterr().out == f"detectron2 0.7.2 installed: {site_packages / 'detectron2'}\n"
    assert {entry.name for entry in site_packages.iterdir()} == {"detectron2", install_detectron2.INFO}
    there = {file.relative_to(site_packages).as_posix() for file in site_packages.rglob("*") if file.is_file()}
    assert {name for name in there if name.startswith("detectron2/")} == {
        "detectron2/__init__.py",
        "detectron2/model_zoo/configs/Base.yaml",
    }
    installed = Distribution.at(site_packages / install_detectron2.INFO)
    assert installed.requires is None and installed.read_text("top_level.txt") == "detectron2\n"
    assert {str(file) for file in installed.files or ()} == there
    for file in installed.files or ():
        if file.hash:
            digest = hashlib.sha256(file.read_binary()).digest()
            assert file.hash.value == urlsafe_b64encode(digest).rstrip(b"=").decode()
            assert file.size == len(file.read_binary())


@pytest.mark.usefixtures("index")
def test_another_wheel_of_that_name_is_refused(site_packages: Path, capsys) -> None:
    assert main(["install-detectron2"]) == 2
    assert_one_line(capsys, "is not the one that was checked")
    assert list(site_packages.iterdir()) == []


def test_an_index_without_it_is_one_line(index: Path, site_packages: Path, capsys) -> None:
    next(index.glob("*.whl")).unlink()
    assert main(["install-detectron2"]) == 2
    assert_one_line(capsys, "No matching distribution found for sal-detectron2==0.7.2")
    assert list(site_packages.iterdir()) == []


@pytest.mark.usefixtures("right_hash")
def test_a_move_that_fails_halfway_leaves_nothing(site_packages: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    rename = Path.rename

    def fail_on_the_package(path: Path, target: Path) -> Path:
        if path.name == "detectron2":
            raise OSError("disk full")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail_on_the_package)
    assert main(["install-detectron2"]) == 2
    assert_one_line(capsys, "disk full")
    assert list(site_packages.iterdir()) == []


def test_a_folder_in_the_way_is_named_and_kept(site_packages: Path, capsys) -> None:
    mine = site_packages / "detectron2" / "model_final.pth"
    mine.parent.mkdir()
    mine.write_text("weights")
    assert main(["install-detectron2"]) == 2
    assert_one_line(capsys, f"{mine.parent} holds no package")
    assert mine.read_text() == "weights"


def test_a_detectron2_that_is_there_is_left_alone(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(install_detectron2, "install", lambda _: pytest.fail("installed over it"))
    assert main(["install-detectron2"]) == 0
    there = Path(importlib.import_module("detectron2").__file__).parent
    assert re.fullmatch(r"detectron2 \d[\w.+]* is there already: (.+)\n", capsys.readouterr().out)[1] == str(there)


def test_a_bare_folder_is_no_detectron2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "detectron2").mkdir()
    monkeypatch.delitem(sys.modules, "detectron2", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert install_detectron2.find_detectron2() is None


def assert_one_line(capsys, text: str) -> None:
    error = capsys.readouterr().err
    assert re.fullmatch(r"seg-ext: error: .+\n", error), error
    assert text in error


# --- detectron2 under today's packages ------------------------------------------------------------------------------


@pytest.mark.parametrize("there", [None, ModuleType("pkg_resources")], ids=["absent", "present"])
def test_the_model_zoo_is_imported_without_pkg_resources(there: ModuleType | None, monkeypatch) -> None:
    for name in ("detectron2.model_zoo", "detectron2.model_zoo.model_zoo", "pkg_resources"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    if there:
        monkeypatch.setitem(sys.modules, "pkg_resources", there)
    zoo = _compat.import_model_zoo()
    assert sys.modules.get("pkg_resources") is there
    assert Path(zoo.get_config_file("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml")).is_file()


def test_a_failed_import_of_the_model_zoo_leaves_no_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "pkg_resources", raising=False)
    monkeypatch.setitem(sys.modules, "detectron2.model_zoo", None)
    with pytest.raises(ImportError):
        _compat.import_model_zoo()
    assert "pkg_resources" not in sys.modules


def test_importing_detectron2_warns_of_nothing() -> None:
    code = "from seg_ext import _compat; _compat.quiet_upstream_warnings(); _compat.import_model_zoo()"
    packages = "engine modeling data evaluation checkpoint projects.deeplab projects.point_rend".split()
    done = python("-W", "error", "-c", "; ".join([code, *(f"import detectron2.{name}" for name in packages)]))
    assert (done.returncode, done.stderr) == (0, "")


def test_pytest_ignores_the_same_upstream_warnings() -> None:
    rows = [
        f"'''ignore:{text}:{kind.__name__}:{module}''',".strip() for text, kind, module in _compat.UPSTREAM_WARNINGS
    ]
    listed = [line.strip() for line in (ROOT / "pyproject.toml").read_text().splitlines() if "ignore:" in line]
    assert listed == rows


# --- make -----------------------------------------------------------------------------------------------------------


def make(*args: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(["make", *args], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """What `make` takes for an environment with everything installed, made by someone else."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    (tmp_path / ".seg_ext-installed").touch()
    return tmp_path


def test_a_second_make_installs_nothing(environment: Path) -> None:
    assert make("--question", "install", f"VENV={environment}").returncode == 0


@pytest.mark.parametrize("file", ["setup.py", "pyproject.toml", "constraints.txt"])
def test_a_changed_requirement_installs_again(file: str, environment: Path) -> None:
    assert make("--question", "install", f"VENV={environment}", f"--what-if={file}").returncode == 1


def test_the_pins_hold_only_in_an_environment_that_make_made(environment: Path) -> None:
    command = ("--dry-run", "--what-if=setup.py", "install", f"VENV={environment}")
    assert "--constraint" not in make(*command).stdout
    (environment / ".seg_ext-made").touch()
    assert "--constraint constraints.txt --no-build-isolation --editable" in make(*command).stdout


def test_another_index_serves_torch_alone(environment: Path) -> None:
    command = ("--dry-run", "--what-if=setup.py", "install", f"VENV={environment}", "TORCH_INDEX=https://cpu.example")
    named = [line for line in make(*command).stdout.splitlines() if "cpu.example" in line]
    assert len(named) == 1 and named[0].endswith("--no-deps --index-url https://cpu.example torch torchvision")


def test_an_old_python_is_refused_in_one_line(tmp_path: Path) -> None:
    old = tmp_path / "python3.8"
    old.write_text(
        f'#!/bin/sh\nexec "{sys.executable}" -c "import sys; sys.version_info = (3, 8, 1); exec(sys.argv[1])" "$2"\n'
    )
    old.chmod(0o755)
    done = make("install", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}")
    assert done.returncode == 2
    assert done.stderr.splitlines()[0].startswith(f"seg_ext needs Python 3.10 or newer, {old} is 3.8")
    assert not (tmp_path / "venv").exists()


def test_a_missing_python_is_refused_in_one_line(tmp_path: Path) -> None:
    done = make("install", "PYTHON=/no/python", f"VENV={tmp_path / 'venv'}")
    assert done.returncode == 2
    assert done.stderr.splitlines()[0].startswith("/no/python not found")
