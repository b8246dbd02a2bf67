"""Reading and writing pictures and label maps."""

from __future__ import annotations

import ast
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from detectron2.data.catalog import Metadata
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

import seg_ext
from seg_ext.data.image_io import image_size, read_image
from seg_ext.data.label_colors import decode_colors
from seg_ext.data.label_io import read_label, read_panoptic_ids, read_record_label, write_label
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
        with pytest.raises(UserError, match=rf"a\.png: {mode[:3]} pixels; a label map is .*one channel of class"):
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
    cv2.imwrite(str(tmp_path / "deep.png"), np.full((2, 2, 3), 7, np.uint16))
    with pytest.raises(UserError, match="RGB pixels, 16 bit; a panoptic PNG is RGB of 8 bit"):
        read_panoptic_ids(tmp_path / "deep.png")


def test_a_stack_is_no_picture(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((4, 5, 6, 7), np.float64), photometric="minisblack")
    with pytest.raises(UserError, match=r"a\.tif"):
        read_label(tmp_path / "a.tif")


RANGED = {"1-65535": 1, 300: 255, "70000-80000": 2, 5: 0}


@given(ids=hnp.arrays(np.int64, SHAPES, elements=st.sampled_from([0, 1, 4, 5, 6, 299, 300, 65535, 65536, 75000])))
@settings(max_examples=50, deadline=None)
def test_ranges_map_every_id_in_them_and_single_ids_go_first(
    tmp_path_factory: pytest.TempPathFactory, ids: np.ndarray
) -> None:
    path = tmp_path_factory.mktemp("io") / "a.npy"
    np.save(path, ids)

    def expected(raw: int) -> int:
        return {300: 255, 5: 0}.get(raw, 1 if 1 <= raw <= 65535 else 2 if 70000 <= raw <= 80000 else raw)

    np.testing.assert_array_equal(read_label(path, label_map=RANGED), np.vectorize(expected, otypes=[int])(ids))


def test_a_range_of_two_billion_ids_takes_no_table(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[0, 2**31 - 1]]))
    assert read_label(tmp_path / "a.npy", label_map={f"1-{2**31 - 1}": 1}).tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("label_map", "message"),
    [
        ({"1": 1}, "label_map has '1'; its keys are ids, and ranges"),
        ({"9-1": 1}, "label_map has '9-1'"),
        ({1.5: 1}, "label_map has 1.5"),
        ({3: -1}, "label_map has 3: -1; a train id"),
        ({3: "1"}, "label_map has 3: '1'"),
        ({"1-9": 1, "9-20": 2}, "two ranges with 9"),
    ],
)
def test_a_label_map_that_says_nothing_is_refused(tmp_path: Path, label_map: dict[Any, Any], message: str) -> None:
    write_label(tmp_path / "a.png", np.zeros((1, 1), int))
    with pytest.raises(UserError, match=rf"a\.png: .*{message}"):
        read_label(tmp_path / "a.png", label_map=label_map)


def test_negative_ids_are_accepted_where_they_are_mapped(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.array([[-9999, 3, -1]], np.int16))
    assert read_label(tmp_path / "a.tif", label_map={-9999: 255, -1: 0}).tolist() == [[255, 3, 0]]
    with pytest.raises(UserError, match=r"ids -9999\.\.3"):
        read_label(tmp_path / "a.tif", label_map={-9999: 255})


TABLES = st.lists(st.tuples(*[st.integers(0, 255)] * 3), min_size=1, max_size=300, unique=True)


@given(colors=TABLES, seed=st.integers(0, 99), suffix=st.sampled_from(["png", "tif"]), alpha=st.booleans())
@settings(max_examples=50, deadline=None)
def test_colours_become_the_ids_of_the_table(
    tmp_path_factory: pytest.TempPathFactory, colors: list[tuple[int, int, int]], seed: int, suffix: str, alpha: bool
) -> None:
    path = tmp_path_factory.mktemp("io") / f"a.{suffix}"
    ids = np.random.default_rng(seed).integers(0, len(colors), (7, 9))
    pixels = np.array(colors, np.uint8)[ids]
    if alpha:
        pixels = np.dstack([pixels, np.arange(63, dtype=np.uint8).reshape(7, 9)])
    Image.fromarray(pixels).save(path)
    np.testing.assert_array_equal(read_label(path, label_colors=colors), ids)
    table = {color: 2 * i for i, color in enumerate(colors)}
    np.testing.assert_array_equal(read_label(path, label_colors=table), 2 * ids)


def test_a_colour_that_the_table_lacks_is_named_with_its_pixels_and_the_nearest(tmp_path: Path) -> None:
    pixels = np.zeros((10, 10, 3), np.uint8)
    pixels[:3, :4], pixels[9, 9] = (254, 1, 0), (0, 0, 99)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    message = (
        r"a\.png: colour \(254, 1, 0\) of 12 pixels is not in label_colors \(1 more such colours\);"
        r" the nearest is \(255, 0, 0\), id 1$"
    )
    with pytest.raises(UserError, match=message):
        read_label(tmp_path / "a.png", label_colors=[(0, 0, 0), (255, 0, 0)])
    table = {(0, 0, 0): 0, (254, 1, 0): 255, (0, 0, 99): 1}
    labels = read_label(tmp_path / "a.png", label_colors=table, num_classes=2)
    assert (labels == 255).sum() == 12 and labels[9, 9] == 1


@given(pixels=hnp.arrays(np.uint8, (4, 5, 3), elements=st.sampled_from([0, 127, 255])))
@settings(max_examples=50, deadline=None)
def test_values_that_the_table_has_in_other_colours_are_no_colour_of_it(
    tmp_path_factory: pytest.TempPathFactory, pixels: np.ndarray
) -> None:
    path = tmp_path_factory.mktemp("io") / "a.png"
    Image.fromarray(pixels).save(path)
    known = {(0, 127, 255): 0, (127, 255, 0): 1, (255, 0, 127): 2}
    found = [tuple(p) for p in pixels.reshape(-1, 3).tolist()]
    if all(color in known for color in found):
        assert read_label(path, label_colors=known).ravel().tolist() == [known[color] for color in found]
    else:
        with pytest.raises(UserError, match="is not in label_colors"):
            read_label(path, label_colors=known)


@pytest.mark.parametrize(
    ("colors", "message"),
    [
        ([(0, 0)], r"label_colors has \(0, 0\); a colour is \(R, G, B\)"),
        ([(0, 0, 256)], "a colour is"),
        (["red"], "label_colors has 'red'"),
        ([(1, 2, 3), [1, 2, 3]], r"label_colors has \(1, 2, 3\) twice"),
        ({(1, 2, 3): -1}, r"maps \(1, 2, 3\) to -1"),
        ([], "label_colors is empty"),
    ],
)
def test_a_colour_table_that_is_none_is_refused(tmp_path: Path, colors: Any, message: str) -> None:
    with pytest.raises(UserError, match=rf"a\.png: .*{message}"):
        read_label(tmp_path / "a.png", label_colors=colors)


def test_palette_files_keep_their_ids_where_there_is_a_colour_table(tmp_path: Path) -> None:
    write_label(tmp_path / "a.png", VOC_IDS, palette(256))
    np.testing.assert_array_equal(read_label(tmp_path / "a.png", label_colors=[(1, 1, 1)]), VOC_IDS)


def test_sixteen_bit_colours_are_no_labels(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((2, 2, 3), np.uint16))
    with pytest.raises(UserError, match=r"a\.png: RGB pixels, 16 bit"):
        read_label(tmp_path / "a.png", label_colors=[(0, 0, 0)])


def one_hot(folder: Path, bands: np.ndarray, layout: str) -> Path:
    """Write (K, H, W) bands."""
    last = bands.transpose(1, 2, 0)
    if layout.startswith("npy"):
        np.save(folder / "a.npy", bands if layout == "npy first" else last)
        return folder / "a.npy"
    options = {"pages": {}, "planar": {"planarconfig": "separate"}, "chunky": {"planarconfig": "contig"}}[layout]
    pixels = last if layout == "chunky" else bands
    tifffile.imwrite(folder / "a.tif", pixels, photometric="minisblack", **options)
    return folder / "a.tif"


@pytest.mark.parametrize("layout", ["pages", "planar", "chunky", "npy first", "npy last"])
@given(
    classes=st.integers(2, 6),
    seed=st.integers(0, 99),
    value=st.sampled_from([np.uint8(1), np.uint8(255), np.uint16(255), np.bool_(1)]),
)
@settings(max_examples=15, deadline=None)
def test_one_hot_bands_are_the_ids_of_their_only_one(
    tmp_path_factory: pytest.TempPathFactory, layout: str, classes: int, seed: int, value: np.generic
) -> None:
    ids = np.random.default_rng(seed).integers(0, classes, (7, 9))
    ids.flat[:classes] = np.arange(classes)
    bands = (ids == np.arange(classes)[:, None, None]) * value
    if value.dtype == bool and layout != "npy first":
        bands = bands.astype(np.uint8)
    path = one_hot(
        tmp_path_factory.mktemp("io"), bands.astype(bands.dtype if value.dtype == bool else value.dtype), layout
    )
    np.testing.assert_array_equal(read_label(path, num_classes=classes), ids)


@pytest.mark.parametrize("layout", ["pages", "chunky", "npy first"])
def test_gaps_and_overlaps_of_one_hot_bands_are_counted_or_ignored(tmp_path: Path, layout: str) -> None:
    bands = np.zeros((4, 5, 6), np.uint8)
    bands[1] = 1
    bands[:, 0, :2] = 0
    bands[3, 4, 3:] = 1
    path = one_hot(tmp_path, bands, layout)
    with pytest.raises(UserError, match=r"2 pixels are in none of the 4 one-hot bands and 3 in several; .*map -1 to"):
        read_label(path, num_classes=4)
    labels = read_label(path, num_classes=4, label_map={-1: 255, 1: 2})
    assert (labels == 255).sum() == 5 and labels[0, 0] == labels[4, 5] == 255 and labels[2, 2] == 2


def test_stacks_that_are_not_one_hot_are_refused(tmp_path: Path) -> None:
    path = one_hot(tmp_path, np.arange(4, dtype=np.uint8)[:, None, None].repeat(5, 1).repeat(6, 2), "pages")
    with pytest.raises(UserError, match=r"values 0\.\.3 in an array of shape \(5, 6, 4\); one-hot labels are 4 bands"):
        read_label(path, num_classes=4)
    for classes in (None, 3):
        with pytest.raises(UserError, match=r"an array of shape \(5, 6, 4\); a label map is \(H, W\) integers"):
            read_label(path, num_classes=classes)


def test_lzw_tiffs_of_ids_are_read_and_jpeg_tiffs_refused(tmp_path: Path) -> None:
    for mode in ("L", "P"):
        Image.frombytes(mode, (3, 2), VOC_IDS.tobytes()).save(tmp_path / "a.tif", compression="tiff_lzw")
        np.testing.assert_array_equal(read_label(tmp_path / "a.tif"), VOC_IDS)
    Image.new("L", (16, 16)).save(tmp_path / "b.tif", compression="jpeg")
    with pytest.raises(UserError, match=r"b\.tif: JPEG does not keep ids"):
        read_label(tmp_path / "b.tif")


def test_pgms_that_pillow_would_spread_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pgm").write_bytes(b"P5 3 1 255\n\0\1\2")
    assert read_label(tmp_path / "a.pgm").tolist() == [[0, 1, 2]]
    for content in (b"P5 3 1 20\n\0\1\2", b"P2 3 1 20\n0 1 2\n"):
        (tmp_path / "b.pgm").write_bytes(content)
        with pytest.raises(UserError, match=r"b\.pgm: its greatest value is not 255"):
            read_label(tmp_path / "b.pgm")


def test_a_record_says_how_its_file_is_read_and_else_the_metadata_do(tmp_path: Path) -> None:
    write_label(tmp_path / "a.png", np.array([[0, 7]]))
    record = {"sem_seg_file_name": str(tmp_path / "a.png")}
    metadata = Metadata(label_map={7: 1})
    assert read_record_label(record).tolist() == [[0, 7]]
    assert read_record_label(record, metadata).tolist() == [[0, 1]]
    assert read_record_label(record | {"sem_seg_label_map": {7: 2}}, metadata).tolist() == [[0, 2]]
    Image.fromarray(np.array([[[1, 2, 3]]], np.uint8)).save(tmp_path / "a.png")
    assert read_record_label(record, Metadata(label_colors={(1, 2, 3): 9})).tolist() == [[9]]
    assert read_record_label(record | {"sem_seg_label_colors": [(1, 2, 3)]}).tolist() == [[0]]


def test_nothing_reads_a_records_label_past_its_rules() -> None:
    readers = set()  # converters read files that belong to no record yet, and predictions belong to none
    for file in Path(seg_ext.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.ImportFrom) else []
            called = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
            readers |= {file.name} if "read_label" in (*names, called) and file.parent.name != "prepare" else set()
    assert readers == {"label_io.py", "saved.py"}


def test_a_table_of_colours_is_decoded_in_a_few_times_the_copy_of_the_picture() -> None:
    table = {(i, 255 - i, 7 * i % 256): i for i in range(0, 250, 10)}
    pixels = np.array(list(table), np.uint8)[np.random.default_rng(0).integers(0, len(table), (1024, 1024))]
    times = []
    for _ in range(5):
        start = time.process_time()
        decode_colors("a.png", pixels, table)
        times.append(time.process_time() - start)
    assert min(times) < 0.1


def broken_files(folder: Path) -> dict[str, str]:
    """Unreadable files, and what the error says of them."""
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    for name in ("cut.png", "cut.bmp"):
        Image.fromarray(noise).save(folder / name)
        (folder / name).write_bytes((folder / name).read_bytes()[:1000])
    tifffile.imwrite(folder / "cut.tif", noise.astype(np.uint16))
    (folder / "cut.tif").write_bytes((folder / "cut.tif").read_bytes()[:3000])
    tifffile.imwrite(folder / "deflate.tif", noise.astype(np.uint16), compression="zlib")
    packed = (folder / "deflate.tif").read_bytes()
    (folder / "deflate.tif").write_bytes(packed[:-2000] + bytes(2000))
    (folder / "empty.png").touch()
    (folder / "empty.tif").touch()
    (folder / "text.png").write_text("not a picture")
    (folder / "text.tif").write_text("not a picture")
    (folder / "folder.png").mkdir()
    np.save(folder / "cut.npy", noise)
    (folder / "cut.npy").write_bytes((folder / "cut.npy").read_bytes()[:1000])
    (folder / "text.npy").write_text("not an array")
    (folder / "empty.npy").touch()
    np.save(folder / "objects.npy", np.array([{}], object))
    np.save(folder / "none.npy", np.zeros((0, 4), np.uint8))
    return {
        **{f"cut.{s}": "cannot be read" for s in ("png", "bmp", "tif")},
        "deflate.tif": "cannot be read|not an image",
        "empty.png": "the file is empty",
        "empty.tif": "cannot be read|the file is empty",
        "text.png": "not an image",
        "text.tif": "cannot be read|not an image",
        "folder.png": "a folder",
        "cut.npy": "cannot be read",
        "text.npy": "cannot be read",
        "empty.npy": "the file is empty",
        "objects.npy": "cannot be read: Array can't be memory-mapped",
        "none.npy": "0x0 pixels|4x0 pixels",
        "none.png": "no such file",
        "none.tif": "no such file",
    }


@pytest.mark.parametrize("read", [read_image, read_label, read_panoptic_ids])
def test_every_broken_file_is_one_line_that_names_it(tmp_path: Path, read: Callable[[Path], object]) -> None:
    for name, message in broken_files(tmp_path).items():
        wrong_mode = "|pixels; a panoptic|not an image" if read is read_panoptic_ids else ""
        with pytest.raises(UserError, match=message + wrong_mode) as error:
            read(tmp_path / name)
        assert str(error.value).startswith(str(tmp_path / name))
        assert "\n" not in str(error.value)


def test_the_size_of_a_broken_file_is_an_error_too(tmp_path: Path) -> None:
    broken_files(tmp_path)
    for name in ("empty.png", "text.tif", "folder.png", "none.png"):
        with pytest.raises(UserError, match=name):
            image_size(tmp_path / name)
