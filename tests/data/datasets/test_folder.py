"""Semantic data from two folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from seg_ext.data.datasets.folder import register_folder, register_from_config_list
from seg_ext.data.label_io import read_label, read_record_label
from seg_ext.data.palette import palette
from seg_ext.errors import UserError

NAME = "toy_folder"
CLASSES = ["sky", "sea"]


@pytest.fixture
def folders(tmp_path: Path, write_pair: Callable[..., None]) -> tuple[Path, Path]:
    for stem, suffix in (("b", "png"), ("a", "jpg")):
        write_pair(tmp_path / f"images/{stem}.{suffix}", tmp_path / f"labels/{stem}.png", [0, 1, 5, 255])
    (tmp_path / "images/notes.txt").touch()
    (tmp_path / "images/.hidden.png").touch()
    (tmp_path / "labels/other.png").touch()
    return tmp_path / "images", tmp_path / "labels"


def test_records_and_metadata_hold_what_was_registered(folders: tuple[Path, Path]) -> None:
    register_folder(NAME, *folders, classes=CLASSES, label_map={5: 255})
    records, metadata = DatasetCatalog.get(NAME), MetadataCatalog.get(NAME)
    assert [r["image_id"] for r in records] == ["a", "b"]
    assert records[0] == {
        "file_name": str(folders[0] / "a.jpg"),
        "sem_seg_file_name": str(folders[1] / "a.png"),
        "image_id": "a",
        "height": 6,
        "width": 8,
        "sem_seg_label_map": {5: 255},
    }
    assert metadata.as_dict() == {
        "name": NAME,
        "evaluator_type": "sem_seg",
        "stuff_classes": CLASSES,
        "stuff_colors": palette(2),
        "ignore_label": 255,
        "label_map": {5: 255},
        "image_root": str(folders[0]),
        "sem_seg_root": str(folders[1]),
    }
    for record in records:
        read_label(record["sem_seg_file_name"], label_map=metadata.label_map, num_classes=2)


def test_metadata_is_there_without_the_data(tmp_path: Path) -> None:
    register_folder(NAME, tmp_path / "none", tmp_path / "nowhere", classes=CLASSES)
    assert MetadataCatalog.get(NAME).stuff_classes == CLASSES
    assert not hasattr(MetadataCatalog.get(NAME), "label_map")
    with pytest.raises(UserError, match=rf"data set {NAME}: .*none not found; check"):
        DatasetCatalog.get(NAME)


def test_registering_again_replaces(folders: tuple[Path, Path]) -> None:
    register_folder(NAME, *folders, classes=CLASSES, label_map={5: 0})
    register_folder(NAME, *folders, classes=["one", "two", "three"], colors=[(1, 2, 3)] * 3, ignore_label=9)
    metadata = MetadataCatalog.get(NAME)
    assert (len(metadata.stuff_classes), metadata.stuff_colors[0], metadata.ignore_label) == (3, (1, 2, 3), 9)
    assert "sem_seg_label_map" not in DatasetCatalog.get(NAME)[0]


def test_names_of_other_code_are_not_taken_over(folders: tuple[Path, Path]) -> None:
    with pytest.raises(UserError, match="coco_2017_train is already registered by other code"):
        register_folder("coco_2017_train", *folders, classes=CLASSES)
    assert len(MetadataCatalog.get("coco_2017_train").thing_classes) == 80


def test_an_image_without_a_label_is_named(folders: tuple[Path, Path]) -> None:
    (folders[1] / "b.png").unlink()
    register_folder(NAME, *folders, classes=CLASSES)
    with pytest.raises(UserError, match=rf"data set {NAME}: no label map in .*labels for .*images/b\.png$"):
        DatasetCatalog.get(NAME)
    (folders[1] / "a.png").unlink()
    with pytest.raises(UserError, match=r"images/a\.jpg and 1 more"):
        DatasetCatalog.get(NAME)


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    register_folder(NAME, tmp_path, tmp_path, classes=CLASSES)
    with pytest.raises(UserError, match=f"data set {NAME} holds no images"):
        DatasetCatalog.get(NAME)


def test_two_images_of_one_name_are_an_error(folders: tuple[Path, Path]) -> None:
    Image.new("RGB", (8, 6)).save(folders[0] / "a.png")
    register_folder(NAME, *folders, classes=CLASSES)
    with pytest.raises(UserError, match=r"a\.jpg and a\.png have the same name"):
        DatasetCatalog.get(NAME)


def test_a_file_in_place_of_a_folder_and_a_broken_image_are_named(folders: tuple[Path, Path]) -> None:
    register_folder(NAME, folders[0] / "a.jpg", folders[1], classes=CLASSES)
    with pytest.raises(UserError, match=r"a\.jpg is a file; a folder is needed"):
        DatasetCatalog.get(NAME)
    (folders[0] / "a.jpg").write_bytes(b"")
    register_folder(NAME, *folders, classes=CLASSES)
    with pytest.raises(UserError, match=r"a\.jpg: the file is empty"):
        DatasetCatalog.get(NAME)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": []}, "classes are"),
        ({"classes": "sky"}, "classes are 'sky'; they are a list of names"),
        ({"classes": ["a", 1]}, "classes are"),
        ({"classes": 2}, "classes are 2"),
        ({"colors": 2}, "colours are 2"),
        ({"colors": [1, 2]}, "each class needs one RGB"),
        ({"classes": ["a", "a"]}, "two classes have the same name"),
        ({"colors": [(0, 0, 0)]}, "1 colours for 2 classes"),
        ({"colors": [(0, 0), (0, 0)]}, "each class needs one RGB"),
        ({"ignore_label": "255"}, "the ignored id is '255'"),
        ({"label_map": {3: 2}}, r"label_map maps to 2; takes 0\.\.1 and 255"),
        ({"label_map": {"3": 1}}, "label_map has '3'; its keys are ids, and ranges of ids"),
        ({"label_map": [1]}, "label_map is"),
        ({"label_colors": {"#0000ff": 2}}, r"label_colors maps to 2; takes 0\.\.1 and 255"),
        ({"label_colors": [[0, 0, 0], [1, 1, 1], [2, 2, 2]]}, "label_colors maps to 2"),
        ({"label_colors": {"#00f": 1}}, r"label_colors has '#00f'; a colour is \(R, G, B\) of 0..255 or '#rrggbb'"),
        ({"label_colors": 3}, "label_colors is 3; it is a list of RGB"),
    ],
)
def test_what_does_not_fit_together_is_refused_at_once(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"^data set {NAME}: .*{message}"):
        register_folder(NAME, "images", "labels", **({"classes": CLASSES} | arguments))


def test_config_entries_register_and_may_be_given_twice(folders: tuple[Path, Path]) -> None:
    entry = {"NAME": NAME, "IMAGES": str(folders[0]), "LABELS": str(folders[1]), "CLASSES": CLASSES}
    full = {"NAME": "toy_full", "COLORS": [[1, 2, 3], [4, 5, 6]], "IGNORE": 7, "LABEL_MAP": {5: 7}}
    for _ in range(2):
        register_from_config_list([entry, entry | full])
    assert len(DatasetCatalog.get(NAME)) == 2
    metadata = MetadataCatalog.get("toy_full")
    assert (metadata.ignore_label, metadata.label_map, metadata.stuff_colors[1]) == (7, {5: 7}, (4, 5, 6))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"IMAGE": "x"},
            "unknown IMAGE; known: NAME, IMAGES, LABELS, CLASSES, COLORS, IGNORE, LABEL_MAP, LABEL_C",
        ),
        ({"LABELS": None}, "LABELS is None; it is a text"),
        ({"NAME": ""}, "NAME is ''; it is a text"),
    ],
)
def test_bad_config_entries_say_where_and_what(change: dict[str, Any], message: str) -> None:
    entry = {"NAME": NAME, "IMAGES": "i", "LABELS": "l", "CLASSES": CLASSES}
    with pytest.raises(UserError, match=rf"^DATASETS\.FOLDERS\[1\]: {message}"):
        register_from_config_list([entry, entry | change])
    with pytest.raises(UserError, match=r"^DATASETS\.FOLDERS\[0\]: missing LABELS, CLASSES; known"):
        register_from_config_list([{"NAME": NAME, "IMAGES": "i"}])
    with pytest.raises(UserError, match=r"^DATASETS\.FOLDERS\[0\] is 'x'; it is a mapping"):
        register_from_config_list(["x"])  # type: ignore[list-item]


@pytest.mark.parametrize(
    "colors", [[[0, 0, 255], [255, 0, 0]], {"#0000ff": 0, "#ff0000": 1}, {(0, 0, 255): 0, (255, 0, 0): 1}]
)
def test_label_maps_may_be_pictures_in_colour(colors: Any, folders: tuple[Path, Path]) -> None:
    for stem in ("a", "b"):
        picture = Image.new("RGB", (8, 6), (0, 0, 255))
        picture.putpixel((2, 3), (255, 0, 0))
        picture.save(folders[1] / f"{stem}.png")
    images, labels = map(str, folders)
    entry = {"NAME": NAME, "IMAGES": images, "LABELS": labels, "CLASSES": CLASSES, "LABEL_COLORS": colors}
    register_from_config_list([entry])
    label = read_record_label(DatasetCatalog.get(NAME)[0], num_classes=2, ignore=255)
    assert label.sum() == 1 and label[3, 2] == 1
