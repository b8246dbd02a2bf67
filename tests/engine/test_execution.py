"""How a model runs changes nothing of what it computes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from seg_ext.engine.trainer import Trainer
from seg_ext.errors import UserError

COMMON = ("DATASETS.TEST", "()", "SOLVER.MAX_ITER", 2, "WRITERS", "[]")
RESNET = (
    *("MODEL.BACKBONE.NAME", "build_seg_ext_resnet_backbone", "MODEL.SEM_SEG_HEAD.IN_FEATURES", "['conv1', 'res2']"),
    *("MODEL.RESNETS.OUT_FEATURES", "['conv1', 'res2']", "MODEL.SEM_SEG_HEAD.DECODER.ARGS.channels", "[8]"),
)


def weights(run: Trainer) -> dict[str, torch.Tensor]:
    run.train()
    return run.checkpointer.model.state_dict()


@pytest.mark.parametrize(
    ("opts", "names"),
    [
        (RESNET, "['stem', 'res2']"),
        (("MODEL.VGG.DROPOUT", 0.5, "MODEL.VGG.VARIANT", "plain"), "['conv3_1', 'norm3_1', 'conv4_1']"),
    ],
)
def test_recomputed_stages_train_to_the_same_bits(
    trainer: Callable[..., Trainer], opts: tuple[Any, ...], names: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = weights(trainer(*COMMON, *opts))
    run = trainer(*COMMON, *opts, "MODEL.BACKBONE.RECOMPUTE", names)
    convolution, calls = F.conv2d, []
    monkeypatch.setattr(F, "conv2d", lambda *args, **kwargs: calls.append(1) or convolution(*args, **kwargs))
    found = weights(run)
    monkeypatch.undo()
    convolutions = sum(isinstance(module, nn.Conv2d) for module in run.checkpointer.model.modules())
    assert len(calls) > 2 * convolutions, "nothing ran again"
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():  # of BatchNorm's statistics too, which a second pass would move again
        assert torch.equal(found[name], value), name


def test_a_part_that_the_backbone_lacks_is_named(trainer: Callable[..., Trainer]) -> None:
    with pytest.raises(UserError, match=r"RECOMPUTE 'res9': takes modules of the backbone: stem, res2"):
        trainer(*COMMON, *RESNET, "MODEL.BACKBONE.RECOMPUTE", "['res9']")


def test_channels_last_trains_alike_and_keeps_the_names(trainer: Callable[..., Trainer]) -> None:
    wanted = weights(trainer(*COMMON))
    run = trainer(*COMMON, "SOLVER.CHANNELS_LAST", True)
    wide = [p for p in run.checkpointer.model.parameters() if p.dim() == 4 and p.shape[1] > 1 and p.shape[-1] > 1]
    assert wide and all(p.is_contiguous(memory_format=torch.channels_last) for p in wide)
    found = weights(run)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_left_to_itself_the_cpu_keeps_its_memory_format(trainer: Callable[..., Trainer]) -> None:
    model = trainer(*COMMON, "SOLVER.AMP.ENABLED", True).checkpointer.model
    assert all(p.is_contiguous() for p in model.parameters())


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch's own look at it
def test_compiled_parts_train_alike_and_evaluate_uncompiled(trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    wanted = weights(trainer(*COMMON))
    compiled = ("SOLVER.COMPILE.ENABLED", True, "SOLVER.COMPILE.BACKEND", "eager")
    run = trainer(*COMMON[2:], *compiled)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    found = weights(run)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > graphs
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    assert found.keys() == wanted.keys(), "compiled modules keep their names"


def test_an_unknown_back_end_is_refused(trainer: Callable[..., Trainer]) -> None:
    with pytest.raises(UserError, match="SOLVER.COMPILE.BACKEND 'indoctor': takes one of .*inductor"):
        trainer(*COMMON, "SOLVER.COMPILE.ENABLED", True, "SOLVER.COMPILE.BACKEND", "indoctor")


def test_recomputing_what_is_compiled_is_refused(trainer: Callable[..., Trainer]) -> None:
    with pytest.raises(UserError, match="SOLVER.COMPILE.ENABLED: takes False with MODEL.BACKBONE.RECOMPUTE"):
        trainer(*COMMON, "SOLVER.COMPILE.ENABLED", True, "MODEL.BACKBONE.RECOMPUTE", "['conv3_1']")
