"""Predictor: from a checkpoint alone; a file and its array give the model's own output, at the image's size."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model

from seg_ext import Predictor, UserError
from seg_ext.config import load_config


@pytest.fixture
def run(toy_config: Path, tmp_path: Path) -> Path:
    """A run folder with a config and a checkpoint of first weights, whose data set nobody knows any more."""
    cfg = load_config(toy_config)
    torch.manual_seed(0)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(cfg.dump().replace("/images", "/gone"))
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "run" / "model_final.pth")
    return tmp_path / "run"


@pytest.fixture
def predictor(run: Path) -> Predictor:
    return Predictor(run / "model_final.pth")


def test_a_file_and_its_array_give_the_models_scores(predictor: Predictor, toy_folder: Path) -> None:
    file = toy_folder / "images" / "1.png"
    array = cv2.imread(str(file))  # BGR, INPUT.FORMAT of the toy config
    scores = predictor(file)["sem_seg"]
    assert scores.shape == (2, 48, 40) and not scores.requires_grad
    assert torch.equal(scores, predictor(array)["sem_seg"])
    inputs = {"image": torch.from_numpy(array.transpose(2, 0, 1).copy()), "height": 48, "width": 40}
    with torch.no_grad():
        assert torch.equal(scores, predictor.model([inputs])[0]["sem_seg"])
    assert predictor.metadata.stuff_classes == ["ground", "box"]


def test_it_takes_a_whole_config_too_and_leaves_it(run: Path, toy_config: Path, predictor: Predictor) -> None:
    cfg = load_config(toy_config, ["MODEL.WEIGHTS", str(run / "model_final.pth"), "TEST.TTA.FLIP", "True"])
    before = cfg.dump()
    image = np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    flipped = Predictor(cfg)(image)["sem_seg"].softmax(0)
    assert cfg.dump() == before
    expected = (predictor(image)["sem_seg"].softmax(0) + predictor(image[:, ::-1])["sem_seg"].softmax(0).flip(2)) / 2
    assert (flipped - expected).abs().max() < 1e-5, "the wrappers of TEST are around it"


def test_the_output_has_the_size_of_the_image_whatever_its_shape(predictor: Predictor) -> None:
    for size in [(61, 37), (1, 1), (3, 700), (700, 3)]:
        assert predictor(np.zeros((*size, 3), np.uint8))["sem_seg"].shape == (2, *size)


def test_threads_that_share_it_get_what_one_gets(predictor: Predictor) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (12 + 3 * (i % 5), 24, 3), dtype=np.uint8) for i in range(10)]
    alone = [predictor(image)["sem_seg"] for image in images]
    with ThreadPoolExecutor(4) as pool:
        together = [output["sem_seg"] for output in pool.map(predictor, images)]
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


def test_heads_that_the_model_does_not_have_need_no_classes(run: Path) -> None:
    opts = ["MODEL.META_ARCHITECTURE", "SemanticSegmentor", "MODEL.ROI_HEADS.NAME", "Res5ROIHeads"]
    cfg = load_config(run / "config.yaml", [*opts, "MODEL.WEIGHTS", str(run / "model_final.pth")])
    name, cfg.DATASETS.FOLDERS = f"both_{run.parent.name}", []
    cfg.DATASETS.TEST = (name,)
    MetadataCatalog.get(name).set(stuff_classes=["ground", "box"], thing_classes=["box"])  # as Cityscapes has
    assert Predictor(cfg)(np.zeros((16, 16, 3), np.uint8))["sem_seg"].shape == (2, 16, 16)


def test_threads_choose_the_backend_once(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    auto = Predictor(run / "model_final.pth", backend="auto")
    image = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    with ThreadPoolExecutor(4) as pool:
        outputs = list(pool.map(auto, [image] * 4))
    assert auto.model.backbone.chosen in ("eager", "folded", "channels_last")
    expected = Predictor(run / "model_final.pth")(image)["sem_seg"]
    assert all((output["sem_seg"] - expected).abs().max() < 1e-4 * max(1, expected.abs().max()) for output in outputs)


def _fewer_classes(run: Path) -> None:
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("NUM_CLASSES: 2\n", "NUM_CLASSES: 5\n"))


def _without_data(run: Path) -> None:
    cfg = load_config(run / "config.yaml")
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ()
    cfg.DATASETS.FOLDERS = []
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 5
    (run / "config.yaml").write_text(cfg.dump())


def _backbone_alone(run: Path) -> None:
    state = torch.load(run / "model_final.pth")["model"]
    torch.save({"model": {k: v for k, v in state.items() if k.startswith("backbone")}}, run / "model_final.pth")


FAULTS: dict[str, tuple[Any, str]] = {
    "classes of the data": (_fewer_classes, r"NUM_CLASSES is 5.* 2 classes"),
    "classes of the weights": (_without_data, r"model_final.pth: .* there, .* here.*NUM_CLASSES"),
    "a backbone's weights": (_backbone_alone, r"model_final.pth: .*tensors.*sem_seg_head"),
    "no config": (lambda run: (run / "config.yaml").unlink(), "no config in it and no config.yaml in its folder"),
    "no weights": (lambda run: (run / "model_final.pth").unlink(), "model_final.pth not found"),
    "truncated": (lambda run: (run / "model_final.pth").write_bytes(b"PK\3\4"), "model_final.pth"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_belong_together_is_refused_in_one_line(run: Path, fault: str) -> None:
    damage, text = FAULTS[fault]
    damage(run)
    with pytest.raises(UserError, match=text) as caught:
        Predictor(run / "model_final.pth")
    assert "\n" not in str(caught.value)


def test_a_folder_where_a_file_is_meant_is_named(run: Path) -> None:
    with pytest.raises(UserError, match=r"run: a folder; takes a checkpoint such as .*/model_final.pth"):
        Predictor(run)


def test_no_weights_is_refused(toy_config: Path) -> None:
    with pytest.raises(UserError, match="MODEL.WEIGHTS is empty"):
        Predictor(load_config(toy_config))


def test_foreign_code_is_not_run_unless_it_is_trusted(run: Path) -> None:
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("NAME: unet", "NAME: subprocess:Popen"))
    with pytest.raises(UserError, match="subprocess:Popen is foreign code; allow it with --trust-code"):
        Predictor(run / "model_final.pth")
    with pytest.raises(UserError, match="takes a torch.nn.Module subclass"):
        Predictor(run / "model_final.pth", trust_code=True)


@pytest.fixture(autouse=True)
def _clean_catalog() -> Any:
    known = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - known:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)
