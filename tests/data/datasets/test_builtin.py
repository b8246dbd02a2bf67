"""The built-in data sets, on toy trees and, where it is there, on the real CamVid."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from seg_ext.data.datasets import DATASETS, camvid, data_root, register_all
from seg_ext.data.label_io import read_image, read_label
from seg_ext.errors import UserError

pytestmark = pytest.mark.usefixtures("restored_catalogs")

NAMES = [*camvid.SPLITS, "nuclei_train", "nuclei_test"]
REAL = data_root().absolute()


@pytest.fixture(params=["jpg", "png"])
def camvid_root(request: pytest.FixtureRequest, tmp_path: Path, write_pair: Callable[..., None]) -> Path:
    for k, split in enumerate(("train", "val", "test"), 1):
        for i in range(k):
            name = f"{split}{i}"
            image = tmp_path / "camvid" / split / f"{name}.{request.param}"
            write_pair(image, tmp_path / "camvid" / f"{split}annot" / f"{name}.png", list(range(12)))
    return tmp_path


def check_labels(name: str, every: int = 1) -> None:
    metadata = MetadataCatalog.get(name)
    for record in DatasetCatalog.get(name)[::every]:
        assert record["sem_seg_label_map"] == metadata.label_map
        labels = read_label(
            record["sem_seg_file_name"],
            label_map=metadata.label_map,
            num_classes=len(metadata.stuff_classes),
            ignore=metadata.ignore_label,
        )
        assert labels.shape == read_image(record["file_name"]).shape[:2] == (record["height"], record["width"])


def test_registering_twice_is_as_once_and_needs_no_data(tmp_path: Path) -> None:
    for _ in range(2):
        register_all(tmp_path)
    assert set(NAMES) <= set(DatasetCatalog.list())
    assert all(MetadataCatalog.get(name).stuff_classes for name in NAMES)


def test_every_set_without_data_says_where_it_was_looked_for_and_what_to_do(tmp_path: Path) -> None:
    register_all(tmp_path)
    for name in NAMES:
        folder = name.partition("_")[0]
        message = rf"data set {name}: .*{folder}.* not found; .*DETECTRON2_DATASETS \(now '.*'\).* holds {folder}/"
        with pytest.raises(UserError, match=message) as error:
            DatasetCatalog.get(name)
        assert f"seg-ext data prepare {folder}`" in str(error.value)


def test_importing_the_package_registers_under_the_environments_root(tmp_path: Path) -> None:
    code = "import seg_ext.data; from detectron2.data import DatasetCatalog as c; c.get('camvid_val')"
    environment = os.environ | {"DETECTRON2_DATASETS": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert f"UserError: data set camvid_val: {tmp_path}/camvid/val not found" in done.stderr


def test_camvid_splits_have_their_images_and_ids_in_range(camvid_root: Path) -> None:
    register_all(camvid_root)
    counts = {name: len(DatasetCatalog.get(name)) for name in camvid.SPLITS}
    assert counts == {"camvid_train": 1, "camvid_val": 2, "camvid_test": 3, "camvid_trainval": 3}
    for name in camvid.SPLITS:
        check_labels(name)


def test_camvid_metadata_follow_the_published_table(tmp_path: Path) -> None:
    DATASETS["camvid"](tmp_path)
    metadata = MetadataCatalog.get("camvid_test")
    assert metadata.stuff_classes[3] == "road" and metadata.stuff_colors[3] == (128, 64, 128)
    assert len(metadata.stuff_classes) == 11 and metadata.stuff_classes[10] == "bicyclist"
    assert (metadata.label_map, metadata.ignore_label, metadata.evaluator_type) == ({11: 255}, 255, "sem_seg")


@pytest.mark.skipif(not (REAL / "camvid").is_dir(), reason=f"{REAL / 'camvid'} is not there (DETECTRON2_DATASETS)")
def test_the_real_camvid_has_its_published_counts_and_ids_in_range() -> None:
    register_all(REAL)
    counts = {name: len(DatasetCatalog.get(name)) for name in camvid.SPLITS}
    assert counts == {"camvid_train": 367, "camvid_val": 101, "camvid_test": 233, "camvid_trainval": 468}
    for name in ("camvid_trainval", "camvid_test"):
        check_labels(name, every=20)
