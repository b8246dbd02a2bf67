"""Monte Carlo dropout on models small enough to say what must come out."""

import math
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import entropy as shannon
from torch import Tensor, nn

from seg_ext.config import get_cfg
from seg_ext.errors import UserError
from seg_ext.inference import mc_dropout
from seg_ext.inference.mc_dropout import MAPS, McDropout, Spread
from seg_ext.inference.stack import stack_predictors


class Dropping(nn.Module):
    """Scores (3, H, W) of an image's channels, normed, dropped and mixed."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.norm, self.drop, self.mix = nn.BatchNorm2d(3), nn.Dropout(p), nn.Conv2d(3, 3, 1)
        self.seen: list[int] = []

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        self.seen.append(len(batched_inputs))
        assert not self.norm.training and not self.training
        x = self.norm(torch.stack([inputs["image"].float() for inputs in batched_inputs]))
        return [{"sem_seg": scores} for scores in self.mix(self.drop(x))]


@pytest.fixture
def model() -> Dropping:
    torch.manual_seed(0)
    return Dropping().eval()


def image(seed: int = 0, size: int = 8) -> dict[str, Any]:
    return {"image": 3 * torch.randn(3, size, size, generator=torch.Generator().manual_seed(seed))}


def test_samples_together_say_what_numpy_says_of_all_of_them() -> None:
    draw = torch.Generator().manual_seed(0)
    samples = (2 * torch.randn(20, 4, 6, 5, generator=draw)).softmax(1)
    spread = Spread()
    for sample in samples:
        spread.add(sample.clone())
    every = samples.double().numpy()
    maps = {key: x.numpy() for key, x in spread.maps().items()}
    np.testing.assert_allclose(spread.mean, every.mean(0), atol=1e-6)
    np.testing.assert_allclose(maps["variance"], every.var(0).mean(0), atol=1e-6)
    total = shannon(every.mean(0), axis=0)
    np.testing.assert_allclose(maps["entropy"], total, atol=1e-5)
    np.testing.assert_allclose(maps["mutual_information"], total - shannon(every, axis=1).mean(0), atol=1e-5)
    assert tuple(maps) == MAPS


def test_one_unit_dropped_half_the_time_has_the_closed_form() -> None:
    class Unit(nn.Module):
        """Two classes: the unit of value 1 is 2 or 0 with p 0.5, so that the scores are (0, 2) or (0, 0)."""

        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
            kept = self.drop(torch.ones(len(batched_inputs), 1, 32, 32))
            return [{"sem_seg": torch.cat([torch.zeros_like(x), x])} for x in kept]

    (found,) = McDropout(Unit().eval(), 200, batch=50)([{"image": torch.zeros(1)}])
    high = 1 / (1 + math.exp(-2))
    mean = (high + 0.5) / 2
    variance = (high - 0.5) ** 2 / 4
    total = shannon([mean, 1 - mean])
    shared = total - (shannon([high, 1 - high]) + math.log(2)) / 2
    want = {"variance": variance, "entropy": total, "mutual_information": shared}
    assert float(found["sem_seg"][1].exp().mean()) == pytest.approx(mean, abs=1e-3)
    for key, value in want.items():
        assert float(found["uncertainty"][key].mean()) == pytest.approx(value, rel=0.01), key


def test_information_lies_between_zero_and_entropy_and_entropy_below_log_k(model: Dropping) -> None:
    (found,) = McDropout(model, 7)([image()])
    maps = found["uncertainty"]
    assert all(x.shape == (8, 8) and x.dtype == torch.float32 for x in maps.values())
    assert (maps["entropy"] >= maps["mutual_information"]).all() and (maps["mutual_information"] >= 0).all()
    assert float(maps["entropy"].max()) <= math.log(3) and (maps["variance"] > 0).any()
    assert torch.allclose(found["sem_seg"].exp().sum(0), torch.ones(8, 8), atol=1e-5)


@pytest.mark.parametrize("samples", [1, 3])
def test_without_a_dropped_unit_samples_are_the_model_and_carry_no_information(model: Dropping, samples: int) -> None:
    predict = McDropout(model, samples, batch=2)
    model.drop.p = 0.0
    (found,), (plain,) = predict([image()]), model([image()])
    assert torch.allclose(found["sem_seg"], plain["sem_seg"].log_softmax(0), atol=1e-6)
    assert found["uncertainty"]["mutual_information"].max() < 1e-6 and found["uncertainty"]["variance"].max() < 1e-12


def test_one_sample_has_no_variance(model: Dropping) -> None:
    (found,) = McDropout(model, 1)([image()])
    assert found["uncertainty"]["variance"].max() == found["uncertainty"]["mutual_information"].max() == 0


def test_an_images_result_depends_on_the_seed_and_not_on_its_place(model: Dropping) -> None:
    predict = McDropout(model, 3, seed=5)
    alone = predict([image(1)])[0]
    torch.rand(7)
    beside = predict([image(0), image(1)])[1]
    assert torch.equal(alone["sem_seg"], beside["sem_seg"])
    assert not torch.equal(alone["sem_seg"], McDropout(model, 3, seed=6)([image(1)])[0]["sem_seg"])


def test_generators_and_modes_are_left_as_they_were(model: Dropping) -> None:
    state = torch.get_rng_state()
    McDropout(model, 2)([image()])
    assert torch.equal(state, torch.get_rng_state()) and not any(x.training for x in model.modules())
    with pytest.raises(RuntimeError):
        McDropout(model, 2)([{"image": torch.zeros(2, 4, 4)}])
    assert not any(x.training for x in model.modules())


class Around(nn.Module):
    """Of another model."""

    def __init__(self, inner: Dropping) -> None:
        super().__init__()
        self.inner = inner


def test_threads_that_share_it_get_what_one_gets(model: Dropping) -> None:
    class Slow(Around):
        def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
            time.sleep(0.005)
            return self.inner(batched_inputs)

    predict = McDropout(Slow(model).eval(), 3)
    alone = [predict([image(i)])[0]["sem_seg"] for i in range(4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda i: predict([image(i)])[0]["sem_seg"], range(4)))
    assert all(map(torch.equal, alone, together)) and not any(x.training for x in model.modules())


def test_samples_run_in_batches_of_the_size_asked_for(model: Dropping) -> None:
    McDropout(model, 7, batch=3)([image()])
    assert model.seen == [3, 3, 1]


def test_memory_does_not_grow_with_the_samples(model: Dropping, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[Callable[[], Any]] = []
    most = 0
    add = Spread.add

    def watched(self: Spread, sample: Tensor) -> None:
        nonlocal most
        add(self, sample)
        alive.append(weakref.ref(sample))
        most = max(most, sum(ref() is not None for ref in alive))

    monkeypatch.setattr(mc_dropout.Spread, "add", watched)
    McDropout(model, 20)([image()])
    assert len(alive) == 20 and most <= 2  # the mean, and the one being added


def test_other_outputs_are_those_without_dropout(model: Dropping) -> None:
    class Both(Around):
        def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
            assert all(inputs["fuse"] is False for inputs in batched_inputs)
            dropped = self.inner.drop.training
            return [output | {"instances": dropped} for output in self.inner(batched_inputs)]

    (found,) = McDropout(Both(model).eval(), 2)([image()])
    assert found["instances"] is False and found["uncertainty"]["variance"].max() > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"samples": 0}, "TEST.MC_DROPOUT.SAMPLES 0: takes a whole number from 1"),
        ({"samples": 2.5}, "TEST.MC_DROPOUT.SAMPLES 2.5: takes a whole number from 1"),
        ({"samples": 2, "batch": 0}, "TEST.MC_DROPOUT.BATCH 0: takes a whole number from 1"),
        ({"samples": 2, "seed": -1}, "TEST.MC_DROPOUT.SEED -1: takes a whole number from 0"),
    ],
)
def test_numbers_out_of_range_are_refused(model: Dropping, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        McDropout(model, **arguments)


@pytest.mark.parametrize("part", [nn.Identity(), nn.Dropout(0.0)])
def test_a_model_without_dropout_is_refused_with_that_reason(part: nn.Module) -> None:
    with pytest.raises(UserError, match="neither decoder nor backbone has dropout above 0"):
        McDropout(nn.Sequential(part), 3)


def test_the_stack_takes_its_numbers_from_the_config(model: Dropping) -> None:
    keys = get_cfg().TEST
    keys.MC_DROPOUT.SAMPLES, keys.MC_DROPOUT.BATCH = 5, 4
    (found,) = stack_predictors(model, keys)([image()])
    assert found["uncertainty"].keys() == set(MAPS) and model.seen == [4, 1]
    keys.MC_DROPOUT.SAMPLES = -1
    with pytest.raises(UserError, match="SAMPLES -1"):
        stack_predictors(model, keys)
