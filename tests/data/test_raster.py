"""Windows of rasters against the whole, whatever the layout of the file, and rasters written in parts."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from seg_ext.data.raster import open_raster
from seg_ext.data.raster_writing import RasterWriter
from seg_ext.errors import UserError

RNG = np.random.default_rng(0)
GEO = [
    (33550, 12, 3, (0.5, 0.5, 0.0), True),
    (33922, 12, 6, (0.0, 0.0, 0.0, 4e5, 5e6, 0.0), True),
    (34735, 3, 8, (1, 1, 0, 1, 3072, 0, 1, 32633), True),
]
LAYOUTS: dict[str, dict[str, Any]] = {
    "one strip": {},
    "strips": {"rowsperstrip": 7},
    "deflated strips": {"rowsperstrip": 7, "compression": "zlib", "predictor": True},
    "tiles": {"tile": (16, 32)},
    "deflated tiles": {"tile": (16, 32), "compression": "zlib"},
    "big-endian": {"byteorder": ">"},
    "big-endian strips": {"byteorder": ">", "rowsperstrip": 5, "compression": "zlib"},
}


def check_windows(path: Path, pixels: np.ndarray) -> None:
    height, width = pixels.shape[:2]
    with open_raster(path) as raster:
        assert raster.shape == pixels.shape and raster.dtype == pixels.dtype
        for top, left, bottom, right in [(0, 0, height, width), (5, 9, 30, 41), (height - 1, width - 2, height, width)]:
            part = raster.read(top, left, bottom - top, right - left)
            assert np.array_equal(part, pixels[top:bottom, left:right]), (top, left)


@pytest.mark.parametrize("bands", [1, 3])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_window_of_a_tiff_is_that_part_of_it(tmp_path: Path, layout: dict[str, Any], bands: int) -> None:
    pixels = RNG.integers(0, 65535, (50, 70, bands)).astype(np.uint16)
    keys = {k: v for k, v in layout.items() if k != "byteorder"}
    photometric = "rgb" if bands == 3 else "minisblack"
    stored = pixels if bands == 3 else pixels[..., 0]
    file = tmp_path / "a.tif"
    tifffile.imwrite(file, stored, photometric=photometric, byteorder=layout.get("byteorder", "<"), **keys)
    check_windows(file, pixels)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_bands_may_be_planes_or_pages(tmp_path: Path, compression: str | None) -> None:
    pixels = RNG.normal(size=(50, 70, 5)).astype(np.float32)
    planes = np.moveaxis(pixels, 2, 0)
    keys = {"photometric": "minisblack", "compression": compression, "rowsperstrip": 8}
    tifffile.imwrite(tmp_path / "planes.tif", planes, planarconfig="separate", **keys)
    check_windows(tmp_path / "planes.tif", pixels)
    with tifffile.TiffWriter(tmp_path / "pages.tif") as tiff:
        for plane in planes:
            tiff.write(plane, **keys)
        tiff.write(planes[0, ::2, ::2], subfiletype=1, **keys)  # an overview
    check_windows(tmp_path / "pages.tif", pixels)
    with open_raster(tmp_path / "pages.tif", whole=False) as raster:
        assert np.array_equal(raster.read(0, 0, 50, 70), pixels[..., :1])


def test_arrays_have_their_bands_first_or_last(tmp_path: Path) -> None:
    pixels = RNG.integers(0, 255, (50, 70, 4)).astype(np.uint8)
    for name, stored in (("last", pixels), ("first", np.moveaxis(pixels, 2, 0)), ("none", pixels[..., 0])):
        np.save(tmp_path / f"{name}.npy", stored)
        check_windows(tmp_path / f"{name}.npy", pixels[..., :1] if name == "none" else pixels)


def test_decoded_strips_are_kept_within_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = RNG.integers(0, 255, (64, 70, 3)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", rowsperstrip=8, compression="zlib")
    monkeypatch.setattr("seg_ext.data.raster._CACHE", 3 * 8 * 70 * 3)
    with open_raster(tmp_path / "a.tif") as raster:
        assert np.array_equal(raster.read(0, 0, 64, 70), pixels)
        assert len(raster._kept) == 3 and raster._bytes == 3 * 8 * 70 * 3


def test_files_that_cannot_be_read_in_parts_say_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seg_ext.data.raster.importlib.util.find_spec", lambda name: None)
    pixels = np.zeros((40, 30), np.uint8)
    tifffile.imwrite(tmp_path / "turned.tif", pixels, extratags=[(274, 3, 1, 6, True)])
    for kind in ("miniswhite", "palette"):
        colors = {"colormap": np.zeros((3, 256), np.uint16)} if kind == "palette" else {}
        tifffile.imwrite(tmp_path / f"{kind}.tif", pixels, photometric=kind, **colors)
    tifffile.imwrite(tmp_path / "bits.tif", pixels.astype(bool), photometric="minisblack")
    tifffile.imwrite(tmp_path / "cut.tif", RNG.integers(0, 255, (40, 30)).astype(np.uint8), compression="zlib")
    os.truncate(tmp_path / "cut.tif", 600)
    (tmp_path / "empty.tif").touch()
    (tmp_path / "a.jp2").write_bytes(b"x")
    np.save(tmp_path / "names.npy", np.array(["a", "b"]))
    for name, line in {
        "turned.tif": r"stored turned \(orientation 6\)",
        "miniswhite.tif": "MINISWHITE pixels of 8 bits; parts are read of brightness or RGB, from 8 bits",
        "palette.tif": "PALETTE pixels of 8 bits",
        "bits.tif": "MINISBLACK pixels of 1 bits",
        "cut.tif": "damaged|cannot be read",
        "empty.tif": "the file is empty",
        "absent.tif": "no such file",
        "absent.vrt": "no such file",
        "a.jp2": r"pip install seg_ext\[geo\]",
        "names.npy": "an image is",
    }.items():
        with pytest.raises(UserError, match=rf"{name}: .*({line})") as caught:
            with open_raster(tmp_path / name) as raster:
                raster.read(0, 0, 1, 1)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["tif", "npy"])
@pytest.mark.parametrize("shape", [(50, 70), (3, 50, 70)])
def test_what_is_written_in_parts_is_read_whole(tmp_path: Path, shape: tuple[int, ...], suffix: str) -> None:
    pixels = RNG.normal(size=shape).astype(np.float32)
    writer = RasterWriter(tmp_path / f"a.{suffix}", shape, dtype=np.float32, geo=GEO)
    for top in range(0, 50, 20):
        for left in (0, 40):
            writer.write(top, left, pixels[..., top : top + 20, left : left + 40])
            writer.flush()
    assert not (tmp_path / f"a.{suffix}").exists()
    path = writer.finish()
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"a.{suffix}"]
    assert np.array_equal(np.load(path) if suffix == "npy" else tifffile.imread(path), pixels)


def test_georeference_goes_from_raster_to_raster(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((20, 30), np.uint8), extratags=GEO)
    with open_raster(tmp_path / "a.tif") as raster:
        writer = RasterWriter(tmp_path / "b.tif", (20, 30), dtype=np.uint8, geo=raster.geo)
    writer.write(0, 0, np.full((20, 30), 7))
    writer.finish()
    with tifffile.TiffFile(tmp_path / "b.tif") as tiff:
        tags = tiff.pages.first.tags
        assert [tuple(tags[code].value) for code, *_ in GEO] == [value for *_, value, _ in GEO]
        assert (tiff.pages.first.asarray() == 7).all()
    rasterio = pytest.importorskip("rasterio", reason="the extra geo is not installed")
    with rasterio.open(tmp_path / "b.tif") as source:
        assert source.crs.to_epsg() == 32633 and source.transform.a == 0.5


def test_what_tifffile_does_not_decode_is_read_by_rasterio(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio", reason="the extra geo is not installed")
    pixels = RNG.integers(0, 255, (2, 50, 70)).astype(np.uint8)
    profile = {"driver": "GTiff", "height": 50, "width": 70, "count": 2, "dtype": "uint8", "compress": "lzw"}
    transform = rasterio.Affine(0.5, 0, 4e5, 0, -0.5, 5e6)
    with rasterio.open(tmp_path / "a.tif", "w", **profile, crs="EPSG:32633", transform=transform) as file:
        file.write(pixels)
    check_windows(tmp_path / "a.tif", np.moveaxis(pixels, 0, 2))
    with open_raster(tmp_path / "a.tif") as raster:
        writer = RasterWriter(tmp_path / "b.tif", (50, 70), dtype=np.uint8, geo=raster.geo)
    writer.finish()
    with rasterio.open(tmp_path / "b.tif") as source:
        assert source.crs.to_epsg() == 32633 and source.transform == transform
    Image.fromarray(pixels[0]).convert("P").save(tmp_path / "palette.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels[0]).save(tmp_path / "turned.jpg", exif=exif)
    for name, line in {"palette.png": "palette pixels", "turned.jpg": r"stored turned \(orientation 6\)"}.items():
        with pytest.raises(UserError, match=f"{name}: {line}; parts are read of"), open_raster(tmp_path / name):
            pass
    os.truncate(tmp_path / "a.tif", 2000)
    with pytest.raises(UserError, match="a.tif: (cannot be read|damaged)"), open_raster(tmp_path / "a.tif") as raster:
        raster.read(0, 0, 50, 70)


def test_outputs_that_cannot_be_written_say_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusal(path: Path, **keys: Any) -> str:
        with pytest.raises(UserError) as caught:
            RasterWriter(path, (20, 30), dtype=np.uint8, **keys)
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)
        return str(caught.value)

    (tmp_path / "folder.tif").mkdir()
    (tmp_path / "file").touch()
    assert "a folder" in refusal(tmp_path / "folder.tif")
    assert "written as .tif or .npy" in refusal(tmp_path / "a.png")
    assert "cannot be written" in refusal(tmp_path / "file" / "a.tif")
    assert "no such file to go on with" in refusal(tmp_path / "a.tif", resume=True)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    RasterWriter(tmp_path / "begun.tif", (20, 30), dtype=np.uint8).close()
    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    assert "No space left on device" in refusal(tmp_path / "a.tif")
    assert not list(tmp_path.glob("a.tif*"))
    assert "No space left on device" in refusal(tmp_path / "begun.tif", resume=True)
    assert (tmp_path / "begun.tif.part").is_file()  # with what was written before
