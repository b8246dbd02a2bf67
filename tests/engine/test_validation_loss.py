"""The training's losses on the test sets: of a model that is not trained by them."""

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import pytest
import torch
import torch.nn.functional as F
from detectron2.data import DatasetCatalog
from detectron2.utils.events import EventStorage, get_event_storage
from torch import nn

from seg_ext.data.mapper import SegMapper
from seg_ext.engine.trainer import Trainer
from seg_ext.engine.validation_loss import _mapper, loss_mode, merged, validation_losses


def test_equals_the_loss_of_the_scores_in_inference(trainer: Callable[..., Trainer], toy_folder: Path) -> None:
    run = trainer("WRITERS", "[]", "INPUT.MIN_SIZE_TRAIN", "[32]", "INPUT.RANDOM_FLIP", "vertical")
    model = run.checkpointer.model
    with torch.no_grad():
        for weight in (p for p in model.parameters() if p.dim() == 4):
            weight.mul_(100)  # scores that depend on the image
        model(next(iter(run._trainer.data_loader)))  # statistics that are not the first
    before = {name: x.clone() for name, x in model.state_dict().items()}
    found = validation_losses(run.cfg, model)
    losses = []
    model.eval()
    for index in range(5):
        image = torch.from_numpy(cv2.imread(str(toy_folder / "images" / f"{index}.png"))).permute(2, 0, 1)
        label = torch.from_numpy(cv2.imread(str(toy_folder / "labels" / f"{index}.png"), cv2.IMREAD_UNCHANGED)).long()
        with torch.no_grad():
            scores = model([{"image": image, "height": 48, "width": 40}])[0]["sem_seg"]
        losses.append(F.cross_entropy(scores[None], label[None]).item())
    assert found == {"validation": {"total_loss": pytest.approx(sum(losses) / 5, rel=1e-5)} | found["validation"]}
    assert found["validation"].keys() == {"total_loss", "loss_sem_seg"}
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items()), "no statistics moved"


def test_images_are_those_of_an_evaluation_with_the_training_s_ground_truth(trainer: Callable[..., Trainer]) -> None:
    cfg = trainer("WRITERS", "[]", "INPUT.AUGMENTATIONS", "[{'NAME': 'RandomFlip', 'prob': 1.0}]").cfg
    record = DatasetCatalog.get(cfg.DATASETS.TEST[0])[0]
    mapped, tested, trained = (
        mapper(record) for mapper in (_mapper(cfg), SegMapper(cfg, is_train=False), SegMapper(cfg, is_train=True))
    )
    assert torch.equal(mapped["image"], tested["image"]) and not torch.equal(mapped["image"], trained["image"])
    assert torch.equal(mapped["sem_seg"], trained["sem_seg"].flip(1))


def test_what_the_heads_note_stays_out_of_the_training_s_numbers(trainer: Callable[..., Trainer]) -> None:
    run = trainer("WRITERS", "[]")
    model = run.checkpointer.model
    model.register_forward_hook(lambda *args: get_event_storage().put_scalar("roi_head/foreground", 1.0))
    with EventStorage() as storage:
        first = validation_losses(run.cfg, model)
        assert storage.latest() == {}
    assert validation_losses(run.cfg, model) == first, "without a training too"


def test_every_part_gets_its_mode_back(trainer: Callable[..., Trainer]) -> None:
    model = trainer("WRITERS", "[]", "MODEL.BN.FROZEN", "backbone").checkpointer.model
    model.sem_seg_head.decoder.eval()
    modes = [module.training for module in model.modules()]
    assert {True, False} == set(modes)
    with loss_mode(model):
        for module in model.modules():
            assert module.training != isinstance(module, (nn.BatchNorm2d, nn.Dropout)), type(module)
    assert [module.training for module in model.modules()] == modes


def test_each_evaluation_of_a_training_writes_it(trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    opts = ("TEST.VALIDATION_LOSS", True, "TEST.EVAL_PERIOD", 2, "TEST.BEST", "validation/total_loss")
    assert trainer(*opts).train()["validation"]["total_loss"] > 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.json").read_text().splitlines()]
    assert [line["iteration"] for line in lines if "validation/total_loss" in line] == [1, 4]
    assert (tmp_path / "run" / "model_best.pth").is_file()


def test_losses_of_several_sets_join_their_scores() -> None:
    assert merged({"sem_seg": {"mIoU": 1.0}}, {"validation": {"total_loss": 2.0}}).keys() == {"sem_seg", "validation"}
    both = merged({"a": {"sem_seg": 1}, "b": {}}, {"a": {"validation": 2}, "b": {"validation": 3}})
    assert both == {"a": {"sem_seg": 1, "validation": 2}, "b": {"validation": 3}}
