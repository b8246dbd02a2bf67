"""The built-in data sets on toy trees of their published layouts: pairing, ids in range, splits that share nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from seg_ext.data.datasets import ade20k, aerial_dubai, coco_stuff, potsdam, register_all
from seg_ext.data.label_io import read_record_label, write_label
from seg_ext.data.mapper import SegMapper
from seg_ext.data.palette import palette
from seg_ext.data.prepare import voc
from seg_ext.errors import UserError

pytestmark = pytest.mark.usefixtures("restored_catalogs")

WritePair = Callable[..., None]
FOLDER = {  # of the names
    **{f"isbi2012_{split}": "isbi2012" for split in ("train", "val", "trainval")},
    **{f"nerve_{split}": "nerve" for split in ("train", "val")},
    **{f"dsb2018_{task}_train": "dsb2018" for task in ("sem_seg", "instances", "panoptic")},
    **{f"dsb2018_{task}_val": "dsb2018" for task in ("sem_seg", "instances", "panoptic")},
    **{f"potsdam_{split}": "potsdam" for split in ("train", "test", "test_eroded")},
    **{f"aerial_dubai_{split}": "aerial_dubai" for split in ("train", "val")},
    **{f"ade20k_150_{split}": "ADEChallengeData2016" for split in ("train", "val")},
    **{f"coco_stuff_171_{split}": "coco" for split in ("train", "val")},
    **{f"voc_{task}_{split}": "VOC2012" for task in ("instances", "panoptic") for split in ("train", "val")},
    "voc_sem_seg_trainaug": "VOC2012",
}


def found_ids(name: str) -> tuple[list[str], set[int]]:
    """Image ids and train ids of all records, read and mapped as in training."""
    metadata = MetadataCatalog.get(name)
    records = DatasetCatalog.get(name)
    mapper = SegMapper(True, augmentations=[], num_classes=len(metadata.stuff_classes), ignore=metadata.ignore_label)
    ids: set[int] = set()
    for record in records:
        assert Path(record["sem_seg_file_name"]).stem.removesuffix("_mask") == Path(record["file_name"]).stem
        mapped = mapper(record)
        assert mapped["sem_seg"].shape == mapped["image"].shape[1:] == (record["height"], record["width"])
        ids |= set(mapped["sem_seg"].unique().tolist())
        again = read_record_label(record, metadata, num_classes=len(metadata.stuff_classes))
        assert np.array_equal(again, mapped["sem_seg"].numpy())
    return [str(record["image_id"]) for record in records], ids


@pytest.mark.parametrize("name", FOLDER)
def test_without_data_the_error_names_the_place_and_what_to_do(name: str, tmp_path: Path) -> None:
    register_all(tmp_path)
    folder = FOLDER[name]
    with pytest.raises(UserError, match=rf"^data set {name}: .*{folder}.* not found; ") as error:
        DatasetCatalog.get(name)
    text = str(error.value)
    assert f"set DETECTRON2_DATASETS (now '{tmp_path}') to the folder that holds {folder}/" in text
    assert "\n" not in text
    assert "run `seg-ext data prepare " in text


@pytest.mark.parametrize("name", FOLDER)
def test_metadata_are_there_without_data_and_agree(name: str, tmp_path: Path) -> None:
    register_all(tmp_path)
    metadata = MetadataCatalog.get(name)
    kinds = [kind for kind in ("stuff", "thing") if metadata.get(f"{kind}_classes")]
    assert kinds
    for kind in kinds:
        classes, colors = metadata.get(f"{kind}_classes"), metadata.get(f"{kind}_colors")
        assert len(set(classes)) == len(classes) == len(colors)
        assert all(len(color) == 3 and all(0 <= c <= 255 for c in color) for color in colors)


def test_isbi2012_holds_out_every_fifth_slice_that_is_there(tmp_path: Path, write_pair: WritePair) -> None:
    slices = [f"{i:02d}" for i in (0, 2, 3, 4, 5, 6, 7, 9, 10, 11, 14)]
    for name in slices:
        base = tmp_path / "isbi2012" / "train"
        write_pair(base / "images" / f"{name}.png", base / "labels" / f"{name}.png", [0, 1])
    register_all(tmp_path)
    (train, ids), (val, _), (both, _) = (found_ids(f"isbi2012_{s}") for s in ("train", "val", "trainval"))
    assert val == ["05", "11"] and train == [s for s in slices if s not in val] and both == slices
    assert ids == {0, 1} and MetadataCatalog.get("isbi2012_val").stuff_classes == ["cell", "membrane"]


@pytest.fixture
def nerve_tree(tmp_path: Path) -> Path:
    """12 subjects of two images each; every second mask is empty."""
    folder = tmp_path / "nerve" / "train"
    folder.mkdir(parents=True)
    for subject in range(1, 13):
        for image in (1, 10):
            tifffile.imwrite(folder / f"{subject}_{image}.tif", np.full((6, 8), subject, np.uint8))
            mask = np.zeros((6, 8), np.uint8)
            mask[2:4, 3:5] = 255 * (image == 1)
            tifffile.imwrite(folder / f"{subject}_{image}_mask.tif", mask)
    return tmp_path


def test_nerve_never_has_a_subject_on_both_sides(nerve_tree: Path) -> None:
    register_all(nerve_tree)
    (train, ids), (val, _) = found_ids("nerve_train"), found_ids("nerve_val")
    subjects = [{int(name.split("_")[0]) for name in names} for names in (train, val)]
    assert subjects == [{1, 2, 3, 4, 6, 7, 8, 9, 11, 12}, {5, 10}]
    assert (len(train), len(val), ids) == (20, 4, {0, 1})
    assert train[:4] == ["1_1", "1_10", "2_1", "2_10"]


def test_nerve_names_an_image_without_a_mask_and_a_folder_without_images(nerve_tree: Path) -> None:
    register_all(nerve_tree)
    (nerve_tree / "nerve" / "train" / "3_10_mask.tif").unlink()
    with pytest.raises(UserError, match=r"nerve_train: .*/3_10_mask\.tif not found, but every image has a mask"):
        DatasetCatalog.get("nerve_train")
    for file in (nerve_tree / "nerve" / "train").iterdir():
        file.unlink()
    with pytest.raises(UserError, match=r"nerve_val: .*train holds no S_I\.tif; run `seg-ext data prepare nerve`"):
        DatasetCatalog.get("nerve_val")


def test_dsb2018_reads_instance_ids_beyond_255_as_one_class(tmp_path: Path) -> None:
    for kind in ("images", "labels"):
        (tmp_path / "dsb2018" / "train" / kind).mkdir(parents=True)
    Image.fromarray(np.zeros((4, 5, 3), np.uint8)).save(tmp_path / "dsb2018/train/images/a.png")
    labels = np.array([0, 1, 2, 255, 256, 300, 65535, 0, 0, 0] * 2, np.uint16).reshape(4, 5)
    Image.fromarray(labels).save(tmp_path / "dsb2018/train/labels/a.png")
    register_all(tmp_path)
    assert found_ids("dsb2018_sem_seg_train") == (["a"], {0, 1})
    (record,) = DatasetCatalog.get("dsb2018_sem_seg_train")
    mapped = SegMapper(True, augmentations=[], num_classes=2)(record)["sem_seg"]
    assert np.array_equal(mapped.numpy(), labels > 0)


def test_potsdam_has_the_official_split_and_colours() -> None:
    train, test = (set(potsdam.SPLITS[split]) for split in ("train", "test"))
    assert (len(train), len(test), train & test) == (24, 14, set())
    assert {"2_10", "7_12", "6_7"} <= train and {"2_13", "7_13", "4_15"} <= test
    assert potsdam.CLASSES["building"] == (0, 0, 255) and potsdam.CLASSES["clutter"] == (255, 0, 0)
    assert list(potsdam.CLASSES)[::5] == ["impervious surface", "clutter"]


def test_potsdam_has_two_kinds_of_labels_for_the_same_test_crops(tmp_path: Path, write_pair: WritePair) -> None:
    for split, labels, ids in (
        ("train", "labels", [0, 5]),
        ("test", "labels", [1]),
        ("test", "labels_eroded", [1, 255]),
    ):
        base = tmp_path / "potsdam" / split
        write_pair(base / "images" / "2_13_0000_0000.png", base / labels / "2_13_0000_0000.png", ids)
    register_all(tmp_path)
    assert found_ids("potsdam_train")[1] == {0, 5}
    assert found_ids("potsdam_test")[1] == {1} and found_ids("potsdam_test_eroded")[1] == {1, 255}


def test_aerial_dubai_has_five_classes_and_void(tmp_path: Path, write_pair: WritePair) -> None:
    for split in ("train", "val"):
        base = tmp_path / "aerial_dubai" / split
        write_pair(base / "images" / f"{split}.jpg", base / "labels" / f"{split}.png", [0, 1, 2, 3, 4, 255])
    register_all(tmp_path)
    for split in ("train", "val"):
        assert found_ids(f"aerial_dubai_{split}") == ([split], {0, 1, 2, 3, 4, 255})
    assert MetadataCatalog.get("aerial_dubai_val").stuff_colors[3] == (60, 16, 152)
    assert list(aerial_dubai.CLASSES)[2] == "road"


def test_ade20k_reads_the_original_annotations(tmp_path: Path, write_pair: WritePair) -> None:
    base = tmp_path / "ADEChallengeData2016"
    for split in ("training", "validation"):
        image, label = (
            base / kind / split / f"ADE_{split}.{end}" for kind, end in (("images", "jpg"), ("annotations", "png"))
        )
        write_pair(image, label, [0, 1, 2, 150])
    register_all(tmp_path)
    assert found_ids("ade20k_150_train") == (["ADE_training"], {255, 0, 1, 149})
    metadata = MetadataCatalog.get("ade20k_150_val")
    assert len(metadata.stuff_classes) == 150 and metadata.stuff_classes[0::149] == ["wall", "flag"]
    assert ade20k.COLORS[:2] == [(120, 120, 120), (180, 120, 120)] and ade20k.COLORS[-1] == (92, 0, 255)
    assert metadata.stuff_classes == [
        c.split(",")[0].strip() for c in MetadataCatalog.get("ade20k_sem_seg_val").stuff_classes
    ]


def test_coco_stuff_numbers_171_classes_by_their_ids(tmp_path: Path, write_pair: WritePair) -> None:
    assert len(coco_stuff.CATEGORIES) == 171 and max(coco_stuff.CATEGORIES) == 182
    assert [coco_stuff.CATEGORIES[i] for i in (1, 90, 92, 124, 182)] == [
        "person",
        "toothbrush",
        "banner",
        "grass",
        "wood",
    ]
    base = tmp_path / "coco"
    write_pair(base / "val2017" / "a.jpg", base / "annotations/stuffthingmaps/val2017/a.png", [0, 89, 91, 181, 255, 11])
    write_pair(base / "val2017" / "unlabelled.jpg", base / "elsewhere.png", [0])
    register_all(tmp_path)
    assert found_ids("coco_stuff_171_val") == (["a"], {0, 79, 80, 170, 255})


def write_voc(root: Path, classes: np.ndarray, objects: np.ndarray, lists: dict[str, Sequence[str]]) -> None:
    base = root / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "SegmentationObject", "ImageSets/Segmentation"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    for split, names in lists.items():
        (base / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("".join(f"{n}\n" for n in names))
        for name in names:
            Image.fromarray(np.zeros((*classes.shape, 3), np.uint8)).save(base / "JPEGImages" / f"{name}.jpg")
            write_label(base / "SegmentationClass" / f"{name}.png", classes, palette(256))
            write_label(base / "SegmentationObject" / f"{name}.png", objects, palette(256))


def test_voc_instances_are_mapped_with_their_masks(tmp_path: Path) -> None:
    classes, objects = np.zeros((8, 10), int), np.zeros((8, 10), int)
    classes[1:4, 1:4], objects[1:4, 1:4] = 15, 1
    classes[4:7, 5:9], objects[4:7, 5:9] = 20, 2
    classes[0], objects[0] = 255, 255
    write_voc(tmp_path, classes, objects, {"train": ["2007_000001"], "val": ["2007_000002", "2008_000003"]})
    voc.prepare(tmp_path)
    register_all(tmp_path)
    (record,) = DatasetCatalog.get("voc_instances_train")
    assert len(DatasetCatalog.get("voc_instances_val")) == 2
    found: Any = SegMapper(True, augmentations=[], masks="bitmask")(record)["instances"]
    assert found.gt_classes.tolist() == [14, 19]
    assert np.array_equal(found.gt_masks.tensor.numpy(), [objects == 1, objects == 2])
    metadata = MetadataCatalog.get("voc_instances_train")
    assert [metadata.thing_classes[c] for c in (14, 19)] == ["person", "tvmonitor"]
    assert metadata.thing_colors[14] == (192, 128, 128)
