"""What a config's model costs and sees: parameters, multiply-adds, output shapes, memory, receptive fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn
from torch.fx.experimental import _config

from seg_ext.engine.multiply_adds import count_multiply_adds, uncounted_operators
from seg_ext.engine.network import FULL_SIZE, Network
from seg_ext.engine.probes import PeakMemory, receptive_fields
from seg_ext.errors import UserError

PROBE_ROWS = 4097
"""Height, pixels, of the image in which receptive fields are measured."""

PROBE_COLUMNS = 65

DEFAULT_SIZE = (512, 512)


@dataclass(frozen=True)
class Module:
    """A module by its dotted name ("" for the model); numbers of elements, and of multiply-adds for one image."""

    name: str
    kind: str
    parameters: int
    trainable: int
    buffers: int
    multiply_adds: int


@dataclass(frozen=True)
class Output:
    """A map of the model for one image; height and width in cells, the rest in pixels.

    ``receptive_field`` is the height that the middle cell sees; :data:`PROBE_ROWS` stands for the whole image,
    None for a net that :class:`seg_ext.engine.probes.Support` cannot run.
    """

    name: str
    channels: int
    height: int
    width: int
    stride: int
    offset: int
    receptive_field: int | None


@dataclass(frozen=True)
class Memory:
    """Peak of a pass in float32, bytes: weights, activations, gradients; without the optimizer's state.

    ``peak`` is None where the pass cannot run, for which ``reason`` is why.
    """

    mode: str
    batch: int
    peak: int | None
    reason: str = ""


@dataclass(frozen=True)
class Analysis:
    """All of it; ``modules`` in their order in the model, ``uncounted`` operators with their number of calls.

    ``proposals`` and ``masks`` (or sets of keypoints) say how many regions of an image the instance heads were counted
    on, ``weights`` the bytes of parameters and buffers, ``left_out`` which parts of the model were not run.
    """

    model: str
    size: tuple[int, int]
    padded: tuple[int, int]
    modules: list[Module]
    outputs: list[Output]
    weights: int
    memory: list[Memory]
    uncounted: dict[str, int]
    proposals: int
    masks: int
    left_out: list[str]


def analyze(cfg: CfgNode, *, size: Sequence[int] | None = None, batches: Sequence[int] = (1,)) -> Analysis:
    """Analyze the model of a config; nothing is allocated but one channel for the receptive fields.

    Multiply-adds are those of convolutions and matrix products. Instance heads run on the number of proposals and
    detections that the config allows, without pooling, selection and pasting.

    Args:
        cfg: complete (see :mod:`seg_ext.engine.checks`).
        size: height and width of the image, pixels; None takes :func:`training_size`.
        batches: numbers of images of the passes whose memory is measured.

    Raises:
        UserError: a size that the network cannot take, or whatever is wrong with the config.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "meta"
    cfg.MODEL.TIMM.PRETRAINED = False
    with torch.device("meta"):
        model = build_model(cfg).eval()
    height, width = training_size(cfg) if size is None else size
    size = (height, width)
    network = Network(model).eval()
    padded = network.padded(size)
    channels = len(cfg.MODEL.PIXEL_MEAN)
    image = torch.zeros(1, channels, *padded, device="meta")
    try:
        with torch.no_grad():
            maps = network.maps(image)
            counts = count_multiply_adds(network, image)
    except RuntimeError as error:
        raise UserError(f"{size[0]}x{size[1]} pixels: the network cannot take this size: {_line(error)}") from error
    multiply_adds = counts.by_module()
    memory = [measure_memory(network, channels, padded, mode, n) for mode in ("inference", "training") for n in batches]
    proposals, masks = network.eval().regions
    return Analysis(
        model=type(model).__name__,
        size=size,
        padded=padded,
        modules=[_module(name, module, multiply_adds) for name, module in model.named_modules()],
        outputs=_outputs(network, maps, size, padded),
        weights=sum(x.nbytes for x in (*model.parameters(), *model.buffers())),
        memory=memory,
        uncounted=uncounted_operators(counts),
        proposals=proposals,
        masks=masks,
        left_out=network.left_out,
    )


def training_size(cfg: CfgNode) -> tuple[int, int]:
    """Height and width of the last augmentation in INPUT.AUGMENTATIONS that has a size in pixels, else 512x512."""
    for entry in reversed(cfg.INPUT.AUGMENTATIONS):
        size = entry.get("size") if isinstance(entry, Mapping) else None
        if isinstance(size, Sequence) and len(size) == 2 and all(isinstance(x, int) and x > 0 for x in size):
            return size[0], size[1]
    return DEFAULT_SIZE


def measure_memory(network: Network, channels: int, size: Sequence[int], mode: str, batch: int) -> Memory:
    """Peak of a forward pass ("inference") or of forward and backward ("training"), with the network's losses.

    Works on real tensors too, where it also computes.
    """
    network.train(mode == "training").zero_grad()
    device = next(network.parameters()).device
    try:
        with PeakMemory() as memory, _assume_all_nonzero():
            for tensor in (*network.parameters(), *network.buffers()):
                memory.hold(tensor)
            image = torch.zeros(batch, channels, *size, device=device)
            if mode == "training":
                target = torch.zeros(batch, *size, dtype=torch.long, device=device)
                network.loss(image, target).backward()
            else:
                with torch.no_grad():
                    network(image)
    except (UserError, ValueError, RuntimeError, NotImplementedError) as error:
        return Memory(mode, batch, None, _line(error))
    finally:
        network.zero_grad()
    return Memory(mode, batch, memory.peak)


def _assume_all_nonzero() -> Any:
    """On the meta device a mask selects every element, the most that it can."""
    return _config.patch(meta_nonzero_assume_all_nonzero=True)  # type: ignore[attr-defined]


def _line(error: Exception) -> str:
    return str(error).split("\n")[0].strip() or type(error).__name__


def _module(name: str, module: nn.Module, multiply_adds: Mapping[str, int]) -> Module:
    sizes = [(x.numel(), x.requires_grad) for x in module.parameters()]
    return Module(
        name=name,
        kind=type(module).__name__,
        parameters=sum(n for n, _ in sizes),
        trainable=sum(n for n, trains in sizes if trains),
        buffers=sum(x.numel() for x in module.buffers()),
        multiply_adds=int(multiply_adds.get(name, 0)),
    )


def _outputs(network: Network, maps: Mapping[str, Tensor], size: Sequence[int], padded: Sequence[int]) -> list[Output]:
    """Every map; those that the model gives at the image's size have it, without padding."""
    fields = _fields(network, padded[1])
    specs = network.backbone.output_shape()
    outputs = []
    for name, x in maps.items():
        if not x.is_floating_point():  # the places of maxima
            continue
        owner = specs.get(name, getattr(network.sem_seg_head, "decoder", None) if name == "logits" else None)
        stride = getattr(owner, "stride", getattr(owner, "out_stride", 1))
        offset = getattr(owner, "offset", -getattr(owner, "out_offset", 0) * stride)
        height, width = size if name in FULL_SIZE else x.shape[2:]
        outputs.append(Output(name, x.shape[1], height, width, stride, offset, fields.get(name)))
    return outputs


def _fields(network: Network, width: int) -> dict[str, int]:
    """Heights by name; none for a net that the probe cannot run. A narrow image will do where the net takes it."""
    rows: dict[str, tuple[int, int]] = {}
    for columns in (min(width, PROBE_COLUMNS), width):
        height, columns = network.padded((PROBE_ROWS, columns))
        try:
            rows = receptive_fields(network.maps, height, columns)
        except Exception:  # a foreign net may fail in any way on one channel
            continue
        break
    whole = {name: first == 0 and last == height - 1 for name, (first, last) in rows.items()}
    return {name: PROBE_ROWS if whole[name] else last - first + 1 for name, (first, last) in rows.items()}
