"""Reading and writing pictures and label maps."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from detectron2.data import detection_utils
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from seg_ext.data.label_io import image_size, read_image, read_label, read_panoptic_ids, write_label
from seg_ext.data.palette import palette
from seg_ext.errors import UserError

SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, max_side=9)
VOC_IDS = np.array([[0, 1, 2], [15, 20, 255]], np.uint8)


def png(depth: int, rows: np.ndarray) -> bytes:
    """A greyscale PNG of 1, 2 or 4 bits a pixel."""
    bits = np.unpackbits(rows.astype(np.uint8)[..., None], axis=2)[..., 8 - depth :].reshape(len(rows), -1)
    lines = b"".join(b"\0" + line.tobytes() for line in np.packbits(bits, axis=1))
    header = struct.pack(">IIBBBBB", rows.shape[1], rows.shape[0], depth, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    packed = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@given(labels=hnp.arrays(np.uint8, SHAPES), colors=st.sampled_from([None, 0, 3, 256]))
@settings(max_examples=50, deadline=None)
def test_ids_up_to_255_survive_with_and_without_palette(
    tmp_path_factory: pytest.TempPathFactory, labels: np.ndarray, colors: int | None
) -> None:
    path = tmp_path_factory.mktemp("io") / "label.png"
    write_label(path, labels, None if colors is None else palette(colors))
    with Image.open(path) as image:
        assert image.mode == ("L" if colors is None else "P")
    np.testing.assert_array_equal(read_label(path), labels)


@given(labels=hnp.arrays(np.uint16, SHAPES))
@settings(max_examples=50, deadline=None)
def test_ids_up_to_65535_survive_as_png_and_tiff(tmp_path_factory: pytest.TempPathFactory, labels: np.ndarray) -> None:
    folder = tmp_path_factory.mktemp("io")
    write_label(folder / "label.png", labels)
    tifffile.imwrite(folder / "label.tif", labels)
    np.testing.assert_array_equal(read_label(folder / "label.png"), labels)
    np.testing.assert_array_equal(read_label(folder / "label.tif"), labels)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [(mode, suffix) for mode in ("L", "P", "I;16", "I;16B") for suffix in ("png", "tif")] + [("I", "tif")],
)
def test_voc_ids_come_back_raw_from_every_mode(tmp_path: Path, mode: str, suffix: str) -> None:
    image = Image.frombytes(mode, (3, 2), VOC_IDS.astype({"I": "<i4", "I;16": "<u2", "I;16B": ">u2"}.get(mode, "u1")))
    if mode == "P":
        image.putpalette([c for color in palette(256) for c in color])
    image.save(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(read_label(tmp_path / f"a.{suffix}"), VOC_IDS)


def test_uint16_300_is_not_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.full((2, 2), 300, np.uint16)).save(tmp_path / "a.png")
    assert (read_label(tmp_path / "a.png") == 300).all()


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_greyscale_of_few_bits_gives_ids_not_brightness(tmp_path: Path, depth: int) -> None:
    ids = np.arange(2**depth).repeat(3).reshape(2, -1)
    (tmp_path / "a.png").write_bytes(png(depth, ids))
    np.testing.assert_array_equal(read_label(tmp_path / "a.png"), ids)


def test_label_map_moves_named_ids_and_keeps_the_others(tmp_path: Path) -> None:
    write_label(tmp_path / "a.png", np.array([[0, 3, 11, 200]]))
    read = read_label(tmp_path / "a.png", label_map={11: 255, 3: 0}, num_classes=201)
    np.testing.assert_array_equal(read, [[0, 0, 255, 200]])


def test_ids_out_of_range_are_named_as_stored(tmp_path: Path) -> None:
    write_label(tmp_path / "a.png", np.array([[0, 1, 7, 9, 255]]))
    with pytest.raises(UserError, match=r"a\.png: label ids 7, 9 are neither in 0\.\.1 nor the ignored 255"):
        read_label(tmp_path / "a.png", num_classes=2)
    with pytest.raises(UserError, match=r"label ids 9, 255 are neither in 0\.\.1 nor the ignored 7"):
        read_label(tmp_path / "a.png", num_classes=2, ignore=7)
    with pytest.raises(UserError, match="label ids 9 are"):
        read_label(tmp_path / "a.png", num_classes=8, label_map={9: 100})


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "CMYK", "F"])
def test_labels_with_more_than_ids_are_refused(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (2, 2)).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match=r"a\.tif: .*label map is \(H, W\) integers"):
        read_label(tmp_path / "a.tif")
    if mode in ("RGB", "RGBA", "LA"):
        Image.new(mode, (2, 2)).save(tmp_path / "a.png")
        with pytest.raises(UserError, match=rf"a\.png: {mode} pixels; a label map has one channel"):
            read_label(tmp_path / "a.png")


def test_lossy_labels_are_refused(tmp_path: Path) -> None:
    Image.new("L", (2, 2)).save(tmp_path / "a.jpg")
    with pytest.raises(UserError, match="JPEG does not keep ids"):
        read_label(tmp_path / "a.jpg")


def test_negative_ids_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.array([[-1, 3]], np.int16))
    with pytest.raises(UserError, match=r"a\.tif: ids -1\.\.3"):
        read_label(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("labels", "colors", "name", "message"),
    [
        ([[256]], palette(2), "a.png", r"ids 256\.\.256 do not fit"),
        ([[65536]], None, "a.png", "do not fit"),
        ([[-1]], None, "a.png", "do not fit"),
        ([[1]], None, "a.jpg", r"end the name in \.png"),
    ],
)
def test_ids_that_a_file_cannot_hold_are_not_written(
    tmp_path: Path, labels: list[list[int]], colors: list[tuple[int, int, int]] | None, name: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        write_label(tmp_path / name, np.array(labels), colors)
    assert not list(tmp_path.iterdir())


@given(ids=hnp.arrays(np.int32, SHAPES, elements=st.integers(0, 2**24 - 1)))
@settings(max_examples=30, deadline=None)
def test_panoptic_ids_follow_cocos_rule(tmp_path_factory: pytest.TempPathFactory, ids: np.ndarray) -> None:
    path = tmp_path_factory.mktemp("io") / "a.png"
    Image.fromarray(np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=2).astype(np.uint8)).save(path)
    np.testing.assert_array_equal(read_panoptic_ids(path), ids)


def test_a_panoptic_file_must_be_rgb(tmp_path: Path) -> None:
    Image.new("L", (2, 2)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="L pixels; a panoptic PNG is RGB"):
        read_panoptic_ids(tmp_path / "a.png")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["BGR", "RGB"])
def test_pictures_equal_detectron2s(tmp_path: Path, orientation: int, format: str) -> None:
    image = Image.fromarray(np.random.default_rng(1).integers(0, 255, (5, 7, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.png"
    image.save(path, exif=exif)
    expected = detection_utils.read_image(str(path), format)
    np.testing.assert_array_equal(read_image(path, format), expected)
    assert image_size(path) == expected.shape[:2]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
def test_other_eight_bit_pictures_equal_detectron2s(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(np.random.default_rng(1).integers(0, 255, (5, 7, 4), np.uint8)).convert(mode)
    image.save(tmp_path / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Pillow's, of a palette with transparency
        expected = detection_utils.read_image(str(tmp_path / "a.png"), "BGR")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), expected)


DEEP = {
    "grey16.png": np.array([[100, 300], [400, 4195]], np.uint16),
    "grey16.tif": np.array([[100, 300], [400, 4195]], np.uint16),
    "grey32.tif": np.array([[100, 300], [400, 4195]], np.int32),
    "float.tif": np.array([[0.0, 0.2], [0.3, 4.095]], np.float32),
}


@pytest.mark.parametrize("name", DEEP)
def test_deep_grey_is_stretched_linearly_from_least_to_greatest(tmp_path: Path, name: str) -> None:
    if name.endswith("png"):
        Image.fromarray(DEEP[name]).save(tmp_path / name)
    else:
        tifffile.imwrite(tmp_path / name, DEEP[name])
    image = read_image(tmp_path / name)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, np.repeat([[[0], [12]], [[19], [255]]], 3, axis=2))
    assert image_size(tmp_path / name) == (2, 2)


def test_deep_colour_is_stretched_as_a_whole_from_tiff_and_refused_from_png(tmp_path: Path) -> None:
    pixels = np.array([[[0, 1000, 4000]]], np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif", "RGB"), [[[0, 64, 255]]])
    rows = b"\0" + pixels.astype(">u2").tobytes()
    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    packed = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))
    with pytest.raises(UserError, match=r"a\.png: 16 bit colour"):
        read_image(tmp_path / "a.png")


def test_a_constant_deep_image_is_black(tmp_path: Path) -> None:
    Image.fromarray(np.full((2, 2), 300, np.uint16)).save(tmp_path / "a.png")
    assert not read_image(tmp_path / "a.png").any()


def test_pixels_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.array([[0, np.nan]], np.float32))
    with pytest.raises(UserError, match=r"a\.tif: holds NaN"):
        read_image(tmp_path / "a.tif")


def test_a_stack_is_no_picture(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((4, 5, 6, 7), np.float64), photometric="minisblack")
    with pytest.raises(UserError, match=r"a\.tif"):
        read_label(tmp_path / "a.tif")


def test_only_bgr_and_rgb_are_channel_orders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"INPUT\.FORMAT is 'L'"):
        read_image(tmp_path / "a.png", "L")


def broken_files(folder: Path) -> dict[str, str]:
    """Unreadable files, and what the error says of them."""
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    for name in ("cut.png", "cut.bmp"):
        Image.fromarray(noise).save(folder / name)
        (folder / name).write_bytes((folder / name).read_bytes()[:1000])
    tifffile.imwrite(folder / "cut.tif", noise.astype(np.uint16))
    (folder / "cut.tif").write_bytes((folder / "cut.tif").read_bytes()[:3000])
    (folder / "empty.png").touch()
    (folder / "empty.tif").touch()
    (folder / "text.png").write_text("not a picture")
    (folder / "text.tif").write_text("not a picture")
    (folder / "folder.png").mkdir()
    return {
        **{f"cut.{s}": "cannot be read" for s in ("png", "bmp", "tif")},
        "empty.png": "the file is empty",
        "empty.tif": "cannot be read|the file is empty",
        "text.png": "not an image",
        "text.tif": "cannot be read|not an image",
        "folder.png": "a folder",
        "none.png": "no such file",
        "none.tif": "no such file",
    }


@pytest.mark.parametrize("read", [read_image, read_label, read_panoptic_ids])
def test_every_broken_file_is_one_line_that_names_it(tmp_path: Path, read: Callable[[Path], object]) -> None:
    for name, message in broken_files(tmp_path).items():
        wrong_mode = "|pixels; a panoptic" if read is read_panoptic_ids else ""
        with pytest.raises(UserError, match=message + wrong_mode) as error:
            read(tmp_path / name)
        assert str(error.value).startswith(str(tmp_path / name))
        assert "\n" not in str(error.value)


def test_the_size_of_a_broken_file_is_an_error_too(tmp_path: Path) -> None:
    broken_files(tmp_path)
    for name in ("empty.png", "text.tif", "folder.png", "none.png"):
        with pytest.raises(UserError, match=name):
            image_size(tmp_path / name)
