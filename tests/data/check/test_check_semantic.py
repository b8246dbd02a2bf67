"""Every fault of images and label maps is found where it was planted, and a sound set has none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from seg_ext.data.check import Report, as_text, check_data
from seg_ext.data.datasets.folder import register_folder
from seg_ext.data.palette import palette


def found(report: Report) -> dict[str, list[tuple[str, str]]]:
    """File names and details by code; each code is printed with its fix."""
    text = as_text(report)
    assert all(f"{f.kind.severity}: {f.code}: " in text and f"  fix: {f.kind.fix}" in text for f in report.faults)
    return {f.code: [(place.file.rpartition("/")[2], place.detail) for place in f.findings] for f in report.faults}


def write_file(folder: str, name: str, content: bytes) -> Callable[[Any], None]:
    return lambda data: (getattr(data, folder) / name).write_bytes(content)


def truncate(folder: str) -> Callable[[Any], None]:
    def plant(data: Any) -> None:
        file = getattr(data, folder) / "1.png"
        file.write_bytes(file.read_bytes()[:-60])

    return plant


def ids(i: int, values: list[int], type: Any = np.uint8) -> Callable[[Any], None]:
    return lambda data: data.write_label(i, np.resize(np.array(values), (24, 32)), type)


def rgb_label(data: Any) -> None:
    colors = np.array(palette(3), np.uint8)
    Image.fromarray(colors[np.asarray(Image.open(data.labels / "1.png"))]).save(data.labels / "1.png")


def luma_label(data: Any) -> None:
    label = Image.open(data.labels / "1.png")
    label.putpalette([c for color in palette(3) for c in color])
    label.convert("L").save(data.labels / "1.png")


def jpeg_label(data: Any) -> None:
    Image.open(data.labels / "1.png").save(data.labels / "1.jpg")
    (data.labels / "1.png").unlink()


def nan_image(data: Any) -> None:
    for i in range(4):
        pixels = np.asarray(Image.open(data.images / f"{i}.png")).astype(np.float32)
        pixels[0, 0, 0] = np.nan if i == 1 else 0
        tifffile.imwrite(data.images / f"{i}.tif", pixels, photometric="rgb")
        (data.images / f"{i}.png").unlink()


def odd_bands(data: Any) -> None:
    np.save(data.images / "1.npy", np.random.default_rng(0).integers(0, 255, (24, 32, 5), np.uint8))
    (data.images / "1.png").unlink()


PLANTS: dict[str, tuple[Callable[[Any], Any], str, str]] = {  # code: what is done, file, part of the detail
    "missing_label": (lambda data: (data.labels / "1.png").unlink(), "1.png", "nothing of this name"),
    "unused_label": (lambda data: (data.images / "1.png").unlink(), "1.png", ""),
    "unreadable_image empty": (write_file("images", "1.png", b""), "1.png", "the file is empty"),
    "unreadable_image text": (write_file("images", "1.png", b"hello"), "1.png", "not an image"),
    "unreadable_image cut": (truncate("images"), "1.png", "truncated"),
    "unreadable_label empty": (write_file("labels", "1.png", b""), "1.png", "the file is empty"),
    "unreadable_label cut": (truncate("labels"), "1.png", "cannot be read"),
    "nan_pixels": (nan_image, "1.tif", "NaN"),
    "unequal_bands": (odd_bands, "1.npy", "5 channels (BANDS), most have 3 (BGR)"),
    "size_mismatch": (
        lambda data: data.write_label(1, np.arange(600).reshape(20, 30) % 3),
        "1.png",
        "30x20, its image",
    ),
    "label_is_rgb": (rgb_label, "1.png", "RGB"),
    "label_is_luma": (luma_label, "1.png", "38 (256 pixels), 75 (256 pixels)"),
    "label_is_lossy": (jpeg_label, "1.jpg", "does not keep ids"),
    "ids_out_of_range": (ids(1, [0, 1, 2, 3, 3, 9]), "1.png", "ids 3 (256 pixels), 9 (128 pixels); takes 0..2, 255"),
    "all_ignored": (ids(1, [255]), "1.png", ""),
    "blank_image": (lambda data: data.write_image(1, np.full((24, 32, 3), 7, np.uint8)), "1.png", "value 7, 7, 7"),
    "unequal_sizes": (
        lambda data: (
            data.write_image(1, np.arange(27, dtype=np.uint8).reshape(3, 3, 3)),
            data.write_label(1, np.zeros((3, 3))),
        ),
        "check_semantic_train",
        "3x3 to 32x24",
    ),
    "duplicate_image": (
        lambda data: (data.images / "1.png").write_bytes((data.images / "0.png").read_bytes()),
        "1.png",
        "0.png of check_semantic_train",
    ),
}


def test_a_sound_set_has_no_faults(semantic: Any) -> None:
    report = semantic.check()
    assert report.faults == [] and report.looked_at and report.statistics["images"] == 4


@pytest.mark.parametrize("case", PLANTS)
def test_a_planted_fault_is_found_and_nothing_else(semantic: Any, case: str) -> None:
    plant, file, detail = PLANTS[case]
    plant(semantic)
    code = case.split()[0]
    faults = found(semantic.check())
    stopped = {"not_loaded"} & faults.keys()  # the catalog gives up where an image has no label map or cannot be read
    assert faults.keys() - stopped == {code}
    assert [name for name, _ in faults[code]] == [file] and detail in faults[code][0][1]


def test_everything_is_found_at_once_where_the_catalog_stops(semantic: Any) -> None:
    (semantic.labels / "0.png").unlink()
    (semantic.labels / "1.png").unlink()
    semantic.write_label(2, np.full((24, 32), 9))
    faults = found(semantic.check())
    assert faults.keys() == {"not_loaded", "missing_label", "ids_out_of_range"}
    assert [name for name, _ in faults["missing_label"]] == ["0.png", "1.png"]


def test_a_set_that_is_not_there_is_a_fault(known: None, tmp_path: Any) -> None:
    register_folder("check_nowhere", tmp_path / "a", tmp_path / "b", classes=["x"])
    report = check_data(["check_nowhere"], train=[], test=["check_nowhere"])[0]
    assert found(report).keys() == {"not_loaded"} and not report.looked_at
    assert f"{tmp_path / 'a'} not found" in report.faults[0].findings[0].detail


def test_masks_of_0_and_255_are_found_unless_255_is_mapped_or_is_void(semantic: Any) -> None:
    for i in range(4):
        ids(i, [0, 0, 255])(semantic)
    assert found(semantic.check(classes=["a", "b"]))["binary_255"] == [(f"{i}.png", "") for i in range(4)]
    assert semantic.check(classes=["a", "b"], label_map={255: 1}).faults == []
    ids(0, [0, 1, 255])(semantic)
    assert semantic.check(classes=["a", "b"]).faults == []


def test_255_is_out_of_range_where_another_id_is_ignored(semantic: Any) -> None:
    ids(0, [0, 255])(semantic)
    faults = found(semantic.check(ignore_label=254))
    assert faults == {"ids_out_of_range": [("0.png", "id 255")]}


def test_ids_cut_off_at_8_bits_are_found(semantic: Any) -> None:
    names = [f"c{i}" for i in range(300)]
    faults = found(semantic.check(classes=names, ignore_label=65535))
    assert faults["truncated_ids"] == [("check_semantic_train", "300 classes, but every label map has 8 bits")]
    for i in range(4):
        ids(i, [0, 1, 2, 299], np.uint16)(semantic)
    assert found(semantic.check(classes=names, ignore_label=65535)).keys() == {"absent_class"}


def test_instance_ids_saturated_at_255_are_found(semantic: Any) -> None:
    rules: dict[str, Any] = {"classes": ["a", "b"], "label_map": {"1-65535": 1}}
    ids(0, list(range(256)))(semantic)
    assert found(semantic.check(**rules)) == {"truncated_ids": [("0.png", "256 ids up to 255 in 8 bits")]}
    ids(0, list(range(256)), np.uint16)(semantic)
    ids(1, [0, 255])(semantic)
    assert semantic.check(**rules).faults == []


def test_an_ignored_id_that_is_a_class_is_found(semantic: Any) -> None:
    assert found(semantic.check(ignore_label=2)).keys() == {"ignore_is_class"}


def test_a_class_without_a_pixel_is_found(semantic: Any) -> None:
    faults = found(semantic.check(classes=["a", "b", "c", "d"]))
    assert faults == {"absent_class": [("check_semantic_train", "d: no pixel")]}


def test_a_colour_that_is_no_class_is_found(semantic: Any) -> None:
    colors = np.array([(0, 0, 0), (10, 20, 30), (40, 50, 60)], np.uint8)
    for i in range(4):
        semantic.write_label(i, colors[np.arange(768).reshape(24, 32) % 3])
    assert semantic.check(label_colors=colors.tolist()).faults == []
    void = {tuple(colors[0].tolist()): 0, tuple(colors[1].tolist()): 255, tuple(colors[2].tolist()): 1}
    semantic.write_label(0, colors[np.arange(768).reshape(24, 32) % 2])  # background and void alone are no 0/255 mask
    for i in (1, 2, 3):
        semantic.write_label(i, colors[np.arange(768).reshape(24, 32) % 2 * 2])
    assert semantic.check(classes=["a", "b"], label_colors=void).faults == []
    semantic.write_label(0, colors[np.arange(768).reshape(24, 32) % 3])
    for i in (1, 2, 3):
        semantic.write_label(i, colors[np.arange(768).reshape(24, 32) % 2])
    faults = found(semantic.check(classes=["a", "b"], label_colors=colors[:2].tolist()))
    assert faults["unknown_color"][0][0] == "0.png" and "(40, 50, 60) of 256 pixels" in faults["unknown_color"][0][1]


def test_label_maps_without_an_image_are_left_alone_where_sets_share_the_folder(semantic: Any, tmp_path: Any) -> None:
    (semantic.images / "1.png").unlink()
    register_folder("check_other", tmp_path / "other", semantic.labels, classes=["a", "b", "c"])
    assert semantic.check().faults == []


def test_a_record_whose_size_is_not_the_files_is_found(semantic: Any) -> None:
    from detectron2.data import DatasetCatalog

    semantic.check()
    records = DatasetCatalog.get(semantic.name)
    DatasetCatalog.register("check_sizes", lambda: [records[0] | {"width": 33}])
    report = check_data(["check_sizes"], train=[], test=[])[0]
    assert found(report) == {"recorded_size": [("0.png", "recorded 33x24, file 32x24")]}


def test_images_that_are_trained_and_tested_on_are_found_by_content(semantic: Any, tmp_path: Any) -> None:
    semantic.check()
    for folder in ("images", "labels"):
        (tmp_path / "val" / folder).mkdir(parents=True)
    Image.open(semantic.images / "2.png").save(tmp_path / "val/images/x.bmp")  # the same pixels in other bytes
    Image.open(semantic.labels / "2.png").save(tmp_path / "val/labels/x.png")
    register_folder("check_val", tmp_path / "val/images", tmp_path / "val/labels", classes=["a", "b", "c"])
    names = [semantic.name, "check_val"]
    train, val = check_data(names, train=names[:1], test=names[1:])
    assert train.faults == []
    assert found(val) == {"leaked_image": [("x.bmp", f"is {semantic.images / '2.png'} of {semantic.name}")]}
    again = check_data(names[:1], train=names[:1], test=names[:1])[0]
    assert found(again) == {"leaked_image": [(semantic.name, "the whole data set is in both")]}


def test_blank_images_are_no_leak(semantic: Any) -> None:
    for i in (0, 1):
        semantic.write_image(i, np.zeros((24, 32, 3), np.uint8))
    assert found(semantic.check()).keys() == {"blank_image"}


def test_any_error_of_a_loader_is_a_fault(known: None) -> None:
    from detectron2.data import DatasetCatalog

    DatasetCatalog.register("check_broken", lambda: {}["nothing"])
    report = check_data(["check_broken"], train=[], test=[])[0]
    assert found(report) == {"not_loaded": [("check_broken", "KeyError: 'nothing'")]}
    DatasetCatalog.register("check_nameless", lambda: [{"image_id": 1}])
    report = check_data(["check_nameless"], train=[], test=[])[0]
    assert found(report) == {"not_loaded": [("check_nameless", "record 0 has no file_name")]}


def test_the_order_of_faults_does_not_depend_on_threads(semantic: Any) -> None:
    for i in range(4):
        semantic.write_label(i, np.full((24, 32), 9 + i))
    first = semantic.check()
    for workers in (1, 4):
        again = check_data([semantic.name], train=[], test=[], num_workers=workers)[0]
        assert again.as_dict() == first.as_dict()


@pytest.mark.filterwarnings("ignore:The 'warn' method is deprecated:DeprecationWarning:detectron2")
def test_images_that_a_loader_leaves_out_are_found(semantic: Any) -> None:
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.data.datasets import load_sem_seg

    (semantic.labels / "1.png").unlink()
    roots = {"image_root": str(semantic.images), "sem_seg_root": str(semantic.labels)}
    DatasetCatalog.register(
        "check_left_out", lambda: load_sem_seg(roots["sem_seg_root"], roots["image_root"], "png", "png")
    )
    MetadataCatalog.get("check_left_out").set(evaluator_type="sem_seg", stuff_classes=["a", "b", "c"], **roots)
    report = check_data(["check_left_out"], train=[], test=[])[0]
    assert found(report) == {"unused_image": [("1.png", "")]} and report.statistics["images"] == 3
