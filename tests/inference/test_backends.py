"""Backends: the fastest that agrees, chosen once; a model that runs by one gives what it gave."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from seg_ext.errors import UserError
from seg_ext.inference import backends
from seg_ext.inference.backends import accelerate, disagreement, fastest
from seg_ext.layers.conv import ConvNormAct


class Backbone(nn.Module):
    size_divisibility = 0
    padding_constraints: dict[str, int] = {}

    def __init__(self) -> None:
        super().__init__()
        self.block = ConvNormAct(3, 8, norm=nn.BatchNorm2d)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"map": self.block(x)}


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Conv2d(8, 3, 1)

    def forward(self, features: dict[str, Tensor], targets: Any = None) -> tuple[Tensor, dict[str, Tensor]]:
        return self.score(features["map"]), {}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.sem_seg_head = Backbone(), Head()
        self.roi_heads: nn.Module | None = None
        self.register_buffer("pixel_mean", torch.zeros(3, 1, 1))
        self.register_buffer("pixel_std", torch.ones(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.sem_seg_head(self.backbone(x))[0]


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    model = Model().eval()
    model.backbone.block.norm.running_mean.normal_()
    return model


IMAGE = torch.randn(2, 3, 40, 48, generator=torch.Generator().manual_seed(1))
OTHER = torch.randn(1, 3, 33, 21, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    "backend", ["eager", "auto", *(pytest.param(name, marks=pytest.mark.slow) for name in ("onnxruntime", "compile"))]
)
@torch.no_grad()
def test_a_backend_gives_the_models_scores_at_every_size(model: Model, backend: str) -> None:
    if backend == "onnxruntime" and not all(map(find_spec, ("onnx", "onnxscript", "onnxruntime"))):
        pytest.skip("needs the extra export")
    expected = [model(image) for image in (IMAGE, OTHER)]
    accelerate(model, backend)
    found = [model(image) for image in (IMAGE, OTHER)]
    assert max(disagreement(a, b) for a, b in zip(expected, found, strict=True)) < 1e-5


@torch.no_grad()
def test_the_fastest_that_agrees_is_chosen_and_a_wrong_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Conv2d(3, 3, 1)
    speeds = {"eager": 4.0, "folded": 3.0, "channels_last": 1.0, "broken": 0.5, "fails": 0.1, "costly": 0.1}
    runs: dict[str, Any] = {name: (lambda x: network(x)) for name in speeds} | {"broken": lambda x: network(x) + 0.01}
    names = {id(run): name for name, run in runs.items()} | {id(network): "eager"}

    def build(network: nn.Module, name: str, image: Tensor) -> Any:
        if name == "fails":
            raise RuntimeError("no compiler\nand more")
        return runs[name]

    monkeypatch.setattr(backends, "_COST", {name: (0.0, 1.0) for name in speeds} | {"costly": (100.0, 0.3)})
    monkeypatch.setattr(backends, "build", build)
    monkeypatch.setattr(backends, "_seconds", lambda run, image: speeds[names[id(run)]])
    image = torch.randn(1, 3, 4, 4)
    assert fastest(network, image) == ("channels_last", runs["channels_last"])
    assert fastest(network, image, expected=83)[0] == "channels_last", "83 images save less than 100 seconds"
    assert fastest(network, image, expected=84)[0] == "costly"
    speeds["channels_last"] = speeds["folded"] = 5.0
    assert fastest(network, image) == ("eager", network)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1.0])
def test_disagreement_is_relative_to_the_greatest_score_and_never_hidden(value: float) -> None:
    reference = torch.full((1, 2, 3, 3), 100.0)
    wrong = reference.clone()
    wrong[0, 0, 0, 0] += value
    assert not disagreement(reference, wrong) <= 1e-4
    assert not disagreement(reference, reference[:, :1]) <= 1e-4
    assert disagreement(reference, reference + 0.005) == pytest.approx(5e-5, rel=1e-2)


@torch.no_grad()
def test_the_choice_is_made_at_the_first_image_alone(
    model: Model, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[tuple[int, ...]] = []

    def choose(network: nn.Module, image: Tensor, *, expected: int) -> tuple[str, nn.Module]:
        calls.append((*image.shape, expected))
        return "eager", network

    monkeypatch.setattr(backends, "fastest", choose)
    accelerate(model, "auto", expected=7)
    with caplog.at_level(logging.INFO):
        for image in (IMAGE, OTHER, IMAGE):
            model(image)
    assert calls == [(2, 3, 40, 48, 7)] and [record.message for record in caplog.records] == ["backend: eager"]


@torch.no_grad()
def test_other_models_are_folded_in_place_and_keep_their_modules(model: Model) -> None:
    expected = model(IMAGE)
    model.roi_heads = nn.Identity()
    accelerate(model, "auto")
    assert type(model.backbone) is Backbone and model.backbone.block.norm is None
    assert (model(IMAGE) - expected).abs().max() < 1e-5


def test_what_works_on_modules_gets_them(model: Model) -> None:
    accelerate(model, "auto", keep_modules=True)
    assert type(model.sem_seg_head) is Head
    with pytest.raises(UserError, match="--backend compile does not go with TEST.MC_DROPOUT"):
        accelerate(model, "compile", keep_modules=True)


def test_a_backend_that_cannot_be_is_refused(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--backend 'tensorrt': takes auto, eager, compile, onnxruntime"):
        accelerate(model, "tensorrt")
    monkeypatch.setattr(backends, "_has_onnxruntime", lambda: False)
    with pytest.raises(UserError, match=r"pip install 'seg-ext\[export\]'"):
        accelerate(model, "onnxruntime")
    model.roi_heads = nn.Identity()
    with pytest.raises(UserError, match="onnxruntime runs semantic models on the CPU"):
        accelerate(model, "onnxruntime")


@torch.no_grad()
def test_a_backend_asked_for_that_disagrees_is_an_error(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "build", lambda network, name, image: lambda x: network(x) + 0.1)
    accelerate(model, "compile")
    with pytest.raises(UserError, match="--backend compile: its scores differ by .* from eager's"):
        model(IMAGE)
