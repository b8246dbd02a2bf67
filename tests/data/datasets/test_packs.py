"""Genuine images, where they are there: every label reads in range, every set trains and is scored."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from seg_ext.cli.main import main
from seg_ext.data.augmentation import RandomScaleCrop
from seg_ext.data.datasets import data_root, register_all
from seg_ext.data.datasets.coco_instances import register_coco_instances
from seg_ext.data.label_io import read_record_label
from seg_ext.data.mapper import SegMapper
from seg_ext.data.prepare import dsb2018

REAL = data_root().absolute()
COCO = {"pack_coco_train": "train2017", "pack_coco_val": "val2017"}

SEMANTIC = {  # the images there are; how many are read
    "camvid_trainval": (468, 20),
    "camvid_test": (233, 20),
    "isbi2012_train": (20, 1),
    "isbi2012_val": (4, 1),
    "dsb2018_sem_seg_train": (122, 1),
    "dsb2018_sem_seg_val": (30, 1),
    "aerial_dubai_train": (46, 8),
    "aerial_dubai_val": (12, 4),
    "voc_sem_seg_train": (2, 1),
    "voc_sem_seg_val": (4, 1),
    "ade20k_150_val": (3, 1),
}
FOLDERS = {"voc": "VOC2012", "ade20k": "ADEChallengeData2016", "aerial": "aerial_dubai", "pack": "coco"}


def require(name: str) -> Path:
    """The pack of a data set's name; the test is skipped without it."""
    first = name.split("_")[0]
    pack = REAL / FOLDERS.get(first, first)
    if not pack.is_dir():
        pytest.skip(f"{pack} is not there (DETECTRON2_DATASETS)")
    return pack


@pytest.fixture
def root(tmp_path: Path, restored_catalogs: None) -> Iterator[Path]:
    """An empty root of data sets, of which all names are registered."""
    register_all(tmp_path)
    yield tmp_path
    for name in (*COCO, "own_panoptic_train", "own_panoptic_val"):
        if name in DatasetCatalog.list():
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def small_copy(pack: Path, root: Path, count: int = 6) -> None:
    """The first images of each folder of a pack, and all its lists, in the same layout."""
    for folder in [pack, *(p for p in sorted(pack.rglob("*")) if p.is_dir())]:
        to = root / folder.relative_to(pack.parent)
        to.mkdir(parents=True, exist_ok=True)
        files = [f for f in sorted(folder.iterdir()) if f.is_file() and f.suffix != ".json"]
        for file in [f for f in files if f.suffix == ".txt"] + [f for f in files if f.suffix in (".png", ".jpg")][
            :count
        ]:
            shutil.copyfile(file, to / file.name)


def small_coco(root: Path, count: int = 4) -> None:
    """Registers the images of COCO with the most annotations, a few of each split."""
    for name, split in COCO.items():
        content = json.loads((REAL / "coco/annotations" / f"instances_{split}.json").read_text())
        images = content["images"][:count]
        kept = {image["id"] for image in images}
        annotations = [a for a in content["annotations"] if a["image_id"] in kept]
        file = root / f"{split}.json"
        file.write_text(json.dumps(content | {"images": images, "annotations": annotations}))
        metadata = MetadataCatalog.get("coco_2017_val")
        register_coco_instances(
            name,
            file,
            REAL / "coco" / split,
            thing_classes=metadata.thing_classes,
            thing_ids=metadata.thing_dataset_id_to_contiguous_id,
            hint="it was written just now",
        )


@pytest.mark.parametrize("name", SEMANTIC)
def test_every_label_of_a_semantic_set_reads_in_range_and_is_mapped(name: str, root: Path) -> None:
    pack = require(name)
    (root / pack.name).symlink_to(pack)
    count, every = SEMANTIC[name]
    records, metadata = DatasetCatalog.get(name), MetadataCatalog.get(name)
    assert len(records) == count
    seen: set[int] = set()
    for record in records[::every]:
        labels = read_record_label(record, metadata, num_classes=len(metadata.stuff_classes))
        assert labels.shape == (record["height"], record["width"])
        seen |= set(labels.ravel()[:: max(1, labels.size // 20000)].tolist())
    assert len(seen - {255}) > 1
    mapper = SegMapper(True, augmentations=[RandomScaleCrop((64, 64))], num_classes=len(metadata.stuff_classes))
    assert mapper(records[0])["sem_seg"].shape == (64, 64)


def test_every_nucleus_is_an_instance_and_a_segment(root: Path) -> None:
    pack = require("dsb2018")
    (root / "dsb2018").symlink_to(pack)
    before = {p: p.stat().st_mtime_ns for p in pack.rglob("*")}
    dsb2018.prepare(root)
    assert before == {p: p.stat().st_mtime_ns for p in pack.rglob("*")}
    for split, (images, nuclei) in {"train": (122, 5543), "val": (30, 918)}.items():
        for task in ("instances", "panoptic"):
            records = DatasetCatalog.get(f"dsb2018_{task}_{split}")
            assert (len(records), sum(len(r["annotations"]) for r in records)) == (images, nuclei)
    mapper = SegMapper(True, augmentations=[RandomScaleCrop((64, 64))], num_classes=2, masks="bitmask")
    assert mapper(records[0])["instances"].gt_masks.tensor.shape[1:] == (64, 64)


def test_every_instance_of_coco_is_read_with_detectron2s_class_names(root: Path) -> None:
    require("pack")
    small_coco(root, count=200)
    counts = {n: (len(r), sum(len(i["annotations"]) for i in r)) for n in COCO for r in (DatasetCatalog.get(n),)}
    assert counts == {"pack_coco_train": (172, 1623), "pack_coco_val": (166, 1452)}
    record = max(DatasetCatalog.get("pack_coco_val"), key=lambda r: len(r["annotations"]))
    mapped = SegMapper(True, augmentations=[], masks="polygon")(record)
    assert len(mapped["instances"]) == sum(not a["iscrowd"] for a in record["annotations"])


def small_stuff(root: Path) -> None:
    """The images of COCO with a map of things and stuff, as the official archives have them."""
    for kind, folder in (("images", "coco/val2017"), ("pixelmaps", "coco/annotations/stuffthingmaps/val2017")):
        shutil.copytree(REAL / "coco/stuffthing_sample" / kind, root / folder, dirs_exist_ok=True)


def panoptic_yaml(root: Path) -> Path:
    """A data.yaml of the panoptic images, one for training and one to be scored on."""
    base = REAL / "coco"
    places = {"panoptic": base / "annotations/panoptic_val2017.json", "panoptic_png": base / "panoptic_val2017"}
    content = {"name": "own_panoptic", "images": base / "val2017", **places, "cache": "derived"}
    for split, stem in (("train", "000000439180"), ("val", "000000039769")):
        (root / f"{split}.txt").write_text(stem)
    (root / "data.yaml").write_text("".join(f"{key}: {value}\n" for key, value in content.items()))
    with (root / "data.yaml").open("a") as file:
        file.write("split: {train: train.txt, val: val.txt}\n")
    return root / "data.yaml"


TINY = (
    "MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64",
    "MODEL.RESNETS.NORM", "GN", "MODEL.SEM_SEG_HEAD.NORM", "GN", "DATALOADER.NUM_WORKERS", "0",
    "SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.BASE_LR", "0.001", "TEST.GALLERY", "0",
    "INPUT.AUGMENTATIONS", "[{'NAME': 'RandomScaleCrop', 'size': [96, 96], 'scale': [0.5, 1.0]}]",
    "INPUT.MIN_SIZE_TEST", "96",
)  # fmt: skip
DECODER = ("MODEL.SEM_SEG_HEAD.DECODER.NAME", "semantic_fpn")
DETECTOR = (
    "MODEL.FPN.OUT_CHANNELS", "32", "MODEL.FPN.NORM", "GN", "MODEL.ROI_BOX_HEAD.FC_DIM", "32",
    "MODEL.ROI_MASK_HEAD.CONV_DIM", "32", "MODEL.ROI_MASK_HEAD.NUM_CONV", "1",
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN", "100", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "50", "MODEL.RPN.PRE_NMS_TOPK_TEST", "100",
    "MODEL.RPN.POST_NMS_TOPK_TEST", "50", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "16",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "TEST.DETECTIONS_PER_IMAGE", "20",
)  # fmt: skip
RUNS = {  # train, test, semantic and thing classes
    "camvid": ("camvid_train", "camvid_test", 11, 0),
    "isbi2012": ("isbi2012_train", "isbi2012_val", 2, 0),
    "dsb2018_sem_seg": ("dsb2018_sem_seg_train", "dsb2018_sem_seg_val", 2, 0),
    "dsb2018_instances": ("dsb2018_instances_train", "dsb2018_instances_val", 0, 1),
    "dsb2018_panoptic": ("dsb2018_panoptic_train", "dsb2018_panoptic_val", 2, 1),
    "pack_coco": ("pack_coco_train", "pack_coco_val", 0, 80),
    "voc": ("voc_sem_seg_train", "voc_sem_seg_val", 21, 0),
    "aerial_dubai": ("aerial_dubai_train", "aerial_dubai_val", 5, 0),
    "ade20k": ("ade20k_150_val", "ade20k_150_val", 150, 0),
    "pack_stuff": ("coco_stuff_171_val", "coco_stuff_171_val", 171, 0),
    "pack_panoptic": ("own_panoptic_train", "own_panoptic_val", 133, 80),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_model_trains_two_iterations_and_is_scored(name: str, root: Path) -> None:
    pack = require(name)
    if name in ("pack_coco", "pack_stuff"):
        {"pack_coco": small_coco, "pack_stuff": small_stuff}[name](root)
    elif name != "pack_panoptic":
        small_copy(pack, root)
    if name.startswith("dsb2018"):
        dsb2018.prepare(root)
    train, test, stuff, things = RUNS[name]
    base = "Base-Panoptic.yaml" if things else "Base-Semantic.yaml"
    sets = ["DATASETS.TRAIN", f"('{train}',)", "DATASETS.TEST", f"('{test}',)"]
    data = ["--data", str(panoptic_yaml(root))] if name == "pack_panoptic" else sets
    options = [*data, "OUTPUT_DIR", str(root / "run"), *TINY]
    options += [*DECODER, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", str(stuff)] if stuff else ["MODEL.SEM_SEG_HEAD.NAME", ""]
    options += [*DETECTOR, "MODEL.ROI_HEADS.NUM_CLASSES", str(things)] if things else []
    assert main(["train", "--config-file", base, *options]) == 0
    results = json.loads((root / "run" / "results.json").read_text())
    assert results.pop("about")["data"][test]["images"] > 0
    semantic = {"sem_seg"} if stuff else set()
    instances = {"bbox", "segm"} if things else set()
    assert set(results) == semantic | instances | ({"panoptic_seg"} if semantic and instances else set())
    headline = {"sem_seg": "mIoU", "bbox": "AP", "segm": "AP", "panoptic_seg": "PQ"}
    for task, scores in results.items():
        assert 0 <= scores[headline[task]] <= 100
    losses = [json.loads(line) for line in (root / "run" / "metrics.json").read_text().splitlines()]
    assert losses and all(math.isfinite(line["total_loss"]) for line in losses if "total_loss" in line)
