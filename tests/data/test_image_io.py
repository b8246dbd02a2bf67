"""Images of every depth and number of bands: the model's values, and pictures of them."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from detectron2.data import detection_utils
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from seg_ext.data.image_io import as_picture, image_size, read_image, read_picture
from seg_ext.errors import UserError

RNG = np.random.default_rng(1)
SHAPES = st.tuples(st.integers(1, 6), st.integers(8, 12), st.integers(1, 7))
TYPES = st.sampled_from([np.uint8, np.uint16, np.int16, np.uint32, np.int32, np.float32, np.float64])


def deep_png(path: Path, pixels: np.ndarray) -> None:
    """A PNG of 16 bits a channel, (H, W, 1 to 4), by the format's definition."""
    kind = (0, 4, 2, 6)[pixels.shape[2] - 1]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, kind, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    packed = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))


def chunky(path: Path, pixels: np.ndarray, **options: Any) -> None:
    if pixels.shape[2] == 1:
        tifffile.imwrite(path.with_suffix(".tif"), pixels[..., 0], photometric="minisblack", **options)
    else:
        options["planarconfig"] = "contig"
        tifffile.imwrite(path.with_suffix(".tif"), pixels, photometric="minisblack", **options)


def planar(path: Path, pixels: np.ndarray) -> None:
    bands = pixels.transpose(2, 0, 1)
    if len(bands) > 1:
        tifffile.imwrite(path.with_suffix(".tif"), bands, photometric="minisblack", planarconfig="separate")
    else:
        chunky(path, pixels)


def pages(path: Path, pixels: np.ndarray) -> None:
    tifffile.imwrite(path.with_suffix(".tif"), pixels.transpose(2, 0, 1), photometric="minisblack")


def tiled(path: Path, pixels: np.ndarray) -> None:
    chunky(path, pixels, tile=(16, 16), compression="deflate")


def numpy_last(path: Path, pixels: np.ndarray) -> None:
    np.save(path.with_suffix(".npy"), pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def numpy_first(path: Path, pixels: np.ndarray) -> None:
    np.save(path.with_suffix(".npy"), pixels.transpose(2, 0, 1))


@pytest.mark.parametrize("write", [chunky, planar, pages, tiled, numpy_first, numpy_last])
@given(shape=SHAPES, dtype=TYPES, data=st.data())
@settings(max_examples=15, deadline=None)
def test_bands_come_as_stored_whatever_the_layout(
    tmp_path_factory: pytest.TempPathFactory,
    write: Callable[[Path, np.ndarray], None],
    shape: tuple[int, int, int],
    dtype: type,
    data: st.DataObject,
) -> None:
    height, width, bands = shape
    if write is numpy_last:
        height = max(height, width)  # bands last: no fewer rows than bands
    if np.dtype(dtype).kind == "f":
        numbers: st.SearchStrategy[Any] = st.floats(-(2.0**99), 2.0**99, width=32)
    else:
        numbers = st.integers(max(np.iinfo(dtype).min, -(2**24)), min(np.iinfo(dtype).max, 2**24))
    pixels = data.draw(hnp.arrays(dtype, (height, width, bands), elements=numbers))
    folder = tmp_path_factory.mktemp("io")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # tifffile's, of arrays that could be meant otherwise
        write(folder / "a", pixels)
    (path,) = folder.iterdir()
    image = read_image(path, "BANDS", bands=bands)
    assert image.dtype == (np.uint8 if dtype == np.uint8 else np.float32) and image.flags.c_contiguous
    np.testing.assert_array_equal(image, pixels.astype(image.dtype))
    assert image_size(path) == (height, width)
    assert read_picture(path).shape == (height, width, 3)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA"])
def test_bands_of_eight_bit_pictures_are_their_channels(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(RNG.integers(0, 255, (5, 7, 4), np.uint8)).convert(mode)
    image.save(tmp_path / "a.png")
    stored = np.asarray(image.convert("L") if mode == "1" else image).reshape(5, 7, -1)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", "BANDS"), stored)


def test_palettes_become_their_colours_and_cmyk_becomes_rgb(tmp_path: Path) -> None:
    palette = Image.fromarray(RNG.integers(0, 255, (5, 7, 3), np.uint8)).quantize(16)
    palette.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", "BANDS"), np.asarray(palette.convert("RGB")))
    palette.save(tmp_path / "b.png", transparency=3)
    assert read_image(tmp_path / "b.png", "BANDS").shape == (5, 7, 4)
    Image.new("CMYK", (7, 5), (0, 255, 255, 0)).save(tmp_path / "a.tif")
    assert read_image(tmp_path / "a.tif", "RGB")[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["BGR", "RGB", "L"])
def test_pictures_equal_detectron2s(tmp_path: Path, orientation: int, format: str) -> None:
    image = Image.fromarray(RNG.integers(0, 255, (5, 7, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.png"
    image.save(path, exif=exif)
    expected = detection_utils.read_image(str(path), format)
    np.testing.assert_array_equal(read_image(path, format), expected)
    assert image_size(path) == expected.shape[:2]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiffs_are_turned_as_pngs_are(tmp_path: Path, orientation: int, dtype: type) -> None:
    pixels = RNG.integers(0, 255, (5, 7, 5)).astype(dtype)
    tags = [(274, "H", 1, orientation, True)]
    for name, bands in (("a.tif", 5), ("b.tif", 3)):
        kind = "rgb" if bands == 3 else "minisblack"
        tifffile.imwrite(tmp_path / name, pixels[..., :bands], photometric=kind, planarconfig="contig", extratags=tags)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels[..., :3].astype(np.uint8)).save(tmp_path / "c.png", exif=exif)
    upright = read_image(tmp_path / "c.png", "RGB")
    for name in ("a.tif", "b.tif"):
        np.testing.assert_array_equal(read_image(tmp_path / name, "BANDS")[..., :3], upright)
        assert image_size(tmp_path / name) == upright.shape[:2]


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "packbits", "tiff_adobe_deflate", "jpeg"])
def test_compressed_and_palette_tiffs_are_read(tmp_path: Path, compression: str) -> None:
    image = Image.fromarray(np.full((16, 16, 3), (200, 100, 50), np.uint8))
    image.save(tmp_path / "a.tif", compression=compression)
    assert np.abs(read_image(tmp_path / "a.tif", "RGB").astype(int) - (200, 100, 50)).max() <= 2
    if compression != "jpeg":
        image.quantize(4).save(tmp_path / "p.tif", compression=compression)
        np.testing.assert_array_equal(read_image(tmp_path / "p.tif", "RGB"), np.asarray(image))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
@pytest.mark.parametrize("format", ["BGR", "L"])
def test_other_eight_bit_pictures_equal_detectron2s(tmp_path: Path, mode: str, format: str) -> None:
    image = Image.fromarray(RNG.integers(0, 255, (5, 7, 4), np.uint8)).convert(mode)
    image.save(tmp_path / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Pillow's, of a palette with transparency
        expected = detection_utils.read_image(str(tmp_path / "a.png"), format)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", format), expected)


@given(pixels=hnp.arrays(np.uint16, st.tuples(st.integers(1, 4), st.integers(5, 9), st.integers(1, 4))))
@settings(max_examples=40, deadline=None)
def test_sixteen_bits_span_the_range_of_eight_in_png_and_tiff(
    tmp_path_factory: pytest.TempPathFactory, pixels: np.ndarray
) -> None:
    folder = tmp_path_factory.mktemp("io")
    chunky(folder / "a.tif", pixels)
    deep_png(folder / "a.png", pixels)
    values = pixels / 257.0
    rgb = values[..., :3] if pixels.shape[2] > 2 else np.repeat(values[..., :1], 3, axis=2)
    luma = rgb @ [0.299, 0.587, 0.114]
    for path in (folder / "a.png", folder / "a.tif"):
        image = read_image(path, "RGB", bands=3)
        assert image.dtype == np.float32
        np.testing.assert_allclose(image, rgb, rtol=1e-6)
        np.testing.assert_array_equal(read_image(path, "BGR"), image[..., ::-1])
        np.testing.assert_allclose(read_image(path, "L")[..., 0], luma, rtol=1e-4)
        np.testing.assert_array_equal(read_image(path, "BANDS"), pixels)


def test_sixteen_bit_colour_is_turned_and_lzw_is_read(tmp_path: Path) -> None:
    pixels = RNG.integers(0, 65536, (5, 7, 3)).astype(np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6
    deep_png(tmp_path / "a.png", pixels)
    content, data = (tmp_path / "a.png").read_bytes(), exif.tobytes()[6:]
    chunk = struct.pack(">I", len(data)) + b"eXIf" + data + struct.pack(">I", zlib.crc32(b"eXIf" + data))
    (tmp_path / "a.png").write_bytes(content[:33] + chunk + content[33:])
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", "BANDS"), np.rot90(pixels, -1))
    assert image_size(tmp_path / "a.png") == (7, 5)
    cv2.imwrite(str(tmp_path / "a.tif"), pixels[..., ::-1], [cv2.IMWRITE_TIFF_COMPRESSION, 5])
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif", "BANDS"), pixels)


@pytest.mark.parametrize("format", ["BGR", "RGB", "L"])
@pytest.mark.parametrize("dtype", [np.float32, np.int16, np.int32, np.uint32])
def test_types_without_a_range_of_their_own_need_bands(tmp_path: Path, format: str, dtype: type) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.ones((2, 3), dtype))
    with pytest.raises(UserError, match=rf"a\.tif: {np.dtype(dtype)} pixels; INPUT\.FORMAT {format} takes .*BANDS any"):
        read_image(tmp_path / "a.tif", format)


def test_another_number_of_bands_is_refused_by_name(tmp_path: Path) -> None:
    chunky(tmp_path / "a.tif", np.zeros((4, 5, 6), np.uint8))
    with pytest.raises(UserError, match=r"a\.tif: 6 bands, but MODEL\.PIXEL_MEAN has 5 values"):
        read_image(tmp_path / "a.tif", "BANDS", bands=5)
    with pytest.raises(UserError, match=r"a\.tif: 6 bands; INPUT\.FORMAT RGB takes 1 to 4"):
        read_image(tmp_path / "a.tif", "RGB")
    tifffile.imwrite(tmp_path / "b.tif", np.zeros((2, 3, 4, 5), np.uint8), photometric="minisblack")
    with pytest.raises(UserError, match=r"b\.tif: a stack of shape \(2, 3, 4, 5\)"):
        read_image(tmp_path / "b.tif", "BANDS")
    np.save(tmp_path / "c.npy", np.zeros(4))
    with pytest.raises(UserError, match=r"c\.npy: an array of shape \(4,\)"):
        read_image(tmp_path / "c.npy", "BANDS")


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
@pytest.mark.parametrize("suffix", ["tif", "npy"])
def test_pixels_that_are_no_numbers_are_refused(tmp_path: Path, value: float, suffix: str) -> None:
    path, pixels = tmp_path / f"a.{suffix}", np.array([[0, value]])
    np.save(path, pixels) if suffix == "npy" else tifffile.imwrite(path, pixels)
    with pytest.raises(UserError, match=rf"a\.{suffix}: holds NaN"):
        read_image(path, "BANDS")


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"INPUT\.FORMAT is 'HSV'; it must be one of BGR, RGB, L, BANDS"):
        read_image(tmp_path / "a.png", "HSV")


@pytest.mark.parametrize("suffix", ["png", "tif", "npy"])
@pytest.mark.parametrize("read", [read_image, image_size])
def test_images_above_the_limit_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, read: Callable[[Path], object]
) -> None:
    path, pixels = tmp_path / f"a.{suffix}", np.zeros((20, 30), np.uint8)
    np.save(path, pixels) if suffix == "npy" else Image.fromarray(pixels).save(path)
    monkeypatch.setenv("SEG_EXT_MAX_PIXELS", "599")
    with pytest.raises(UserError, match=rf"a\.{suffix}: 30x20 pixels, more than 599; .*raise SEG_EXT_MAX_PIXELS"):
        read(path)
    monkeypatch.setenv("SEG_EXT_MAX_PIXELS", "600")
    read(path)
    monkeypatch.setenv("SEG_EXT_MAX_PIXELS", "many")
    with pytest.raises(UserError, match="SEG_EXT_MAX_PIXELS is 'many'"):
        read(path)


def test_pillows_warning_is_silent_and_its_error_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (40, 30)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1199)
    monkeypatch.setenv("SEG_EXT_MAX_PIXELS", "2000")
    assert read_image(tmp_path / "a.png").shape == (30, 40, 3)  # Pillow warns, and warnings are errors here
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    monkeypatch.setenv("SEG_EXT_MAX_PIXELS", "1000")
    with pytest.raises(UserError, match=r"a\.png: more than 1000; cut the image into tiles") as error:
        read_image(tmp_path / "a.png")
    assert "\n" not in str(error.value)
    monkeypatch.setenv("SEG_EXT_MAX_PIXELS", "5000")
    assert read_image(tmp_path / "a.png").shape == (30, 40, 3)


def test_pictures_show_eight_bits_as_they_are_and_stretch_the_rest_by_band() -> None:
    image = RNG.integers(0, 256, (9, 8, 5), np.uint8)
    np.testing.assert_array_equal(as_picture(image), image[..., :3])
    np.testing.assert_array_equal(as_picture(image[..., :3], "BGR"), image[..., 2::-1])
    np.testing.assert_array_equal(as_picture(image[..., :2]), np.repeat(image[..., :1], 3, axis=2))
    ramp = np.linspace(0, 1, 1001, dtype=np.float32)[None, :, None] * np.array([1, 1000, 1e-3], np.float32) - 7
    ramp[0, 1000, 0] = 1e9  # one hot pixel leaves the others as they are
    shown = as_picture(ramp)
    assert shown.dtype == np.uint8 and shown.min() == 0 and shown.max() == 255
    np.testing.assert_allclose(shown[0, 500], 127.5, atol=2)
    assert not as_picture(np.full((3, 4, 1), 5, np.float32)).any()


@given(pixels=hnp.arrays(np.float32, (6, 5, 4), elements=st.floats(-1e6, 1e6, width=32)))
@settings(max_examples=30, deadline=None)
def test_any_finite_image_can_be_shown(pixels: np.ndarray) -> None:
    assert as_picture(pixels).shape == (6, 5, 3)
