"""Ground truths derived from instance label maps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from pycocotools import mask as mask_util
from pycocotools.coco import COCO

from seg_ext.data.derive import derive_coco, derive_image
from seg_ext.data.label_io import read_label, read_panoptic_ids
from seg_ext.errors import UserError

LABELS = hnp.arrays(
    np.int32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=8), elements=st.sampled_from([0, 1, 2, 3, 40, 65535])
)


@given(labels=LABELS)
@example(labels=np.zeros((3, 4), np.int32))
@example(labels=np.full((3, 4), 5, np.int32))
@example(labels=np.array([[0, 65535]], np.uint16))
@example(labels=np.arange(600, dtype=np.int32).reshape(20, 30))
@settings(max_examples=150, deadline=None)
def test_every_truth_says_what_the_label_map_says(labels: np.ndarray) -> None:
    derived = derive_image(labels)
    np.testing.assert_array_equal(derived.semantic, labels > 0)
    ids = [int(i) for i in np.unique(labels) if i]
    background = {int(labels.max()) + 1} if (labels == 0).any() else set()
    assert [s["id"] for s in derived.segments] == [*ids, *background]
    assert [s["category_id"] for s in derived.segments] == [1] * len(ids) + [2] * len(background)
    for segment in derived.segments:
        mask = derived.panoptic == segment["id"]
        expected = labels == (segment["id"] if segment["category_id"] == 1 else 0)
        np.testing.assert_array_equal(mask, expected)
        rows, columns = np.nonzero(mask)
        box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
        assert (segment["area"], segment["bbox"], segment["iscrowd"]) == (mask.sum(), box, 0)
    for i, rle in zip(ids, derived.rles, strict=True):
        encoded = mask_util.encode(np.asfortranarray(labels == i))
        assert rle == {"size": list(labels.shape), "counts": encoded["counts"].decode()}


def test_files_agree_with_each_other_and_with_the_label_map(instance_tree: Path) -> None:
    counts = derive_coco(instance_tree, "train", thing_class="cell", stuff_class="glass")
    assert counts == {"images": 2, "instances": 3}
    labels = read_label(instance_tree / "train/labels/a.png")
    np.testing.assert_array_equal(read_label(instance_tree / "train/semantic/a.png"), labels > 0)
    panoptic = read_panoptic_ids(instance_tree / "panoptic_train/a.png")
    np.testing.assert_array_equal(panoptic, np.where(labels > 0, labels, 8))

    instances = COCO(str(instance_tree / "instances_train.json"))
    masks = [instances.annToMask(a) for a in instances.loadAnns(instances.getAnnIds(imgIds=1))]
    np.testing.assert_array_equal(np.stack(masks), [labels == i for i in (1, 2, 7)])
    assert instances.getAnnIds(imgIds=2) == [] and min(instances.getAnnIds()) == 1
    assert instances.loadCats(1)[0]["name"] == "cell"

    content = json.loads((instance_tree / "panoptic_train.json").read_text())
    assert [(c["id"], c["name"], c["isthing"]) for c in content["categories"]] == [(1, "cell", 1), (2, "glass", 0)]
    for annotation in content["annotations"]:
        ids = read_panoptic_ids(instance_tree / "panoptic_train" / annotation["file_name"])
        areas = {s["id"]: s["area"] for s in annotation["segments_info"]}
        assert areas == dict(zip(*(x.tolist() for x in np.unique(ids, return_counts=True)), strict=True))


def test_a_second_run_replaces_the_first_and_leaves_nothing_beside(instance_tree: Path) -> None:
    derive_coco(instance_tree, "train", thing_class="cell")
    before = {p.relative_to(instance_tree): p.read_bytes() for p in instance_tree.rglob("*") if p.is_file()}
    (instance_tree / "train/semantic/stale.png").touch()
    derive_coco(instance_tree, "train", thing_class="cell")
    after = {p.relative_to(instance_tree): p.read_bytes() for p in instance_tree.rglob("*") if p.is_file()}
    assert after == before


def test_a_failure_leaves_the_earlier_truths(instance_tree: Path) -> None:
    derive_coco(instance_tree, "train", thing_class="cell")
    before = (instance_tree / "instances_train.json").read_bytes()
    Image.new("L", (3, 3)).save(instance_tree / "train/labels/b.png")
    with pytest.raises(UserError, match=r"labels/b\.png is 3x3, but .*images/b\.png is 16x12"):
        derive_coco(instance_tree, "train", thing_class="cell")
    assert (instance_tree / "instances_train.json").read_bytes() == before
    assert (instance_tree / "train/semantic/a.png").exists()
    assert not list(instance_tree.glob(".*"))


def test_ids_beyond_a_panoptic_png_are_refused(instance_tree: Path) -> None:
    (instance_tree / "train/labels/b.png").unlink()
    tifffile.imwrite(instance_tree / "train/labels/b.tif", np.full((12, 16), 2**24 - 1, np.int32))
    with pytest.raises(UserError, match=r"b\.tif: id 16777215; a panoptic PNG holds ids below 16777215"):
        derive_coco(instance_tree, "train", thing_class="cell")


def test_no_images_is_an_error(tmp_path: Path) -> None:
    for kind in ("images", "labels"):
        (tmp_path / "train" / kind).mkdir(parents=True)
    with pytest.raises(UserError, match="train/images holds no images"):
        derive_coco(tmp_path, "train", thing_class="cell")


def test_an_image_without_labels_is_named(instance_tree: Path) -> None:
    (instance_tree / "train/labels/b.png").unlink()
    with pytest.raises(UserError, match=r"no label map in .* for .*images/b\.png"):
        derive_coco(instance_tree, "train", thing_class="cell")
