"""Your own data: one scene says the same in whichever kind of annotation it is given."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as mask_util

from seg_ext.data.datasets.own import read_data_file
from seg_ext.data.datasets.own_register import register_own
from seg_ext.data.label_io import read_panoptic_ids, read_record_label
from seg_ext.data.mapper import SegMapper
from seg_ext.errors import UserError

H, W = 48, 56
CLASSES = ["background", "box", "tile"]
IDS = {0: 3, 1: 5, 2: 9}  # semantic class -> category id, with gaps
COLORS = [[10, 20, 30], [200, 0, 0], [0, 200, 7]]
KINDS = ("masks", "colors", "coco", "panoptic", "labelme")
Box = tuple[int, int, int, int, int]  # class, x, y, width, height
SCENES: list[list[Box]] = [
    [(1, 4, 4, 20, 16), (2, 14, 10, 22, 30)],
    [(2, 30, 6, 20, 20), (1, 2, 20, 24, 24), (1, 26, 28, 18, 16)],
    [(1, 10, 10, 30, 30)],
    [(2, 0, 0, 18, 48), (1, 40, 30, 16, 18)],
]


def painted(scene: Sequence[Box]) -> tuple[np.ndarray, np.ndarray]:
    """(H, W) semantic classes and numbers of the instances, from 1; later ones on top."""
    semantic, number = np.zeros((H, W), np.uint8), np.zeros((H, W), np.int64)
    for i, (label, x, y, w, h) in enumerate(scene, start=1):
        semantic[y : y + h, x : x + w], number[y : y + h, x : x + w] = label, i
    return semantic, number


def write_tree(root: Path, kind: str, scenes: Sequence[Sequence[Box]] = SCENES, **keys: Any) -> Path:
    """Images and annotations of one kind below ``root``, and the data.yaml that names them; the last is val."""
    (root / "images").mkdir(parents=True)
    for i, scene in enumerate(scenes):
        noise = np.random.default_rng(i).integers(0, 50, (H, W, 3), np.uint8)
        image = noise + painted(scene)[0][..., None] * np.array([90, 40, 10], np.uint8)
        Image.fromarray(image).save(root / "images" / f"s{i}.png")
    lists = {"train": range(len(scenes) - 1), "val": [len(scenes) - 1]}
    for split, indices in lists.items():
        (root / f"{split}.txt").write_text("".join(f"s{i}\n" for i in indices))
    content = {"name": f"own_{kind}", "images": "images", "split": {s: f"{s}.txt" for s in lists}}
    content |= WRITERS[kind](root, scenes)
    file = root / "data.yaml"
    file.write_text(yaml.safe_dump({k: v for k, v in (content | keys).items() if v is not None}))
    return file


def write_masks(root: Path, scenes: Sequence[Sequence[Box]]) -> dict[str, Any]:
    (root / "masks").mkdir()
    for i, scene in enumerate(scenes):
        Image.fromarray(painted(scene)[0]).save(root / "masks" / f"s{i}.png")
    return {"masks": "masks", "classes": CLASSES}


def write_colors(root: Path, scenes: Sequence[Sequence[Box]]) -> dict[str, Any]:
    (root / "masks").mkdir()
    for i, scene in enumerate(scenes):
        Image.fromarray(np.array(COLORS, np.uint8)[painted(scene)[0]]).save(root / "masks" / f"s{i}.png")
    return {"masks": "masks", "classes": CLASSES, "label_colors": COLORS}


def write_coco(root: Path, scenes: Sequence[Sequence[Box]]) -> dict[str, Any]:
    annotations = [
        {
            "image_id": image,
            "category_id": IDS[label],
            "bbox": [x, y, w, h],
            "area": w * h,
            "iscrowd": 0,
            "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
        }
        for image, scene in enumerate(scenes)
        for label, x, y, w, h in scene
    ]
    content = {
        "images": [{"id": i, "file_name": f"s{i}.png", "height": H, "width": W} for i in range(len(scenes))],
        "annotations": [{"id": i, **annotation} for i, annotation in enumerate(annotations, start=1)],
        "categories": [{"id": IDS[i], "name": CLASSES[i]} for i in (2, 1)],
    }
    (root / "instances.json").write_text(json.dumps(content))
    return {"coco": "instances.json"}


def write_panoptic(root: Path, scenes: Sequence[Sequence[Box]]) -> dict[str, Any]:
    (root / "panoptic").mkdir()
    listed = []
    for i, scene in enumerate(scenes):
        semantic, number = painted(scene)
        ids = number * 300 + 70000  # all three channels
        rgb = (ids[..., None] >> np.array([0, 8, 16]) & 255).astype(np.uint8)
        Image.fromarray(rgb).save(root / "panoptic" / f"s{i}.png")
        infos = [
            {"id": int(s), "category_id": IDS[int(semantic[ids == s][0])], "area": int((ids == s).sum()), "iscrowd": 0}
            for s in np.unique(ids)
        ]
        listed.append({"image_id": i, "file_name": f"s{i}.png", "segments_info": infos})
    content = {
        "images": [{"id": i, "file_name": f"s{i}.png", "height": H, "width": W} for i in range(len(scenes))],
        "annotations": listed,
        "categories": [{"id": IDS[i], "name": name, "isthing": int(i > 0)} for i, name in enumerate(CLASSES)],
    }
    (root / "panoptic.json").write_text(json.dumps(content))
    return {"panoptic": "panoptic.json"}


def write_labelme(root: Path, scenes: Sequence[Sequence[Box]]) -> dict[str, Any]:
    (root / "labelme").mkdir()
    for i, scene in enumerate(scenes):
        kind = (polygon_shape, rectangle_shape, mask_shape)[i % 3]
        shapes = [{"label": CLASSES[label], "group_id": None, **kind(*box)} for label, *box in scene]
        content = {"shapes": shapes, "imagePath": f"../images/s{i}.png", "imageHeight": H, "imageWidth": W}
        (root / "labelme" / f"s{i}.json").write_text(json.dumps(content))
    return {"labelme": "labelme", "classes": CLASSES[1:]}


def polygon_shape(x: int, y: int, w: int, h: int) -> dict[str, Any]:
    return {"points": [[x, y], [x + w, y], [x + w, y + h], [x, y + h]]}


def rectangle_shape(x: int, y: int, w: int, h: int) -> dict[str, Any]:
    return {"shape_type": "rectangle", "points": [[x + w, y], [x, y + h]]}


def mask_shape(x: int, y: int, w: int, h: int) -> dict[str, Any]:
    return {"shape_type": "mask", "points": [[x, y], [x + w - 1, y + h - 1]], "mask": mask_png(np.ones((h, w), bool))}


def mask_png(mask: np.ndarray) -> str:
    """The mask as LabelMe stores it."""
    file = io.BytesIO()
    Image.fromarray(mask).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


WRITERS = dict(zip(KINDS, (write_masks, write_colors, write_coco, write_panoptic, write_labelme), strict=True))


@pytest.fixture(autouse=True)
def derived_below_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is derived goes below tmp_path, and no data set stays registered."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "root"))
    yield
    for name in [name for name in DatasetCatalog.list() if name.startswith("own_")]:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def records_of(file: Path, split: str = "train", **heads: bool) -> list[dict[str, Any]]:
    entry = read_data_file(file)
    register_own(entry, **heads)
    return DatasetCatalog.get(f"{entry['name']}_{split}")


def masks_of(record: dict[str, Any]) -> list[tuple[int, np.ndarray]]:
    """Class and mask of each instance as far as it is visible, empty ones left out."""
    covered = np.zeros((record["height"], record["width"]), bool)
    found = []
    for annotation in reversed(record["annotations"]):
        shape = annotation["segmentation"]
        rle = mask_util.merge(mask_util.frPyObjects(shape, *covered.shape)) if isinstance(shape, list) else shape
        mask = mask_util.decode(rle).view(bool)
        found.append((annotation["category_id"], mask & ~covered))
        covered |= mask
    return [(label, mask) for label, mask in reversed(found) if mask.any()]


def check_scenes(root: Path, scenes: Sequence[Sequence[Box]]) -> None:
    """Every kind of annotation of these scenes gives the semantic maps and the instances they were painted from."""
    for kind in KINDS:
        records = records_of(write_tree(root / kind, kind, scenes))
        assert [Path(r["file_name"]).stem for r in records] == [f"s{i}" for i in range(len(scenes) - 1)]
        for record, scene in zip(records, scenes, strict=False):
            semantic, number = painted(scene)
            np.testing.assert_array_equal(read_record_label(record, num_classes=3), semantic, err_msg=kind)
            if kind in ("masks", "colors"):
                assert "annotations" not in record
                continue
            expected = {i: number == i for i in range(1, len(scene) + 1) if (number == i).any()}
            found = masks_of(record)
            assert [label for label, _ in found] == [scene[i - 1][0] - 1 for i in expected], kind
            for (_, mask), truth in zip(found, expected.values(), strict=True):
                np.testing.assert_array_equal(mask, truth, err_msg=kind)
            ids = read_panoptic_ids(record["pan_seg_file_name"])
            assert {s["id"] for s in record["segments_info"]} == set(np.unique(ids).tolist())
            for segment in record["segments_info"]:
                inside = set(semantic[ids == segment["id"]].tolist())
                assert inside == {segment["category_id"] + segment["isthing"]}
                assert segment["area"] == (ids == segment["id"]).sum()


def test_one_scene_is_the_same_in_every_kind_of_annotation(tmp_path: Path) -> None:
    check_scenes(tmp_path, SCENES)


boxes = st.tuples(
    st.integers(1, 2), st.integers(0, W - 4), st.integers(0, H - 4), st.integers(1, 30), st.integers(1, 30)
).map(lambda b: (b[0], b[1], b[2], min(b[3], W - b[1]), min(b[4], H - b[2])))


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(boxes, max_size=6), min_size=2, max_size=2))
def test_scenes_of_overlapping_boxes_are_the_same_in_every_kind(tmp_path: Path, scenes: list[list[Box]]) -> None:
    for folder in ("scenes", "root"):
        shutil.rmtree(tmp_path / folder, ignore_errors=True)
    check_scenes(tmp_path / "scenes", scenes)


@pytest.mark.parametrize("kind", ["coco", "panoptic", "labelme"])
def test_metadata_name_semantic_and_instance_classes_alike(kind: str, tmp_path: Path) -> None:
    (record, *_) = records_of(write_tree(tmp_path / kind, kind))
    metadata = MetadataCatalog.get(f"own_{kind}_train")
    assert metadata.evaluator_type == "coco_panoptic_seg"
    assert (metadata.stuff_classes, metadata.thing_classes) == (CLASSES, CLASSES[1:])
    assert metadata.thing_sem_seg_ids == (1, 2) and metadata.thing_colors == metadata.stuff_colors[1:]
    assert Path(metadata.panoptic_root) == Path(record["pan_seg_file_name"]).parent
    listed = json.loads(Path(metadata.panoptic_json).read_text())["annotations"]
    (stored,) = [a for a in listed if str(a["image_id"]) == str(record["image_id"])]
    back = {True: metadata.thing_dataset_id_to_contiguous_id, False: metadata.stuff_dataset_id_to_contiguous_id}
    for info, there in zip(record["segments_info"], stored["segments_info"], strict=True):
        assert back[info["isthing"]][there["category_id"]] == info["category_id"] and info["id"] == there["id"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_mapper_reads_every_kind(kind: str, tmp_path: Path) -> None:
    (record, *_) = records_of(write_tree(tmp_path / kind, kind))
    masks = "bitmask" if "annotations" in record else None
    mapped = SegMapper(True, augmentations=[], num_classes=3, masks=masks)(record)
    np.testing.assert_array_equal(mapped["sem_seg"].numpy(), painted(SCENES[0])[0])
    assert masks is None or mapped["instances"].gt_classes.tolist() == [0, 1]


@pytest.mark.parametrize("kind", ["coco", "panoptic", "labelme"])
def test_only_what_a_head_wants_is_derived(kind: str, tmp_path: Path) -> None:
    file = write_tree(tmp_path / kind, kind)
    heads = {"semantic": True, "instances": False} if kind == "panoptic" else {"semantic": False, "instances": True}
    (record, *_) = records_of(file, **heads)
    assert ("annotations" in record, "sem_seg_file_name" in record) == (heads["instances"], heads["semantic"])
    assert not (tmp_path / "root").exists()
    assert MetadataCatalog.get(f"own_{kind}_train").evaluator_type == (
        "coco_panoptic_seg" if kind == "panoptic" else "coco"
    )


@pytest.mark.parametrize("kind", ["coco", "panoptic", "labelme"])
def test_the_source_is_never_written_to_and_what_is_derived_is_made_once(kind: str, tmp_path: Path) -> None:
    file = write_tree(tmp_path / kind, kind)
    before = {p: p.stat().st_mtime_ns for p in sorted(file.parent.rglob("*"))}
    first = records_of(file)
    made = {p: p.stat().st_mtime_ns for p in sorted((tmp_path / "root").rglob("*")) if p.is_file()}
    assert made and records_of(file) == first
    assert made == {p: p.stat().st_mtime_ns for p in sorted((tmp_path / "root").rglob("*")) if p.is_file()}
    assert before == {p: p.stat().st_mtime_ns for p in sorted(file.parent.rglob("*"))}


@pytest.mark.parametrize("kind", ["coco", "panoptic", "labelme"])
def test_changed_annotations_are_derived_anew(kind: str, tmp_path: Path) -> None:
    file = write_tree(tmp_path / kind, kind, cache="kept")
    records_of(file)
    assert list((file.parent / "kept").glob(f"own_{kind}_train-*/*.json"))
    changed = [[(2, 3, 3, 9, 9)], *SCENES[1:]]
    for path in ("panoptic",) if kind == "panoptic" else ("labelme",) if kind == "labelme" else ():
        shutil.rmtree(file.parent / path)
    WRITERS[kind](file.parent, changed)
    (record, *_) = records_of(file)
    np.testing.assert_array_equal(read_record_label(record), painted(changed[0])[0])
    assert [label for label, _ in masks_of(record)] == [1]


def test_crowds_are_in_the_semantic_map_but_no_instance(tmp_path: Path) -> None:
    for kind in ("coco", "panoptic"):
        file = write_tree(tmp_path / kind, kind)
        path = file.parent / {"coco": "instances.json", "panoptic": "panoptic.json"}[kind]
        content = json.loads(path.read_text())
        annotation = content["annotations"][0]
        (annotation if kind == "coco" else annotation["segments_info"][1])["iscrowd"] = 1
        path.write_text(json.dumps(content))
        (record, *_) = records_of(file)
        mapped = SegMapper(True, augmentations=[], num_classes=3, masks="bitmask")(record)
        np.testing.assert_array_equal(mapped["sem_seg"].numpy(), painted(SCENES[0])[0])
        assert mapped["instances"].gt_classes.tolist() == [1]


def test_a_mask_of_labelme_joins_the_polygons_of_its_group_and_is_cut_off_at_the_border(tmp_path: Path) -> None:
    file = write_tree(tmp_path, "labelme")
    mask = np.random.default_rng(0).random((20, 30)) < 0.5
    content = json.loads((tmp_path / "labelme/s0.json").read_text())
    corner = {"shape_type": "mask", "points": [[40, 35], [69, 54]], "mask": mask_png(mask)}
    turned = {"shape_type": "oriented_rectangle", "points": [[10, 0], [20, 10], [10, 20], [0, 10]]}
    content["shapes"] = [{"label": "box", "group_id": 1, **shape} for shape in (corner, turned)]
    (tmp_path / "labelme/s0.json").write_text(json.dumps(content))
    (annotation,) = records_of(file, semantic=False)[0]["annotations"]
    rows, columns = np.indices((H, W)) + 0.5
    distance = np.abs(columns - 10) + np.abs(rows - 10)
    expected = distance < 10
    expected[35:, 40:] = mask[:13, :16]
    clear = np.abs(distance - 10) > 0.5  # of the diamond's edge
    found = mask_util.decode(annotation["segmentation"]).view(bool)
    assert np.array_equal(found[clear], expected[clear])
    y, x = np.nonzero(found)
    assert annotation["bbox"] == [x.min(), y.min(), x.max() + 1, y.max() + 1]
    mapped = SegMapper(True, augmentations=[], masks="bitmask")(records_of(file, semantic=False)[0])
    assert np.array_equal(mapped["instances"].gt_masks.tensor[0].numpy(), found)


def test_void_of_a_panoptic_map_is_ignored(tmp_path: Path) -> None:
    file = write_tree(tmp_path, "panoptic")
    rgb = np.array(Image.open(tmp_path / "panoptic/s0.png"))
    rgb[40:, 50:] = 0
    Image.fromarray(rgb).save(tmp_path / "panoptic/s0.png")
    label = read_record_label(records_of(file)[0], num_classes=3)
    assert (label[40:, 50:] == 255).all() and (label == 255).sum() == 48


def test_a_category_called_background_does_not_hide_the_rest(tmp_path: Path) -> None:
    file = write_tree(tmp_path, "coco")
    content = json.loads((tmp_path / "instances.json").read_text())
    content["categories"].append({"id": 0, "name": "background"})
    (tmp_path / "instances.json").write_text(json.dumps(content))
    (record, *_) = records_of(file)
    assert MetadataCatalog.get("own_coco_train").stuff_classes == ["no background", "background", "box", "tile"]
    semantic = painted(SCENES[0])[0]
    np.testing.assert_array_equal(read_record_label(record), np.where(semantic, semantic + 1, 0))


def test_an_entry_registers_again_without_its_files(tmp_path: Path) -> None:
    entry = read_data_file(write_tree(tmp_path / "gone", "panoptic"))
    again = yaml.safe_load(yaml.safe_dump(entry))
    shutil.rmtree(tmp_path / "gone")
    assert register_own(again) == ["own_panoptic_train", "own_panoptic_val"]
    assert MetadataCatalog.get("own_panoptic_val").stuff_classes == CLASSES
    with pytest.raises(UserError, match=r"^data set own_panoptic_val: .*panoptic.json not found; check .*data.yaml$"):
        DatasetCatalog.get("own_panoptic_val")
