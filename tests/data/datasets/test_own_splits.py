"""How your own data are split, and which shapes LabelMe's files may hold."""

from __future__ import annotations

import json
import math
import runpy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from hypothesis import given
from hypothesis import strategies as st

from seg_ext.config import get_cfg
from seg_ext.data.datasets import data_root
from seg_ext.data.datasets.own import read_data_file
from seg_ext.data.datasets.own_register import register_own
from seg_ext.data.datasets.split import choose, choose_by_hash
from seg_ext.data.label_io import read_record_label
from seg_ext.data.mapper import SegMapper
from seg_ext.engine.evaluate import build_evaluators
from seg_ext.errors import UserError

OWN = runpy.run_path(str(Path(__file__).with_name("test_own.py")))
write_tree, derived_below_tmp, masks_of = OWN["write_tree"], OWN["derived_below_tmp"], OWN["masks_of"]
COCO = data_root().absolute() / "coco"

names = st.sets(st.text("abcdefgh0123456789_", min_size=1, max_size=6).map(lambda s: f"{s}.png"), max_size=30)


@given(names, names, st.integers(0, 99))
def test_images_stay_in_their_split_whatever_others_come(some: set[str], more: set[str], seed: int) -> None:
    shares = {"val": 0.3, "test": 0.2}
    for split in ("train", "val", "test"):
        before = choose_by_hash(shares, seed, split, some)
        assert before == choose_by_hash(shares, seed, split, some | more) & some
    parts = [choose_by_hash(shares, seed, split, some) for split in ("train", "val", "test")]
    assert sum(map(len, parts)) == len(some) and set().union(*parts) == some
    assert choose_by_hash({"val": 0.1}, seed, "val", some) <= choose_by_hash({"val": 0.3}, seed, "val", some)


def test_fractions_are_met_and_seeds_differ() -> None:
    many = [f"image_{i}.jpg" for i in range(20000)]
    shares = {"val": 0.2, "test": 0.05}
    counts = {split: len(choose_by_hash(shares, 0, split, many)) / 20000 for split in ("train", "val", "test")}
    assert counts == pytest.approx({"train": 0.75, "val": 0.2, "test": 0.05}, abs=0.01)
    both = choose_by_hash(shares, 0, "val", many) & choose_by_hash(shares, 1, "val", many)
    assert len(both) / 20000 == pytest.approx(0.04, abs=0.01)


def test_a_stem_that_two_images_have_is_no_name(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("b/a\n")
    rule = {"train": str(tmp_path / "list.txt")}
    assert choose("x", rule, "train", ["a.png", "b/a.png"]) == {"b/a.png"}
    with pytest.raises(UserError, match="line 1: no image 'b/a'"):
        choose("x", rule, "train", ["b/a.jpg", "b/a.png"])


def test_a_fraction_that_leaves_no_image_is_an_error() -> None:
    with pytest.raises(UserError, match="data set a_val: seed 3 leaves none of 1 images to val; take another seed"):
        choose("a_val", {"val": 1e-9, "seed": 3}, "val", ["a.png"])


def stems(name: str) -> list[str]:
    return [Path(record["file_name"]).stem for record in DatasetCatalog.get(name)]


def test_fractions_split_every_kind_alike(tmp_path: Path) -> None:
    found = set()
    for kind in ("masks", "coco", "panoptic", "labelme"):
        file = write_tree(tmp_path / kind, kind, split={"val": 0.5, "seed": 1})
        assert register_own(read_data_file(file)) == [f"own_{kind}_train", f"own_{kind}_val"]
        found.add((*stems(f"own_{kind}_train"), "|", *stems(f"own_{kind}_val")))
    assert len(found) == 1 and sorted(x for x in found.pop() if x != "|") == ["s0", "s1", "s2", "s3"]


@pytest.mark.parametrize("kind", ["masks", "coco", "panoptic", "labelme"])
def test_each_split_may_have_its_own_folders(kind: str, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"split": None}
    source = write_tree(tmp_path / "train", kind).parent
    shutil.copytree(source, tmp_path / "test")
    paths = {"masks": "masks", "coco": "instances.json", "panoptic": "panoptic.json", "labelme": "labelme"}
    for key, path in (("images", "images"), (kind, paths[kind])):
        keys[key] = {split: f"../{split}/{path}" for split in ("train", "test")}
    file = write_tree(tmp_path / "top", kind, **keys)
    assert register_own(read_data_file(file)) == [f"own_{kind}_train", f"own_{kind}_test"]
    for split in ("train", "test"):
        records = DatasetCatalog.get(f"own_{kind}_{split}")
        assert len(records) == 4 and all(f"/{split}/images/" in r["file_name"].replace("../", "") for r in records)


def test_a_list_takes_stems_and_file_names_and_skips_empty_lines(tmp_path: Path) -> None:
    file = write_tree(tmp_path, "masks")
    (tmp_path / "train.txt").write_text("\ns2.png\n s0 \n\n")
    register_own(read_data_file(file))
    assert stems("own_masks_train") == ["s0", "s2"]
    (tmp_path / "train.txt").write_text("s0\n\nno such")
    with pytest.raises(UserError, match=r"train.txt, line 3: no image 'no such'"):
        stems("own_masks_train")
    (tmp_path / "train.txt").write_text("s0\ns3")
    with pytest.raises(UserError, match=r"s3.png is listed in both .*train.txt and .*val.txt"):
        stems("own_masks_train")
    (tmp_path / "train.txt").write_text("")
    with pytest.raises(UserError, match="data set own_masks_train holds no images"):
        stems("own_masks_train")


def test_images_that_nobody_has_annotated_in_labelme_are_left_out(tmp_path: Path) -> None:
    file = write_tree(tmp_path, "labelme", split={"val": 0.01, "seed": 0})
    (tmp_path / "labelme/s1.json").unlink()
    register_own(read_data_file(file))
    assert stems("own_labelme_train") == ["s0", "s2", "s3"]


def test_labelmes_files_may_lie_beside_their_images(tmp_path: Path) -> None:
    file = write_tree(tmp_path, "labelme", images=None, labelme="images")
    for json_file in (tmp_path / "labelme").iterdir():
        json_file.rename(tmp_path / "images" / json_file.name)
    register_own(read_data_file(file))
    assert stems("own_labelme_train") == ["s0", "s1", "s2"]


def test_circles_have_their_area_and_groups_are_one_instance(tmp_path: Path) -> None:
    file = write_tree(tmp_path, "labelme")
    shapes = [
        {"label": "tile", "shape_type": "circle", "points": [[24, 24], [24, 34]]},
        {"label": "box", "shape_type": "rectangle", "group_id": 4, "points": [[40, 2], [50, 8]]},
        {"label": "box", "shape_type": "polygon", "group_id": 4, "points": [[40, 40], [50, 40], [50, 44], [40, 44]]},
        {"label": "tile", "shape_type": "rectangle", "group_id": 4, "points": [[2, 40], [6, 44]]},
    ]
    (tmp_path / "labelme/s0.json").write_text(json.dumps({"shapes": shapes, "imageData": None}))
    register_own(read_data_file(file))
    record = DatasetCatalog.get("own_labelme_train")[0]
    found = masks_of(record)
    assert [label for label, _ in found] == [1, 0, 1]
    rows, columns = np.mgrid[:48, :56] + 0.5
    disc = np.hypot(rows - 24, columns - 24) < 10
    assert (found[0][1] ^ disc).sum() < 20 and found[0][1].sum() == pytest.approx(100 * math.pi, rel=0.05)
    assert found[1][1].sum() == 10 * 6 + 10 * 4 and record["annotations"][1]["bbox"] == [40, 2, 50, 44]
    assert (read_record_label(record)[40:44, 40:50] == 1).all()


@pytest.mark.skipif(not COCO.is_dir(), reason=f"{COCO} is not there (DETECTRON2_DATASETS)")
def test_genuine_panoptic_and_instance_files_of_coco_serve_every_head(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    panoptic = COCO / "annotations/panoptic_val2017.json"
    listed = [image["file_name"] for image in json.loads(panoptic.read_text())["images"]]
    for image in listed:
        (images / image).symlink_to(COCO / "val2017" / image)
    (tmp_path / "all.txt").write_text("\n".join(listed))
    common = "images: images\nsplit: {val: all.txt}\n"
    files = {
        "own_p": f"name: own_p\npanoptic: {panoptic}\npanoptic_png: {COCO / 'panoptic_val2017'}\n",
        "own_i": f"name: own_i\ncoco: {COCO / 'annotations/instances_val2017_panoptic_images.json'}\n",
    }
    classes, covered = {}, {}
    for name, text in files.items():
        (tmp_path / f"{name}.yaml").write_text(text + common)
        register_own(read_data_file(tmp_path / f"{name}.yaml"))
        metadata, records = MetadataCatalog.get(f"{name}_val"), DatasetCatalog.get(f"{name}_val")
        assert len(records) == 2 and len(metadata.thing_classes) == 80
        mapper = SegMapper(True, augmentations=[], num_classes=len(metadata.stuff_classes), masks="bitmask")
        mapped = [mapper(record) for record in records]
        classes[name] = [{metadata.thing_classes[c] for c in m["instances"].gt_classes.tolist()} for m in mapped]
        covered[name] = [np.isin(m["sem_seg"].numpy(), metadata.thing_sem_seg_ids) for m in mapped]
        config = get_cfg()
        config.MODEL.META_ARCHITECTURE, config.MODEL.MASK_ON = "PanopticSegmentor", True
        assert len(build_evaluators(config, f"{name}_val")) == 3
    for fewer, all_of_them in zip(classes["own_p"], classes["own_i"], strict=True):
        assert fewer and fewer <= all_of_them  # what is hidden has no segment
    assert len(MetadataCatalog.get("own_p_val").stuff_classes) == 133
    for one, other in zip(covered["own_p"], covered["own_i"], strict=True):
        assert (one & other).sum() / (one | other).sum() > 0.9
