"""Downloaded data sets become what the registered ones read: right values, whole pairs, sources untouched."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from detectron2.data import DatasetCatalog
from PIL import Image
from pycocotools import mask as mask_util
from scipy.io import savemat

from seg_ext.data.datasets import aerial_dubai as dubai_set
from seg_ext.data.datasets import potsdam as potsdam_set
from seg_ext.data.datasets import register_all
from seg_ext.data.label_io import read_image, read_label, read_panoptic_ids, write_label
from seg_ext.data.palette import palette
from seg_ext.data.prepare import PREPARE, aerial_dubai, coco, dsb2018, isbi2012, potsdam, voc
from seg_ext.errors import UserError
from seg_ext.evaluation import PanopticEvaluator

pytestmark = pytest.mark.usefixtures("restored_catalogs")

RNG = np.random.default_rng(0)


def noise(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, np.uint8)


def tree_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def zipped(folder: Path) -> Path:
    return Path(shutil.make_archive(str(folder), "zip", folder))


# ISBI 2012


@pytest.fixture
def stacks(tmp_path: Path) -> Path:
    source = tmp_path / "challenge"
    source.mkdir()
    tifffile.imwrite(source / "train-volume.tif", noise(6, 10, 12))
    tifffile.imwrite(source / "train-labels.tif", (noise(6, 10, 12) > 127).astype(np.uint8) * np.uint8(255))
    return source


@pytest.mark.parametrize("packed", [False, True])
def test_isbi2012_turns_stacks_into_slices_of_cell_and_membrane(tmp_path: Path, stacks: Path, packed: bool) -> None:
    before = tree_of(stacks)
    report = isbi2012.prepare(tmp_path / "data", zipped(stacks) if packed else stacks)
    assert report.fresh and report.lines == ["isbi2012_trainval: 6 slices"]
    register_all(tmp_path / "data")
    records = DatasetCatalog.get("isbi2012_trainval")
    volume, labels = (tifffile.imread(stacks / f"train-{kind}.tif") for kind in ("volume", "labels"))
    for i, record in enumerate(records):
        assert np.array_equal(read_image(record["file_name"])[..., 0], volume[i])
        assert np.array_equal(read_label(record["sem_seg_file_name"]), labels[i] == 0)
    assert len(records) == 6 and [r["image_id"] for r in DatasetCatalog.get("isbi2012_val")] == ["04"]
    assert tree_of(stacks) == before
    assert not isbi2012.prepare(tmp_path / "data", stacks).fresh
    assert not isbi2012.prepare(tmp_path / "data").fresh


def test_isbi2012_makes_again_what_went_missing(tmp_path: Path, stacks: Path) -> None:
    isbi2012.prepare(tmp_path / "data", stacks)
    lost = tmp_path / "data/isbi2012/train/labels/03.png"
    content = lost.read_bytes()
    lost.unlink()
    assert isbi2012.prepare(tmp_path / "data", stacks).fresh and lost.read_bytes() == content


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("train-labels.tif", np.full((6, 10, 12), 7, np.uint8), r"train-labels\.tif holds the values \[7\]"),
        ("train-labels.tif", np.zeros((5, 10, 12), np.uint8), r"train-labels\.tif: a uint8 array of \(5, 10, 12\)"),
        ("train-volume.tif", np.zeros((10, 12), np.uint8), r"train-volume\.tif: a uint8 array of \(10, 12\)"),
        ("train-volume.tif", None, r"train-volume\.tif is not in the source: give --source.*imagej\.net"),
    ],
)
def test_isbi2012_refuses_other_stacks(
    tmp_path: Path, stacks: Path, name: str, array: np.ndarray | None, message: str
) -> None:
    (stacks / name).unlink()
    if array is not None:
        tifffile.imwrite(stacks / name, array)
    with pytest.raises(UserError, match=message):
        isbi2012.prepare(tmp_path / "data", stacks)
    assert not (tmp_path / "data/isbi2012/train").exists()


# Data Science Bowl 2018


@pytest.fixture
def stage1(tmp_path: Path) -> Path:
    """20 images: nucleus a and b touch and overlap in one pixel; images 3 and 4 are grey and RGBA."""
    source = tmp_path / "stage1_train"
    for i in range(20):
        base = source / f"id{i:02d}"
        for kind in ("images", "masks"):
            (base / kind).mkdir(parents=True)
        channels = {3: (), 4: (4,)}.get(i, (3,))
        Image.fromarray(noise(9, 12, *channels)).save(base / "images" / f"id{i:02d}.png")
        for name, columns in (("a", slice(1, 5)), ("b", slice(4, 8)), ("c", slice(10, 12))):
            mask = np.zeros((9, 12), np.uint8)
            mask[2:6, columns] = 255
            Image.fromarray(mask).save(base / "masks" / f"{name}.png")
    return source


def test_dsb2018_makes_labels_instances_and_panoptic_from_masks(tmp_path: Path, stage1: Path) -> None:
    before = tree_of(stage1)
    report = dsb2018.prepare(tmp_path / "data", stage1)
    assert report.lines == ["dsb2018_*_train: 18 images", "dsb2018_*_val: 2 images"]
    assert tree_of(stage1) == before
    register_all(tmp_path / "data")
    train, val = ({r["image_id"] for r in DatasetCatalog.get(f"dsb2018_sem_seg_{s}")} for s in ("train", "val"))
    assert not train & val and train | val == {f"id{i:02d}" for i in range(20)}
    expected = np.zeros((9, 12), int)
    expected[2:6, 1:5], expected[2:6, 5:8], expected[2:6, 10:12] = 1, 2, 3
    for split, names in (("train", train), ("val", val)):
        for record in DatasetCatalog.get(f"dsb2018_sem_seg_{split}"):
            assert np.array_equal(read_label(record["sem_seg_file_name"]), expected)
        for task in ("instances", "panoptic"):
            records = DatasetCatalog.get(f"dsb2018_{task}_{split}")
            assert {Path(r["file_name"]).stem for r in records} == names
            for record in records:
                masks = [mask_util.decode(a["segmentation"]) for a in record["annotations"]]
                assert np.array_equal(masks, [expected == k for k in (1, 2, 3)])
    annotations = json.loads((tmp_path / "data/dsb2018/instances_val_rle.json").read_text())["annotations"]
    assert {a["area"] for a in annotations} == {16, 12, 8}
    assert not dsb2018.prepare(tmp_path / "data", stage1).fresh and not dsb2018.prepare(tmp_path / "data").fresh


def test_dsb2018_splits_alike_on_every_machine_and_from_an_archive(tmp_path: Path, stage1: Path) -> None:
    dsb2018.prepare(tmp_path / "one", stage1)
    dsb2018.prepare(tmp_path / "two", zipped(stage1))
    assert tree_of(tmp_path / "one") == tree_of(tmp_path / "two")
    assert [p.stem for p in sorted((tmp_path / "one/dsb2018/val/images").iterdir())] == ["id12", "id13"]


def test_dsb2018_derives_beside_a_tree_that_is_there_and_leaves_that_as_it_was(tmp_path: Path, stage1: Path) -> None:
    dsb2018.prepare(tmp_path / "data", stage1)
    shutil.rmtree(tmp_path / "data/dsb2018_panoptic")
    before = tree_of(tmp_path / "data/dsb2018")
    assert dsb2018.prepare(tmp_path / "data").fresh
    assert tree_of(tmp_path / "data/dsb2018") == before
    (tmp_path / "data/dsb2018_panoptic/instances_val.json").unlink()
    assert dsb2018.prepare(tmp_path / "data").fresh
    assert (tmp_path / "data/dsb2018_panoptic/instances_val.json").exists()


def test_dsb2018_names_a_mask_of_another_size(tmp_path: Path, stage1: Path) -> None:
    Image.fromarray(np.zeros((9, 11), np.uint8)).save(stage1 / "id07/masks/b.png")
    with pytest.raises(UserError, match=r"id07/masks/b\.png is \(9, 11\), but its image \(9, 12\)"):
        dsb2018.prepare(tmp_path / "data", stage1)


# ISPRS Potsdam


@pytest.fixture
def orthophotos(tmp_path: Path) -> Path:
    """A training and a test area of 50x70 pixels; test labels also without boundaries."""
    source = tmp_path / "isprs"
    for folder in ("2_Ortho_RGB", "5_Labels"):
        (source / folder).mkdir(parents=True)
    colors = np.array([*potsdam_set.CLASSES.values(), (0, 0, 0)], np.uint8)
    for area, compression in (("2_10", None), ("2_13", "zlib")):
        stem = f"top_potsdam_{area}"
        tifffile.imwrite(source / "2_Ortho_RGB" / f"{stem}_RGB.tif", noise(50, 70, 3), compression=compression)
        ids = RNG.integers(0, 6, (50, 70))
        tifffile.imwrite(source / "5_Labels" / f"{stem}_label.tif", colors[ids], compression=compression)
        eroded = np.where(RNG.random((50, 70)) < 0.3, 6, ids)
        tifffile.imwrite(source / "5_Labels" / f"{stem}_label_noBoundary.tif", colors[eroded])
    return source


def assembled(name: str, kind: str) -> np.ndarray:
    """The 50x70 area from its crops; every pixel must be given, and alike where crops overlap."""
    whole = np.full((50, 70), -1)
    for record in DatasetCatalog.get(name):
        top, left = (int(n) for n in Path(record["file_name"]).stem.split("_")[2:])
        crop = (
            read_label(record["sem_seg_file_name"])
            if kind == "label"
            else read_image(record["file_name"], "RGB")[..., 0]
        )
        part = whole[top : top + crop.shape[0], left : left + crop.shape[1]]
        assert ((part == -1) | (part == crop)).all()
        part[:] = crop
    assert (whole >= 0).all()
    return whole


@pytest.mark.parametrize("overlap", [0, 8])
def test_potsdam_crops_cover_each_area_with_the_ids_of_its_colours(
    tmp_path: Path, orthophotos: Path, overlap: int
) -> None:
    before = tree_of(orthophotos)
    report = potsdam.prepare(tmp_path / "data", orthophotos, tile=32, overlap=overlap)
    assert report.fresh and tree_of(orthophotos) == before
    register_all(tmp_path / "data")
    colors = np.array([*potsdam_set.CLASSES.values()], np.uint8)
    for name, area, kind in (
        ("potsdam_train", "2_10", "label"),
        ("potsdam_test", "2_13", "label"),
        ("potsdam_test_eroded", "2_13", "label_noBoundary"),
    ):
        rgb = tifffile.imread(orthophotos / "5_Labels" / f"top_potsdam_{area}_{kind}.tif")
        ids = assembled(name, "label")
        assert np.array_equal(ids == 255, (rgb == 0).all(axis=2))
        assert np.array_equal(colors[ids[ids < 255]], rgb[ids < 255])
        image = tifffile.imread(orthophotos / "2_Ortho_RGB" / f"top_potsdam_{area}_RGB.tif")
        assert np.array_equal(assembled(name, "image"), image[..., 0])
    crops = {split: DatasetCatalog.get(f"potsdam_{split}") for split in ("train", "test")}
    assert sum(r["height"] * r["width"] for r in crops["test"]) == 50 * 70  # each pixel once
    assert (sum(r["height"] * r["width"] for r in crops["train"]) > 50 * 70) == (overlap > 0)
    assert report.lines == [
        f"potsdam_train: {len(crops['train'])} crops of 1 of 24 areas",
        "potsdam_test: 6 crops of 1 of 14 areas",
    ]
    assert not potsdam.prepare(tmp_path / "data", orthophotos, tile=32, overlap=overlap).fresh


def test_potsdam_refuses_to_mix_crops_of_two_settings(tmp_path: Path, orthophotos: Path) -> None:
    potsdam.prepare(tmp_path / "data", orthophotos, tile=32)
    with pytest.raises(UserError, match=r'potsdam was made with \{"tile": 32.*move it away'):
        potsdam.prepare(tmp_path / "data", orthophotos, tile=64)
    with pytest.raises(UserError, match=r"--tile 32 --overlap 32 .*the overlap is less than the tile"):
        potsdam.prepare(tmp_path / "data", orthophotos, tile=32, overlap=32)


def test_potsdam_takes_nearly_pure_colours_and_names_others() -> None:
    near = np.array([[[252, 255, 0], [0, 3, 250]]], np.uint8)
    assert potsdam.to_ids(near, "x").tolist() == [[4, 1]]
    for wrong in ((255, 0, 255), (128, 128, 128), (255, 100, 0)):
        with pytest.raises(UserError, match=rf"^top\.tif holds the colours \[\[{', '.join(map(str, wrong))}\]\]"):
            potsdam.to_ids(np.array([[wrong, (0, 0, 255)]], np.uint8), "top.tif")


def test_potsdam_reads_lzw_and_names_a_damaged_file(tmp_path: Path, orthophotos: Path) -> None:
    file = orthophotos / "2_Ortho_RGB/top_potsdam_2_13_RGB.tif"
    pixels = tifffile.imread(file)
    Image.fromarray(pixels).save(file, compression="tiff_lzw")
    potsdam.prepare(tmp_path / "data", orthophotos, tile=64)
    assert np.array_equal(read_image(tmp_path / "data/potsdam/test/images/2_13_0000_0000.png", "RGB"), pixels[:64, :64])
    Image.fromarray(pixels).save(file, compression="tiff_lzw")
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"top_potsdam_2_13_RGB\.tif"):
        potsdam.prepare(tmp_path / "other", orthophotos, tile=64)
    file.write_bytes(b"no tiff at all")
    with pytest.raises(UserError, match=r"top_potsdam_2_13_RGB\.tif: "):
        potsdam.prepare(tmp_path / "third", orthophotos, tile=64)
    assert not (tmp_path / "third/potsdam/tiles.json").exists()


def test_potsdam_names_the_partner_that_is_not_there(tmp_path: Path, orthophotos: Path) -> None:
    (orthophotos / "5_Labels/top_potsdam_2_10_label.tif").unlink()
    with pytest.raises(UserError, match=r"top_potsdam_2_10_label\.tif is not in the source, but its partner is"):
        potsdam.prepare(tmp_path / "data", orthophotos)
    with pytest.raises(UserError, match=r"top_potsdam_2_10_IRRG\.tif is not|top_potsdam_2_13_IRRG\.tif is not"):
        potsdam.prepare(tmp_path / "other", orthophotos, bands="IRRG")


# Aerial imagery of Dubai


@pytest.fixture
def tiles(tmp_path: Path) -> Path:
    """Two tiles of five parts; the second tile's masks have a palette."""
    source = tmp_path / "archive" / "Semantic segmentation dataset"
    colors = np.array([*dubai_set.CLASSES.values(), *dubai_set.VOID], np.uint8)
    for tile in (1, 2):
        for kind in ("images", "masks"):
            (source / f"Tile {tile}" / kind).mkdir(parents=True)
        for part in range(1, 6):
            stem = f"image_part_{part:03d}"
            Image.fromarray(noise(7, 9, 3)).save(source / f"Tile {tile}" / "images" / f"{stem}.jpg")
            mask = Image.fromarray(colors[np.resize(np.arange(7), (7, 9))])
            (mask if tile == 1 else mask.quantize(8)).save(source / f"Tile {tile}" / "masks" / f"{stem}.png")
    return source.parent


def test_aerial_dubai_turns_colours_into_ids_and_holds_out_a_fifth(tmp_path: Path, tiles: Path) -> None:
    before = tree_of(tiles)
    report = aerial_dubai.prepare(tmp_path / "data", tiles)
    assert report.lines == ["aerial_dubai_train: 8 images", "aerial_dubai_val: 2 images"]
    assert tree_of(tiles) == before
    register_all(tmp_path / "data")
    records = [r for split in ("train", "val") for r in DatasetCatalog.get(f"aerial_dubai_{split}")]
    assert {r["image_id"] for r in records} == {f"tile{t}_part_{p:03d}" for t in (1, 2) for p in range(1, 6)}
    expected = np.array([0, 1, 2, 3, 4, 255, 255])[np.resize(np.arange(7), (7, 9))]
    for record in records:
        assert np.array_equal(read_label(record["sem_seg_file_name"]), expected)
        tile, part = record["image_id"][4], record["image_id"][-3:]
        source = next(tiles.rglob(f"Tile {tile}/images/image_part_{part}.jpg"))
        assert Path(record["file_name"]).read_bytes() == source.read_bytes()
    assert not aerial_dubai.prepare(tmp_path / "data", zipped(tiles)).fresh


def test_aerial_dubai_names_an_unknown_colour_and_goes_on_once_it_is_mended(tmp_path: Path, tiles: Path) -> None:
    mask = next(tiles.rglob("Tile 1/masks/image_part_002.png"))
    good = mask.read_bytes()
    Image.fromarray(np.full((7, 9, 3), 1, np.uint8)).save(mask)
    with pytest.raises(UserError, match=r"Tile 1/masks/image_part_002\.png holds the colours #010101"):
        aerial_dubai.prepare(tmp_path / "data", tiles)
    mask.write_bytes(good)
    assert aerial_dubai.prepare(tmp_path / "data", tiles).lines[0] == "aerial_dubai_train: 8 images"
    mask.unlink()
    with pytest.raises(UserError, match=r"image_part_002\.jpg: no mask"):
        aerial_dubai.prepare(tmp_path / "other", tiles)


# PASCAL VOC 2012


@pytest.fixture
def voc_root(tmp_path: Path) -> Path:
    """VOC2012 with two training images and one for validation; each has a person and a cow."""
    base = tmp_path / "data" / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "SegmentationObject", "ImageSets/Segmentation"):
        (base / folder).mkdir(parents=True)
    classes, objects = np.zeros((8, 10), int), np.zeros((8, 10), int)
    classes[1:4, 1:4], objects[1:4, 1:4] = 15, 1
    classes[4:7, 5:9], objects[4:7, 5:9] = 10, 2
    classes[3], objects[3] = 255, 255
    for split, names in (("train", ["v1", "v2"]), ("val", ["v3"])):
        (base / "ImageSets/Segmentation" / f"{split}.txt").write_text("\n".join(names))
        for name in names:
            write_label(base / "SegmentationClass" / f"{name}.png", classes, palette(256))
            write_label(base / "SegmentationObject" / f"{name}.png", objects, palette(256))
    for name in ("v1", "v2", "v3", "s1", "s2"):
        Image.fromarray(noise(8, 10, 3)).save(base / "JPEGImages" / f"{name}.jpg")
    return tmp_path / "data"


@pytest.fixture
def sbd(tmp_path: Path) -> Path:
    """SBD has s1 and s2, and v1 and v3 too, with labels of its own."""
    base = tmp_path / "benchmark_RELEASE" / "dataset"
    (base / "cls").mkdir(parents=True)
    for i, name in enumerate(("s1", "s2", "v1", "v3"), 3):
        savemat(base / "cls" / f"{name}.mat", {"GTcls": {"Segmentation": np.full((8, 10), i, np.uint8)}})
    (base / "train.txt").write_text("s1\nv3\n")
    (base / "val.txt").write_text("s2\nv1\n")
    return base.parent


@pytest.mark.parametrize("packed", [False, True])
def test_voc_trainaug_is_both_sets_less_validation_with_vocs_own_labels_first(
    tmp_path: Path, voc_root: Path, sbd: Path, packed: bool
) -> None:
    before = tree_of(voc_root)
    report = voc.prepare(voc_root, zipped(sbd) if packed else sbd)
    assert "voc_sem_seg_trainaug: 4 images" in report.lines
    after = tree_of(voc_root)
    assert {name: after[name] for name in before} == before
    register_all(voc_root)
    labels = {r["image_id"]: read_label(r["sem_seg_file_name"]) for r in DatasetCatalog.get("voc_sem_seg_trainaug")}
    assert list(labels) == ["s1", "s2", "v1", "v2"]
    assert (labels["s1"] == 3).all() and (labels["s2"] == 4).all()
    own = read_label(voc_root / "VOC2012/SegmentationClass/v1.png")
    assert np.array_equal(labels["v1"], own) and np.array_equal(labels["v2"], own)
    assert not voc.prepare(voc_root, sbd).fresh


def test_voc_instances_leave_void_out_and_take_the_class_of_their_pixels(voc_root: Path) -> None:
    report = voc.prepare(voc_root)
    assert report.lines == [
        "voc_sem_seg_train, voc_instances_train, voc_panoptic_train: 2 images",
        "voc_sem_seg_val, voc_instances_val, voc_panoptic_val: 1 images",
    ]
    content = json.loads((voc_root / "VOC2012/instances_train.json").read_text())
    person, cow = (a for a in content["annotations"] if a["image_id"] == 1)
    assert (person["category_id"], person["area"], person["bbox"]) == (15, 6, [1, 1, 3, 2])
    assert (cow["category_id"], cow["area"], cow["bbox"]) == (10, 12, [5, 4, 4, 3])
    assert mask_util.area(person["segmentation"]) == 6
    assert [c["name"] for c in content["categories"]][14] == "person" and len(content["categories"]) == 20
    assert len({a["id"] for a in content["annotations"]}) == len(content["annotations"]) == 4


def test_vocs_panoptic_maps_have_objects_as_things_on_the_background_and_leave_void_out(voc_root: Path) -> None:
    voc.prepare(voc_root)
    register_all(voc_root)
    objects = read_label(voc_root / "VOC2012/SegmentationObject/v3.png")
    (record,) = DatasetCatalog.get("voc_panoptic_val")
    expected = np.where(objects == 255, 0, np.where(objects == 0, 3, objects))
    ids = read_panoptic_ids(record["pan_seg_file_name"])
    assert np.array_equal(ids, expected)
    listed = [(s["id"], s["category_id"], s["isthing"], s["area"]) for s in record["segments_info"]]
    assert listed == [(1, 14, True, 6), (2, 9, True, 12), (3, 0, False, 52)]
    evaluator = PanopticEvaluator("voc_panoptic_val")
    evaluator.process([record], [{"panoptic_seg": (torch.from_numpy(ids), record["segments_info"])}])
    scores = evaluator.evaluate()["panoptic_seg"]
    assert scores["PQ"] == scores["PQ_th"] == scores["PQ_st"] == scores["PQ-person"] == scores["PQ-background"] == 100
    assert not voc.prepare(voc_root).fresh


def test_voc_is_checked_until_its_instances_are_made(voc_root: Path) -> None:
    label = voc_root / "VOC2012/SegmentationClass/v1.png"
    good = label.read_bytes()
    write_label(label, np.full_like(read_label(label), 60), palette(256))
    for _ in range(2):
        with pytest.raises(UserError, match=r"v1\.png: label ids 60"):
            voc.prepare(voc_root)
    label.write_bytes(good)
    assert voc.prepare(voc_root).fresh


def test_voc_says_what_is_wrong(tmp_path: Path, voc_root: Path, sbd: Path) -> None:
    with pytest.raises(
        UserError, match=r"train\.txt or val\.txt not found: download VOCtrainval_11-May-2012\.tar from"
    ):
        voc.prepare(tmp_path / "none")
    savemat(sbd / "dataset/cls/s2.mat", {"GTcls": {"Segmentation": np.full((8, 10), 21, np.uint8)}})
    with pytest.raises(UserError, match=r"s2\.mat: holds ids other than 0\.\.20 and 255"):
        voc.prepare(voc_root, sbd)
    (sbd / "dataset/cls/s2.mat").write_bytes(b"no mat")
    with pytest.raises(UserError, match=r"s2\.mat: no GTcls\.Segmentation"):
        voc.prepare(voc_root, sbd)
    assert not (voc_root / "VOC2012/ImageSets/Segmentation/trainaug.txt").exists()
    (sbd / "dataset/val.txt").unlink()
    with pytest.raises(UserError, match=r"benchmark_RELEASE holds no dataset/cls beside train\.txt and val\.txt"):
        voc.prepare(voc_root, sbd)
    objects = read_label(voc_root / "VOC2012/SegmentationObject/v3.png")
    objects[7, 9] = 3
    write_label(voc_root / "VOC2012/SegmentationObject/v3.png", objects, palette(256))
    with pytest.raises(UserError, match=r"SegmentationObject/v3\.png: object 3 lies on no class"):
        voc.prepare(voc_root)


# COCO panoptic


@pytest.fixture
def panoptic(tmp_path: Path) -> Path:
    """One image: a person, two kinds of stuff (the first and the last), and void."""
    base = tmp_path / "data" / "coco"
    (base / "annotations").mkdir(parents=True)
    (base / "panoptic_val2017").mkdir()
    ids = np.array([[0, 1000, 1000, 70000], [0, 2, 2, 70000]])
    rgb = (ids[..., None] >> np.array([0, 8, 16]) & 255).astype(np.uint8)
    Image.fromarray(rgb).save(base / "panoptic_val2017" / "000000000001.png")
    segments = [{"id": 1000, "category_id": 1}, {"id": 70000, "category_id": 92}, {"id": 2, "category_id": 200}]
    content = {"annotations": [{"image_id": 1, "file_name": "000000000001.png", "segments_info": segments}]}
    (base / "annotations/panoptic_val2017.json").write_text(json.dumps(content))
    return base


def test_coco_makes_stuff_maps_of_things_0_stuff_1_to_53_and_void(tmp_path: Path, panoptic: Path) -> None:
    report = coco.prepare(tmp_path / "data")
    assert report.fresh and report.lines == ["coco_2017_val_panoptic_stuffonly, _separated: 1 images"]
    label = read_label(panoptic / "panoptic_stuff_val2017/000000000001.png", num_classes=54)
    assert label.tolist() == [[255, 0, 0, 1], [255, 53, 53, 1]]
    assert not coco.prepare(tmp_path / "data").fresh


def test_coco_says_what_is_wrong(tmp_path: Path, panoptic: Path) -> None:
    with pytest.raises(UserError, match=r"holds no annotations with their images: download .*val2017\.zip"):
        coco.prepare(tmp_path / "none")
    listed = panoptic / "annotations/panoptic_val2017.json"
    whole = listed.read_text()
    listed.write_text(whole.replace('"id": 2,', '"id": 3,'))
    with pytest.raises(UserError, match=r"000000000001\.png: segment 2 is not in its JSON file"):
        coco.prepare(tmp_path / "data")
    listed.write_text(whole.replace('"category_id": 200', '"category_id": 12'))
    with pytest.raises(UserError, match=r"panoptic_val2017\.json is no COCO panoptic file: KeyError\(12\)"):
        coco.prepare(tmp_path / "data")
    shutil.rmtree(panoptic / "panoptic_val2017")
    listed.write_text(whole)
    with pytest.raises(UserError, match=r"coco/panoptic_val2017 not found: download panoptic_annotations"):
        coco.prepare(tmp_path / "data")


@pytest.mark.parametrize("name", ["isbi2012", "dsb2018", "potsdam", "aerial_dubai"])
def test_without_data_or_source_the_error_says_where_to_get_them(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=rf"{name} holds no .*: give --source DIR, .*\.(net|com|org)"):
        PREPARE[name](tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match=r"gone\.zip: no such file or folder"):
        PREPARE[name](tmp_path, tmp_path / "gone.zip")


@pytest.mark.parametrize("name", ["isbi2012", "dsb2018", "potsdam", "aerial_dubai"])
def test_a_source_without_the_data_names_the_expected_layout(
    tmp_path: Path, name: str, write_pair: Callable[..., None]
) -> None:
    write_pair(tmp_path / "source" / "a.png", tmp_path / "source" / "b.png", [0])
    with pytest.raises(UserError, match=r"give --source DIR"):
        PREPARE[name](tmp_path / "data", tmp_path / "source")
