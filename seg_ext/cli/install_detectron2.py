"""``seg-ext install-detectron2``: puts detectron2's Python part in place where ``import detectron2`` finds nothing.

detectron2 is not on the package index under its own name. The wheel named here is its official source (April 2024)
with one compiled module, for CPython 3.10 and a torch of its time: that one, and the wheel's top-level ``tools``, are
left out. RoIAlign and NMS come from torchvision; deformable convolution and rotated boxes need a detectron2 built
from source, which this command leaves untouched.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from base64 import urlsafe_b64encode
from importlib import invalidate_caches
from importlib.util import find_spec
from pathlib import Path

from seg_ext.errors import UserError

HELP = "install detectron2, unless it can be imported already"

REQUIREMENT = "sal-detectron2==0.7.2"
SHA256 = "491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561"
INFO = "sal_detectron2-0.7.2.dist-info"
# The wheel is tagged cp310; without its compiled module it runs on any Python and platform.
_PIP_DOWNLOAD = (
    *("-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes"),
    *("--only-binary=:all:", "--python-version=3.10", "--implementation=cp"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No arguments of its own."""


def run(args: argparse.Namespace) -> int:
    """Say which detectron2 is there, or install it into this Python's site-packages."""
    if found := find_detectron2():
        print(f"detectron2 {_version(found)} is there already: {found}")
        return 0
    package = install(Path(sysconfig.get_path("purelib")))
    invalidate_caches()
    print(f"detectron2 {_version(package)} installed: {package}")
    return 0


def find_detectron2() -> Path | None:
    """The folder that ``import detectron2`` would import; None where it would fail."""
    spec = find_spec("detectron2")
    return Path(spec.origin).parent if spec and spec.origin else None  # a bare folder of that name has no origin


def install(site_packages: Path) -> Path:
    """Download, check and unpack detectron2 into a site-packages folder, whole or not at all.

    Returns:
        The folder of the package.

    Raises:
        UserError: no network or index, a wheel with another hash, or a folder that cannot be written.
    """
    package = site_packages / "detectron2"
    if package.exists():
        raise UserError(f"{package} holds no package that can be imported: remove it, then run this again")
    try:
        with tempfile.TemporaryDirectory(prefix=".detectron2-", dir=site_packages) as staging:
            wheel = _download(Path(staging, "wheel"))
            _unpack(wheel, Path(staging, "unpacked"))
            _move(Path(staging, "unpacked"), site_packages)
    except OSError as error:
        raise UserError(f"detectron2 cannot be installed into {site_packages}: {error}") from error
    return package


def _download(folder: Path) -> Path:
    folder.mkdir()
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{REQUIREMENT} --hash=sha256:{SHA256}\n", encoding="utf-8")
    command = [sys.executable, *_PIP_DOWNLOAD, "--dest", str(folder), "--requirement", str(requirements)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        way_out = "check the network and pip's package index, or build detectron2 from its source"
        raise UserError(f"detectron2 cannot be downloaded: {_reason(done.stderr)}; {way_out}")
    return next(folder.glob("*.whl"))


def _reason(stderr: str) -> str:
    if "DO NOT MATCH THE HASHES" in stderr:
        return f"the {REQUIREMENT} on offer is not the one that was checked (sha256 {SHA256})"
    lines = [line.strip() for line in stderr.splitlines() if line.strip()] or ["pip failed without a word"]
    return next((line for line in reversed(lines) if line.startswith("ERROR:")), lines[-1]).removeprefix("ERROR: ")


def _unpack(wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        kept = [name for name in archive.namelist() if re.match(rf"detectron2/(?!_C\.)|{re.escape(INFO)}/", name)]
        archive.extractall(folder, kept)
    info = folder / INFO
    metadata = (info / "METADATA").read_text(encoding="utf-8")
    # What it requires of its time (numpy<2, black) is no longer so; seg-ext's own requirements stand in for it.
    _write(info / "METADATA", re.sub(r"^Requires-Dist: .*\n", "", metadata, flags=re.M))
    _write(info / "WHEEL", "Wheel-Version: 1.0\nGenerator: seg-ext\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    _write(info / "top_level.txt", "detectron2\n")
    _write(info / "INSTALLER", "seg-ext\n")
    (info / "RECORD").unlink()
    rows = [_record(file, folder) for file in sorted(folder.rglob("*")) if file.is_file()]
    _write(info / "RECORD", "\n".join([*rows, f"{INFO}/RECORD,,\n"]))


def _write(file: Path, text: str) -> None:
    file.write_bytes(text.encode())


def _record(file: Path, root: Path) -> str:
    content = file.read_bytes()
    digest = urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    return f"{file.relative_to(root).as_posix()},sha256={digest},{len(content)}"


def _move(unpacked: Path, site_packages: Path) -> None:
    info = site_packages / INFO
    shutil.rmtree(info, ignore_errors=True)  # of an installation whose package is gone
    (unpacked / INFO).rename(info)
    try:
        (unpacked / "detectron2").rename(site_packages / "detectron2")
    except BaseException:
        shutil.rmtree(info)
        raise


def _version(package: Path) -> str:
    found = re.search(r'^__version__ = "(.+)"', (package / "__init__.py").read_text(encoding="utf-8"), re.M)
    return found[1] if found else "of unknown version"
