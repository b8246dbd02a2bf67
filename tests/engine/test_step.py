"""The step's gradients are those of the whole batch, in parts, in any precision, on any number of processes.

This file is also the program that each of two processes runs.
"""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Instances
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn

from seg_ext.config import get_cfg, load_config
from seg_ext.engine.loaders import build_test_loader
from seg_ext.engine.solver import build_optimizer
from seg_ext.engine.step import Step, accumulation, distribute, precision
from seg_ext.engine.trainer import Trainer
from seg_ext.engine.validation_loss import validation_losses
from seg_ext.errors import UserError

NO_BATCH_NORM = ("MODEL.VGG.NORM", "GN", "MODEL.SEM_SEG_HEAD.NORM", "GN")
NARROW = (
    *("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.RESNETS.NORM", "GN"),
    *("MODEL.BACKBONE.FREEZE_AT", 0, "MODEL.FPN.OUT_CHANNELS", 16, "MODEL.ROI_BOX_HEAD.FC_DIM", 16),
    *("MODEL.ROI_MASK_HEAD.CONV_DIM", 16, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 50, "MODEL.DEVICE", "cpu"),
)
WHOLE = (*NO_BATCH_NORM, "SOLVER.BASE_LR", "0.1", "SOLVER.MAX_ITER", "3", "SOLVER.IMS_PER_BATCH", "4")


def trained(run: Trainer) -> dict[str, torch.Tensor]:
    """The gradients of the last step and the weights after it."""
    run.train()
    model = run.checkpointer.model
    gradients = {f"{name}.grad": p.grad for name, p in model.named_parameters()}
    return {**gradients, **{name: p.detach() for name, p in model.named_parameters()}}


def assert_equal(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert sum(bool(value.abs().max() > 1e-3) for value in wanted.values()) > len(wanted) / 3, "they say nothing"
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("parts", [2, 4])
def test_parts_of_a_batch_train_as_the_whole(trainer: Callable[..., Trainer], tmp_path: Path, parts: int) -> None:
    opts = (*WHOLE, "DATASETS.TEST", "()")
    whole = trained(trainer(*opts, "OUTPUT_DIR", tmp_path / "whole"))
    assert_equal(trained(trainer(*opts, "SOLVER.ACCUMULATE", parts)), whole)
    losses = [json.loads((tmp_path / run / "metrics.json").read_text())["total_loss"] for run in ("whole", "run")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6), "the loss that is written is the mean over the parts"


def test_two_processes_train_and_score_as_one_with_the_double_batch(
    trainer: Callable[..., Trainer], toy_config: Path, tmp_path: Path
) -> None:
    path = os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parent)])
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(toy_config), str(tmp_path)],
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    run = trainer(*WHOLE)
    losses = validation_losses(run.cfg, run.checkpointer.model)
    scores = run.test(run.cfg, run.checkpointer.model)
    whole = trained(run)
    for rank in ranks:
        _, errors = rank.communicate(timeout=120)
        assert rank.returncode == 0, errors
    for parts in (1, 2):
        assert_equal(torch.load(tmp_path / f"parts{parts}.pth"), whole)
    assert json.loads((tmp_path / "scores.json").read_text()) == [losses, scores]
    written, weights = json.loads((tmp_path / "mixed.json").read_text())
    assert weights[0] == weights[1] and all(math.isfinite(value) for value in written.values())
    assert written["loss_sem_seg"] > 0 < written["loss_mask"], "label maps on one process, instances on the other"


def mixed_steps(rank: int) -> tuple[dict[str, float], list[float]]:
    """Two updates on one kind of ground truth a process: the last losses, and the sum of the weights on each."""
    cfg = load_config("coco/panoptic_fpn_R_50_1x.yaml", list(map(str, NARROW)))
    torch.manual_seed(0)
    model = distribute(build_model(cfg).train())
    truth = Instances((48, 64), gt_classes=torch.tensor([1]), gt_masks=BitMasks(torch.zeros(1, 48, 64).bool()))
    truth.gt_masks.tensor[0, 8:40, 10:50] = True
    truth.gt_boxes = truth.gt_masks.get_bounding_boxes()
    known = {"sem_seg": torch.randint(0, 54, (48, 64))} if rank == 0 else {"instances": truth}
    batch = [{"image": torch.rand(3, 48, 64) * 255, **known}]
    step = Step(model, [batch, batch], torch.optim.SGD(model.parameters(), lr=0.01))
    with EventStorage() as storage:
        for step.iter in range(2):
            step.run_step()
    written = {name: value for name, (value, _) in storage.latest().items() if "loss" in name}
    return written, comm.all_gather(sum(p.detach().double().sum().item() for p in model.parameters()))


def run_rank(rank: int, yaml: Path, folder: Path) -> None:
    from conftest import build

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    for parts in (1, 2):
        run = build(yaml, *WHOLE, "SOLVER.ACCUMULATE", parts, "OUTPUT_DIR", folder / f"parts{parts}")
        if parts == 1:
            model = run.checkpointer.model
            scores = [validation_losses(run.cfg, model), run.test(run.cfg, model)]  # of 3 images and of 2
        result = trained(run)
        if rank == 0:
            torch.save(result, folder / f"parts{parts}.pth")
    mixed = mixed_steps(rank)
    if rank == 0:
        (folder / "scores.json").write_text(json.dumps(scores))
        (folder / "mixed.json").write_text(json.dumps(mixed))
    comm.synchronize()
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
def test_each_image_is_evaluated_once_on_any_number_of_processes(
    trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    cfg = trainer("WRITERS", "[]").cfg
    monkeypatch.setattr(comm, "get_world_size", lambda: processes)
    seen = []
    for rank in range(processes):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        seen += [x["file_name"] for batch in build_test_loader(cfg, cfg.DATASETS.TEST[0]) for x in batch]
    assert [Path(name).stem for name in seen] == ["0", "1", "2", "3", "4"]


class Line(nn.Module):
    """Loss ``w x`` of a list of numbers x, so that the gradient is their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2))

    def forward(self, batch: list[Any]) -> dict[str, torch.Tensor]:
        return {"loss": (torch.tensor(batch) @ self.w).mean()}


def stepped(
    batch: list[Any], *, accumulate: int = 1, scale: float = 0.0, fused: bool = False, **clip: Any
) -> torch.Tensor:
    """The weights after a step of SGD with rate 1 from 0."""
    cfg, model = get_cfg(), Line()
    cfg.SOLVER.update({"BASE_LR": 1.0, "WEIGHT_DECAY": 0.0, "MOMENTUM": 0.0})
    cfg.SOLVER.CLIP_GRADIENTS.update({"ENABLED": bool(clip), **clip})
    optimizer = build_optimizer(cfg, model)
    optimizer.param_groups[0]["fused"] = fused  # such an optimizer is left to divide by the scale itself
    optimizer._step_supports_amp_scaling = fused
    step = Step(model, [batch], optimizer, accumulate=accumulate)
    step.grad_scaler = torch.amp.GradScaler("cpu", enabled=bool(scale), init_scale=scale or 1.0)
    with EventStorage():
        step.run_step()
    return model.w.detach()


@pytest.mark.parametrize(
    ("clip", "wanted"),
    [
        ({}, [3.0, 4.0]),
        ({"CLIP_TYPE": "value", "CLIP_VALUE": 3.5}, [3.0, 3.5]),
        ({"CLIP_TYPE": "norm", "CLIP_VALUE": 1.0}, [0.6, 0.8]),
        ({"CLIP_TYPE": "full_model", "CLIP_VALUE": 10.0}, [3.0, 4.0]),
        ({"CLIP_TYPE": "full_model", "CLIP_VALUE": 2.5}, [1.5, 2.0]),
    ],
)
@pytest.mark.parametrize(("scale", "fused"), [(0.0, False), (1024.0, False), (1024.0, True)])
def test_what_is_clipped_is_the_unscaled_gradient_of_the_whole_batch(
    clip: dict[str, Any], wanted: list[float], scale: float, fused: bool
) -> None:
    batch = [[5.0, 0.0], [1.0, 8.0]]  # each part alone would be clipped otherwise
    found = stepped(batch, accumulate=2, scale=scale, fused=fused, **clip)
    assert (-found).tolist() == pytest.approx(wanted, rel=1e-5)


def test_the_whole_norm_is_of_all_parameters_together() -> None:
    model = nn.ModuleList([nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)])
    cfg = get_cfg()
    cfg.SOLVER.update({"BASE_LR": 1.0, "WEIGHT_DECAY": 0.0, "MOMENTUM": 0.0})
    cfg.SOLVER.CLIP_GRADIENTS.update({"ENABLED": True, "CLIP_TYPE": "full_model", "CLIP_VALUE": 1.0})
    optimizer = build_optimizer(cfg, model)
    assert isinstance(optimizer, torch.optim.SGD)
    for parameter, gradient in zip(model.parameters(), (3.0, 4.0), strict=True):
        parameter.data.zero_()
        parameter.grad = torch.full_like(parameter, gradient)
    optimizer.step()
    assert [p.item() for p in model.parameters()] == pytest.approx([-0.6, -0.8], rel=1e-5)


def test_an_overflowing_gradient_leaves_the_weights_and_lowers_the_scale() -> None:
    model = Line()
    step = Step(model, [[[1e30, 1.0]]], torch.optim.SGD(model.parameters(), lr=1.0))
    step.grad_scaler = torch.amp.GradScaler("cpu", init_scale=1e30)
    with EventStorage() as storage:
        step.run_step()
        assert storage.latest()["amp_scale"][0] == pytest.approx(5e29)
    assert model.w.tolist() == [0.0, 0.0]
    resumed = Step(model, [], torch.optim.SGD(model.parameters(), lr=1.0))
    resumed.grad_scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    resumed.load_state_dict(step.state_dict())
    assert resumed.grad_scaler.get_scale() == pytest.approx(5e29)


def test_bfloat16_on_the_cpu_lowers_activations_alone(trainer: Callable[..., Trainer]) -> None:
    opts = ("SOLVER.AMP.ENABLED", True, "DATASETS.TEST", "()", "SOLVER.MAX_ITER", 1)
    seen: dict[str, torch.Tensor] = {}
    exact = trainer(*opts[2:])
    run = trainer(*opts)
    first = next(module for module in run.checkpointer.model.modules() if isinstance(module, nn.Conv2d))
    first.register_forward_hook(lambda module, args, out: seen.update(out=out))
    for each in (exact, run):
        each.train()
    assert seen["out"].dtype is torch.bfloat16
    assert all(p.dtype is p.grad.dtype is torch.float32 for p in run.checkpointer.model.parameters())
    losses = [each.storage.history("total_loss").latest() for each in (exact, run)]
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.02)


@pytest.mark.parametrize(
    ("device", "name", "wanted"),
    [
        ("cpu", "", torch.bfloat16),
        ("cuda", "", torch.float16),
        ("cuda", "bfloat16", torch.bfloat16),
        ("cpu", "float16", "takes bfloat16 on the CPU"),
        ("cuda", "half", "'half': takes float16, bfloat16"),
    ],
)
def test_the_precision_fits_the_device(device: str, name: str, wanted: Any) -> None:
    cfg = get_cfg()
    cfg.MODEL.DEVICE, cfg.SOLVER.AMP.PRECISION = device, name
    if isinstance(wanted, torch.dtype):
        assert precision(cfg) is wanted
    else:
        with pytest.raises(UserError, match=wanted):
            precision(cfg)


@pytest.mark.parametrize(("parts", "processes"), [(0, 1), (3, 1), (4, 2)])
def test_parts_that_do_not_split_the_batch_are_refused(
    parts: int, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comm, "get_world_size", lambda: processes)
    cfg = get_cfg()
    cfg.SOLVER.update({"IMS_PER_BATCH": 4, "ACCUMULATE": parts})
    with pytest.raises(UserError, match=f"SOLVER.ACCUMULATE {parts}: takes a number >= 1 that splits IMS_PER_BATCH 4"):
        accumulation(cfg)


@pytest.mark.parametrize(
    ("clip", "line"),
    [
        ({"CLIP_TYPE": "whole"}, "CLIP_TYPE 'whole': takes one of value, norm, full_model"),
        ({"CLIP_VALUE": 0.0}, "CLIP_VALUE 0.0: takes a number above 0"),
        ({"NORM_TYPE": -1.0}, "NORM_TYPE -1.0: takes a number above 0"),
    ],
)
def test_a_clipping_that_cannot_be_is_refused(clip: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line):
        stepped([[1.0, 1.0]], **clip)


def test_gradients_are_exchanged_once_an_update(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[bool] = []

    class Wrapped(Line):
        apart = False

        @contextmanager
        def no_sync(self) -> Iterator[None]:
            self.apart = True
            yield
            self.apart = False

        def forward(self, batch: list[Any]) -> dict[str, torch.Tensor]:
            held.append(self.apart)
            return super().forward(batch)

    monkeypatch.setattr("seg_ext.engine.step.DistributedDataParallel", Wrapped)
    model = Wrapped()
    Step(model, [], torch.optim.SGD(model.parameters(), lr=1.0), accumulate=3).backward([[1.0, 1.0]] * 3)
    assert held == [True, True, False]


if __name__ == "__main__":
    run_rank(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
