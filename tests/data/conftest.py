"""Toy data that several tests share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from seg_ext.data.datasets import data_root, register_all


@pytest.fixture
def restored_catalogs() -> Iterator[None]:
    """Built-in sets point at the usual root again afterwards."""
    yield
    register_all(data_root())


@pytest.fixture
def write_pair() -> Callable[..., None]:
    """Writes a random picture and a label map of the given ids, height 6 and width 8."""

    def write(image: Path, label: Path, ids: list[int]) -> None:
        for file in (image, label):
            file.parent.mkdir(parents=True, exist_ok=True)
        generator = np.random.default_rng(0)
        Image.fromarray(generator.integers(0, 255, (6, 8, 3), np.uint8)).save(image)
        Image.fromarray(np.resize(np.array(ids, np.uint8), (6, 8))).save(label)

    return write


@pytest.fixture
def instance_tree(tmp_path: Path) -> Path:
    """A folder with one split "train": two images with instance labels, two of the instances touching."""
    labels = np.zeros((12, 16), np.uint8)
    labels[2:6, 1:5] = 1
    labels[2:6, 5:9] = 2
    labels[8:12, 12:16] = 7
    for kind in ("images", "labels"):
        (tmp_path / "train" / kind).mkdir(parents=True)
    for name, ids in (("a", labels), ("b", np.zeros_like(labels))):
        Image.fromarray(np.stack([ids * 30] * 3, axis=2)).save(tmp_path / "train" / "images" / f"{name}.png")
        Image.fromarray(ids).save(tmp_path / "train" / "labels" / f"{name}.png")
    return tmp_path


class StandIn:
    """What an albumentations Compose does, in small: shift by up to ``most`` pixels, then mirror or not."""

    def __init__(self, most: int = 3) -> None:
        self.most = most

    def __call__(self, *, image: np.ndarray, masks: list[np.ndarray], mask: np.ndarray | None = None) -> dict[str, Any]:
        down, right = np.random.randint(-self.most, self.most + 1, 2)
        step = int(np.random.choice([-1, 1]))

        def moved(pixels: np.ndarray) -> np.ndarray:
            out = np.zeros_like(pixels)
            height, width = pixels.shape[:2]
            inner = pixels[max(-down, 0) : height - max(down, 0), max(-right, 0) : width - max(right, 0)]
            out[max(down, 0) :, max(right, 0) :][: inner.shape[0], : inner.shape[1]] = inner
            return out[:, ::step]

        given = {"image": image} if mask is None else {"image": image, "mask": mask}
        return {key: moved(pixels) for key, pixels in given.items()} | {"masks": [moved(m) for m in masks]}


@pytest.fixture(autouse=True)
def compose_stand_in(monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    """``compose_stand_in:build`` makes a :class:`StandIn`, as a package of a user's would."""
    module = ModuleType("compose_stand_in")
    module.build = StandIn  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "compose_stand_in", module)
    return StandIn
