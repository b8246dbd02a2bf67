"""The training stream: the same samples whatever the workers, from any position on; and samples that cannot be read."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.engine import SimpleTrainer
from detectron2.structures import BoxMode
from detectron2.utils.events import EventStorage
from PIL import Image

from seg_ext.config import get_cfg, load_config
from seg_ext.data.datasets.folder import register_from_config_list
from seg_ext.data.label_io import write_label
from seg_ext.data.stream import MOST_IN_A_ROW, TrainLoader
from seg_ext.engine.loaders import SAMPLERS, ReportSkipped, build_train_loader
from seg_ext.errors import UserError

AUGMENTATIONS = [
    {"NAME": "RandomScaleCrop", "size": [16, 16], "scale": [0.5, 2.0]},
    {"NAME": "RandomFlip"},
    {"NAME": "ColorJitter", "brightness": [0.5, 1.5]},
    {"NAME": "GaussianNoise", "PROBABILITY": 0.5},
]


@pytest.fixture
def toy_set(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Registers 7 images, 3 of them portraits, each with a square; those named are damaged."""
    names = []

    def register(*, damaged: tuple[int, ...] = (), name: str = "set") -> str:
        records, generator, name = [], np.random.default_rng(0), f"{name}_{tmp_path.name}"
        for i in range(7):
            height, width = (20, 28) if i % 2 else (28, 20)
            image, label = tmp_path / f"{i}.png", tmp_path / f"{i}_label.png"
            Image.fromarray(generator.integers(0, 256, (height, width, 3), np.uint8)).save(image)
            if i in damaged:
                image.write_bytes(b"no image")
            write_label(label, np.pad(np.ones((6, 6), np.uint8), ((4, height - 10), (5, width - 11))))
            square = {"bbox": [5, 4, 11, 10], "bbox_mode": BoxMode.XYXY_ABS, "category_id": i % 3}
            square["segmentation"] = [[5, 4, 11, 4, 11, 10, 5, 10]]
            records.append({"file_name": str(image), "sem_seg_file_name": str(label), "annotations": [square]})
            records[-1] |= {"height": height, "width": width, "image_id": i}
        DatasetCatalog.register(name, lambda: records)
        names.append(name)
        return name

    yield register
    for name in names:
        DatasetCatalog.remove(name)


def config(*names: str, **keys: Any) -> Any:
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.MASK_ON, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = "PanopticSegmentor", True, 2
    cfg.INPUT.MASK_FORMAT, cfg.INPUT.AUGMENTATIONS = "bitmask", AUGMENTATIONS
    cfg.DATASETS.TRAIN, cfg.SEED = names, 3
    cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_WORKERS = 2, 0
    cfg.merge_from_list([x for key, value in keys.items() for x in (key.replace("__", "."), value)])
    return cfg


def fingerprint(batch: list[dict[str, Any]]) -> list[Any]:
    """Everything in a batch, comparable by ==."""
    return [
        (
            sample["image_id"],
            sample["image"].tolist(),
            sample["sem_seg"].tolist(),
            sample["instances"].gt_boxes.tensor.tolist(),
            sample["instances"].gt_masks.tensor.tolist(),
        )
        for sample in batch
    ]


def batches(loader: TrainLoader, number: int) -> list[Any]:
    return [fingerprint(batch) for batch in islice(loader, number)]


@pytest.mark.parametrize("grouping", [True, False])
@pytest.mark.parametrize("copy_paste", [0.0, 0.7])
def test_the_number_of_workers_changes_no_sample(toy_set: Any, grouping: bool, copy_paste: float) -> None:
    keys = {"DATALOADER__ASPECT_RATIO_GROUPING": grouping, "INPUT__COPY_PASTE__PROBABILITY": copy_paste}
    name = toy_set()
    seen = []
    for workers in (0, 1, 2):
        np.random.seed(workers)  # nothing outside counts
        seen.append(batches(build_train_loader(config(name, DATALOADER__NUM_WORKERS=workers, **keys)), 9))
    assert seen[0] == seen[1] == seen[2]
    assert len({str(sample) for batch in seen[0] for sample in batch}) == 18  # no sample comes twice alike


def test_the_seed_changes_all_samples_and_the_rank_too(toy_set: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    name = toy_set()
    here = batches(build_train_loader(config(name)), 5)
    assert batches(build_train_loader(config(name)), 5) == here
    assert batches(build_train_loader(config(name, SEED=4)), 5) != here
    shared = {"records": DatasetCatalog.get(name), "sampler": [0] * 5, "batch_size": 1, "seed": 3}
    mapper = build_train_loader(config(name)).samples.mapper
    ranks = [batches(TrainLoader(mapper=mapper, rank=rank, **shared), 5) for rank in (0, 1)]
    assert all(a != b for a, b in zip(*ranks, strict=True))
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 2)
    monkeypatch.setattr("detectron2.utils.comm.get_rank", lambda: 1)
    other = build_train_loader(config(name))
    assert other.batch_size == 1 and other.samples.key == (3, 1)


@pytest.mark.parametrize("grouping", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_that_starts_at_a_position_goes_on_exactly(toy_set: Any, grouping: bool, workers: int) -> None:
    cfg = config(toy_set(), DATALOADER__ASPECT_RATIO_GROUPING=grouping, DATALOADER__NUM_WORKERS=workers)
    loader = build_train_loader(cfg)
    stream, places = iter(loader), []
    reference = []
    for _ in range(7):
        reference.append(fingerprint(next(stream)))
        places.append((loader.position, list(loader.pending)))
    for done, (position, pending) in enumerate(places[:5], start=1):
        following = build_train_loader(cfg, start=position, pending=pending)
        assert batches(following, 2) == reference[done : done + 2]
    assert any(pending for _, pending in places[:5]) == grouping


def test_landscapes_and_portraits_have_batches_of_their_own_where_asked_for(toy_set: Any) -> None:
    name = toy_set()
    kinds = []
    for grouping in (True, False):
        loader = build_train_loader(config(name, DATALOADER__ASPECT_RATIO_GROUPING=grouping))
        kinds.append({len({s["width"] > s["height"] for s in batch}) for batch in islice(loader, 20)})
    assert kinds == [{1}, {1, 2}]


def test_every_image_comes_once_an_epoch(toy_set: Any) -> None:
    loader = build_train_loader(config(toy_set(), SOLVER__IMS_PER_BATCH=1, DATALOADER__ASPECT_RATIO_GROUPING=False))
    ids = [batch[0]["image_id"] for batch in islice(loader, 21)]
    assert all(sorted(ids[i : i + 7]) == list(range(7)) for i in (0, 7, 14)) and ids[:7] != ids[7:14]


def test_mapping_leaves_the_processs_own_generators_alone(toy_set: Any) -> None:
    loader = iter(build_train_loader(config(toy_set())))

    def drawn() -> tuple[float, ...]:
        return random.random(), np.random.rand(), torch.rand(1).item()

    sequences = []
    for read in (True, False):
        random.seed(0), np.random.seed(0), torch.manual_seed(0)
        if read:
            next(loader)
        sequences.append(drawn())
    assert sequences[0] == sequences[1]


def test_pythons_and_torchs_generators_follow_the_position_too(toy_set: Any) -> None:
    def mapper(record: Any, pool: Any) -> dict[str, Any]:
        return {"drawn": (random.random(), np.random.rand(), torch.rand(1).item())}

    arguments = {"records": [{}], "mapper": mapper, "sampler": [0] * 9, "batch_size": 1, "seed": 0}
    drawn = [batch[0]["drawn"] for batch in TrainLoader(**arguments)]
    assert [batch[0]["drawn"] for batch in TrainLoader(**arguments, start=4)] == drawn[4:]
    assert all(len(set(column)) == 9 for column in zip(*drawn, strict=True))


def test_the_records_are_shared_not_copied_for_the_pool(toy_set: Any) -> None:
    pools = []
    loader = build_train_loader(config(toy_set()))
    loader.samples.mapper = lambda record, pool: pools.append(pool) or {"width": 1, "height": 1}
    next(iter(loader))
    assert all(pool is loader.samples.records for pool in pools) and len(pools[0]) == 7


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_follows_the_seed(toy_set: Any, sampler: str) -> None:
    names = toy_set(), toy_set(name="other")
    cfg = config(*names, DATALOADER__SAMPLER_TRAIN=sampler, DATALOADER__REPEAT_THRESHOLD=0.9)
    cfg.DATASETS.TRAIN_REPEAT_FACTOR = [(names[1], 3.0)]
    cfg.DATALOADER.RANDOM_SUBSET_RATIO = 0.5
    orders = [list(islice(build_train_loader(cfg).sampler, 400)) for _ in range(2)]
    assert orders[0] == orders[1]
    second = sum(index >= 7 for index in orders[0]) / 400
    expected = {"WeightedTrainingSampler": 0.75, "WeightedCategoryTrainingSampler": 0.75}.get(sampler, 0.5)
    assert second == pytest.approx(expected, abs=0.05) or len(set(orders[0])) == 7


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"DATALOADER__SAMPLER_TRAIN": "Sampler"}, "SAMPLER_TRAIN is 'Sampler'; it is one of TrainingSampler, "),
        ({"DATALOADER__ON_ERROR": "ignore"}, "DATALOADER.ON_ERROR is 'ignore'; it must be stop or skip"),
        ({"SOLVER__IMS_PER_BATCH": 0}, "SOLVER.IMS_PER_BATCH is 0; it is a multiple of 1"),
        ({"DATASETS__TRAIN": ()}, "DATASETS.TRAIN is empty"),
        (
            {"DATALOADER__SAMPLER_TRAIN": "RandomSubsetTrainingSampler", "DATALOADER__RANDOM_SUBSET_RATIO": 0.01},
            "RANDOM_SUBSET_RATIO is 0.01",
        ),
        (
            {"DATALOADER__SAMPLER_TRAIN": "WeightedTrainingSampler", "DATASETS__TRAIN_REPEAT_FACTOR": [("x", 2.0)]},
            "TRAIN_REPEAT_FACTOR: x is not in DATASETS.TRAIN",
        ),
    ],
)
def test_keys_that_do_not_fit_are_refused(toy_set: Any, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_train_loader(config(toy_set(), **keys))


def test_how_often_to_show_a_set_is_a_number_above_zero_and_no_second_name(toy_set: Any) -> None:
    name = toy_set()
    cfg = config(name, DATALOADER__SAMPLER_TRAIN="WeightedTrainingSampler")
    for entry, message in (
        (name, r"TRAIN_REPEAT_FACTOR has 'set_.*': takes \[name, factor\]"),
        ((name, "often"), r"TRAIN_REPEAT_FACTOR has .*: takes \[name, factor\]"),
        ((name, 0), f"TRAIN_REPEAT_FACTOR has 0 for {name}: takes a number above 0"),  # or it would look for ever
    ):
        cfg.DATASETS.TRAIN_REPEAT_FACTOR = [entry]
        with pytest.raises(UserError, match=message):
            build_train_loader(cfg)
    with pytest.raises(UserError, match=f"DATASETS.TRAIN names {name} twice; .* TRAIN_REPEAT_FACTOR"):
        build_train_loader(config(name, name))


def test_a_set_of_detectron2_that_is_not_there_is_named(tmp_path: Path) -> None:
    name, gone = f"gone_{tmp_path.name}", tmp_path / "instances.json"
    DatasetCatalog.register(name, lambda: json.loads(gone.read_text()))
    try:
        with pytest.raises(UserError, match=f"^data set {name} cannot be loaded: .*No such file.*instances.json"):
            build_train_loader(config(name))
    finally:
        DatasetCatalog.remove(name)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_stops_training_with_its_path_on_one_line(toy_set: Any, workers: int, tmp_path: Path) -> None:
    loader = build_train_loader(config(toy_set(damaged=(4,)), DATALOADER__NUM_WORKERS=workers))
    with pytest.raises(UserError) as error:
        list(islice(loader, 8))
    assert error.value.line == f"{tmp_path}/4.png: not an image that can be read"


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_damaged_images_are_skipped_counted_and_listed(
    toy_set: Any, workers: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = {"DATALOADER__ON_ERROR": "skip", "DATALOADER__ASPECT_RATIO_GROUPING": False, "SOLVER__IMS_PER_BATCH": 1}
    loader = build_train_loader(config(toy_set(damaged=(1, 4)), DATALOADER__NUM_WORKERS=workers, **keys))
    with caplog.at_level(logging.WARNING):
        ids = [batch[0]["image_id"] for batch in islice(loader, 15)]
    order = list(islice(loader.sampler, 21))
    assert ids == [index for index in order if index not in (1, 4)] and loader.position >= 19
    lines = [f"{tmp_path}/{i}.png: not an image that can be read" for i in (1, 4)]
    assert set(loader.skipped) == set(lines) and min(loader.skipped.values()) >= 2
    said = [record.getMessage() for record in caplog.records if record.name.startswith("seg_ext")]
    assert sorted(said) == [f"skipped: {line}" for line in lines]


def test_training_ends_with_a_list_of_what_was_skipped(
    toy_set: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loader = build_train_loader(config(toy_set(damaged=(2,)), DATALOADER__ON_ERROR="skip"))
    model = torch.nn.Linear(1, 1)
    model.forward = lambda batch: {"loss": model.weight.sum()}  # type: ignore[method-assign]
    trainer = SimpleTrainer(model, loader, torch.optim.SGD(model.parameters(), 0.1))
    trainer.register_hooks([ReportSkipped(loader, tmp_path)])
    with EventStorage(), caplog.at_level(logging.WARNING):
        trainer.train(0, 12)
    assert json.loads((tmp_path / "skipped.json").read_text()) == loader.skipped
    count = sum(loader.skipped.values())
    assert f"skipped {count} samples of 1 training images that cannot be read, listed in" in caplog.messages[-1]
    assert "2.png" in caplog.messages[-1] and count >= 2


@pytest.mark.parametrize("workers", [0, 2])
def test_a_set_without_a_readable_image_ends_in_one_line(toy_set: Any, workers: int) -> None:
    cfg = config(toy_set(damaged=tuple(range(7))), DATALOADER__ON_ERROR="skip", DATALOADER__NUM_WORKERS=workers)
    with pytest.raises(UserError, match=rf"^{MOST_IN_A_ROW} training samples in a row cannot be read; the last: .*png"):
        next(iter(build_train_loader(cfg)))


def test_an_error_that_is_no_fault_of_the_data_stops_under_skip_too(toy_set: Any) -> None:
    loader = build_train_loader(config(toy_set(), DATALOADER__ON_ERROR="skip"))
    loader.samples.mapper = lambda record, pool: 1 // 0
    with pytest.raises(ZeroDivisionError):
        next(iter(loader))


def test_workers_start_after_opencv_has_used_its_threads(toy_config: Path) -> None:
    cv2.setNumThreads(2)
    cv2.resize(np.zeros((2000, 2000, 3), np.uint8), (1500, 1500))  # makes the pool, which does not survive a fork
    cfg = load_config(toy_config, ["DATALOADER.NUM_WORKERS", "1"])
    register_from_config_list(cfg.DATASETS.FOLDERS)
    assert len(next(iter(build_train_loader(cfg)))) == 2 and cv2.getNumThreads() == 2
