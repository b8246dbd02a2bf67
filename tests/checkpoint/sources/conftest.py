"""Peers with random weights, and the networks that their state dicts become."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn

import seg_ext.modeling  # noqa: F401  registers the networks
from seg_ext.checkpoint.sources import SOURCES, Hints, Imported
from seg_ext.config import parse_config
from seg_ext.engine.weights import _place

MEAN = torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)
STD = torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1)


def used(net: nn.Module) -> nn.Module:
    """A network in eval mode with weights and statistics that no two layers share, scores of order 1."""
    if next(net.parameters()).is_meta:
        net.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for name, value in net.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2, generator=generator)
        elif value.is_floating_point():
            value.normal_(std=(1.5 / value[0].numel()) ** 0.5 if value.dim() > 1 else 0.3, generator=generator)
            value.add_(1 if name.endswith("weight") and value.dim() == 1 else 0)
        else:
            value.zero_()
    return net.eval()


@dataclass
class Ours:
    """A network of ours that was imported."""

    model: nn.Module
    imported: Imported
    cfg: CfgNode

    @torch.no_grad()
    def scores(self, image: Tensor) -> Tensor:
        """(K, H, W) of an image (3, H, W) in 0 to 255."""
        height, width = image.shape[1:]
        [result] = self.model([{"image": image, "height": height, "width": width}])
        return result["sem_seg"]


def place(source: str, state: Mapping[str, Tensor], **hints: Any) -> tuple[Imported, CfgNode]:
    """The import, with every tensor under the names of our model on the meta device, or an error."""
    imported = SOURCES[source](state, Hints(**hints))
    cfg = parse_config(yaml.safe_dump(imported.config), "test", base=imported.base)
    assert imported.names.keys() | set(imported.left_out) == state.keys() or not imported.names
    _place(imported, cfg, "test")
    return imported, cfg


def build(source: str, state: Mapping[str, Tensor], **hints: Any) -> Ours:
    """The network of ours with the imported weights and nothing else: the rest of the memory is as it was found."""
    imported, cfg = place(source, state, **hints)
    on_meta = cfg.clone()
    on_meta.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(on_meta)
    model.to_empty(device="cpu")
    for name, values in (("pixel_mean", cfg.MODEL.PIXEL_MEAN), ("pixel_std", cfg.MODEL.PIXEL_STD)):
        getattr(model, name).copy_(torch.tensor(values).view(-1, 1, 1))
    if model.proposal_generator is not None:
        anchors = model.proposal_generator.anchor_generator
        for cells, sizes in zip(anchors.cell_anchors, cfg.MODEL.ANCHOR_GENERATOR.SIZES, strict=True):
            cells.copy_(anchors.generate_cell_anchors(sizes, cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS[0]))
    model.load_state_dict(imported.weights, strict=False)
    return Ours(model.eval(), imported, cfg)


def images(*sizes: tuple[int, int]) -> list[Tensor]:
    """RGB, 0 to 255, of these heights and widths."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 256, (3, *size), generator=generator).float() for size in sizes]


def normalized(image: Tensor) -> Tensor:
    """What networks for ImageNet's statistics see: (1, 3, H, W)."""
    return ((image - MEAN) / STD)[None]


def assert_equal(got: Tensor, want: Tensor) -> None:
    """To 1e-5 of the greatest score."""
    assert got.shape == want.shape and want.std() > 1e-2 and want.isfinite().all()
    assert (got - want).abs().max() <= 1e-5 * want.abs().max()


@pytest.fixture(scope="session")
def kit() -> SimpleNamespace:
    """The functions above."""
    functions = (used, place, build, images, normalized, assert_equal)
    return SimpleNamespace(**{function.__name__: function for function in functions})
