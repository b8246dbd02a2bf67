"""What mmsegmentation's tensors cannot say, from the config that a checkpoint carries or the name of a public one.

Derived from mmsegmentation 1.2.2: mmseg/models (backbones/resnet.py, utils/res_layer.py, backbones/unet.py,
decode_heads/{decode_head,fcn_head,psp_head,aspp_head,sep_aspp_head}.py, data_preprocessor.py) and its configs.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from seg_ext.checkpoint.sources.naming import Hints

_NAME = re.compile(
    r"(?P<head>fcn|pspnet|deeplabv3plus|deeplabv3)(?P<dilated>[-_]d6)?_r(?P<depth>\d+)b?-d(?P<stride>\d+)"
    r"(?P<grid>-mg\d+)?(?P<rest>[-_.].*)?"
)
_NAMES = "pspnet_r50-d8, pspnet_r50-d32, fcn-d6_r50-d16 or deeplabv3_r101-d16-mg124"
_PIPELINE = ("test_pipeline",), ("test_dataloader", "dataset", "pipeline"), ("data", "test", "pipeline")


@dataclass(frozen=True)
class Recipe:
    """A network's settings beside its tensors; the defaults are those of the public configs of output stride 8.

    Attributes:
        known: they come from a config or a name and are not assumed.
        strides, dilations: of layer1 to layer4.
        multi_grid: dilations of layer4's units, in place of its own.
        contract: the first unit of a dilated layer has half its dilation.
        caffe: the stride of a bottleneck sits in its first 1x1.
        rates: dilations of the ASPP, with the 1 of its 1x1 branch.
        bins: of the pyramid pooling.
        head, aux: dilation of an FCN head's convolutions; None for an auxiliary head on another map than layer3's.
        align_corners: of every resizing.
        threshold: of the probability in a network of one score.
        model: further nodes of MODEL: mean and deviation.
        inputs: of INPUT: order of the channels, size.
        test: of TEST: sliding windows.
    """

    known: bool = False
    strides: tuple[int, ...] = (1, 2, 1, 1)
    dilations: tuple[int, ...] = (1, 1, 2, 4)
    multi_grid: tuple[int, ...] = ()
    contract: bool = True
    caffe: bool = False
    rates: tuple[int, ...] = (1, 12, 24, 36)
    bins: tuple[int, ...] = (1, 2, 3, 6)
    head: int = 1
    aux: int | None = 1
    align_corners: bool = False
    threshold: float = 0.3
    model: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Any] = field(default_factory=dict)
    test: Mapping[str, Any] = field(default_factory=dict)

    @property
    def stride(self) -> int:
        """Output stride of the backbone.

        Raises:
            ValueError: strides that our ResNet does not have.
        """
        known: dict[tuple[int, ...], int] = {(1, 2, 1, 1): 8, (1, 2, 2, 1): 16, (1, 2, 2, 2): 32}
        found = known.get(self.strides)
        if found is None:
            takes = "(1, 2, 1, 1), (1, 2, 2, 1) or (1, 2, 2, 2)"
            raise ValueError(f"strides {self.strides} of its backbone: takes {takes}")
        return found


_VARIANTS = {  # of the public configs, as their names say them: dilated head, output stride, multi-grid
    ("", "8", ""): Recipe(known=True),
    ("d6", "16", ""): Recipe(known=True, strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2), head=6, aux=6),
    ("", "16", "mg124"): Recipe(
        known=True, strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2), multi_grid=(1, 2, 4), rates=(1, 6, 12, 18)
    ),
    ("", "32", ""): Recipe(known=True, strides=(1, 2, 2, 2)),
}


def recipe_of(hints: Hints, *, kind: str, depth: int = 0) -> Recipe:
    """The recipe by the name in ``hints.arch``, else by the config in ``meta``, else by the file's name, else of d8.

    Args:
        hints: a public config's name or its start; "cfg" (1.x) or "config" (0.x) in ``meta`` is a config as text.
        kind: the network that the tensors make: fcn, pspnet, deeplabv3, deeplabv3plus or unet.
        depth: of its ResNet; 0 for a U-Net.

    Raises:
        ValueError: a name that is none or of another network, or a config with what is not here.
    """
    if hints.arch and not (kind == "unet" and "unet" in hints.arch):
        return _named(hints.arch, kind, depth)
    text = hints.meta.get("cfg") or hints.meta.get("config")
    config = read_config(text) if isinstance(text, str) else {}
    model = config.get("model")
    if isinstance(model, dict):
        return _configured(config, model, kind)
    try:
        return _named(hints.file, kind, depth)
    except ValueError:  # a file may have any name
        return Recipe()


def read_config(text: str) -> dict[str, Any]:
    """The assignments of a config's text, of numbers, text, lists and dicts; what else it holds becomes None.

    Nothing of it is run; empty where it is no Python.
    """
    try:
        body = ast.parse(text).body
        return {
            target.id: _value(line.value)
            for line in body
            if isinstance(line, ast.Assign)
            for target in line.targets
            if isinstance(target, ast.Name)
        }
    except (SyntaxError, TypeError, ValueError, RecursionError, MemoryError):
        return {}


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_value(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        return {_value(key): _value(item) for key, item in zip(node.keys, node.values, strict=True) if key is not None}
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        return {item.arg: _value(item.value) for item in node.keywords if item.arg is not None}
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
        number = node.operand.value
        return -number if isinstance(number, (int, float)) else None
    return None


def _named(arch: str, kind: str, depth: int) -> Recipe:
    found = _NAME.fullmatch(arch)
    groups = {name: value or "" for name, value in found.groupdict().items()} if found else {}
    recipe = groups and _VARIANTS.get((groups["dilated"].strip("-_"), groups["stride"], groups["grid"].strip("-")))
    if not recipe:
        raise ValueError(f"--arch {arch}: takes the name of a public config of mmsegmentation, such as {_NAMES}")
    if (groups["head"], int(groups["depth"])) != (kind, depth):
        raise ValueError(f"--arch {arch}: the weights are of {f'{kind} on ResNet-{depth}' if depth else 'a U-Net'}")
    return replace(recipe, align_corners="769x769" in groups["rest"])


def _configured(config: Mapping[str, Any], model: Mapping[str, Any], kind: str) -> Recipe:
    backbone, head, aux = (_node(model, key) for key in ("backbone", "decode_head", "auxiliary_head"))
    _refuse(backbone, "backbone", {"dcn": (None,), "plugins": (None,)})
    _refuse(head, "decode_head", {"input_transform": (None,), "in_index": (-1, 4 if kind == "unet" else 3)})
    if kind == "unet":
        levels = _ints(backbone, "num_stages", 5)
        for key, value, count in (("strides", 1, levels), ("downsamples", True, levels - 1),
                                  ("enc_dilations", 1, levels), ("dec_dilations", 1, levels - 1)):  # fmt: skip
            _refuse(backbone, "backbone", {key: ([value] * count,)})
        _refuse(head, "decode_head", {"dilation": (1,), "align_corners": (False,)})
        _refuse(_node(backbone, "upsample_cfg"), "backbone.upsample_cfg", {"type": ("InterpConv",)})
    defaults = {"strides": (1, 2, 2, 2), "dilations": (1, 1, 1, 1)}  # of the classes, not of the public configs
    stages = {key: _ints(backbone, key, value) for key, value in defaults.items()} if kind != "unet" else {}
    rates = _ints(head, "dilations", (1, 6, 12, 18))
    threshold = head.get("threshold")
    one = aux.get("in_index", -1) == 2 and not aux.get("input_transform")
    return Recipe(
        known=True,
        **stages,
        multi_grid=_ints(backbone, "multi_grid", ()),
        contract=bool(backbone.get("contract_dilation", False)),
        caffe=backbone.get("style", "pytorch") == "caffe",
        rates=rates,
        bins=_ints(head, "pool_scales", (1, 2, 3, 6)),
        head=_ints(head, "dilation", 1),
        aux=_ints(aux, "dilation", 1) if one else None,
        align_corners=bool(head.get("align_corners", False)),
        threshold=threshold if isinstance(threshold, (int, float)) else 0.3,
        **_pipeline(config, model),
    )


def _refuse(node: Mapping[str, Any], name: str, accepted: Mapping[str, Sequence[Any]]) -> None:
    """Refuse what leaves no trace in the tensors and is not here; convolutions and norms too."""
    eps = _node(node, "norm_cfg").get("eps", 1e-5)
    act = _node(node, "act_cfg").get("type", "ReLU")
    for key, value, takes in (
        ("norm_cfg.eps", eps, (1e-5,)),
        ("act_cfg.type", act, ("ReLU",)),
        ("conv_cfg", node.get("conv_cfg"), (None, {"type": "Conv2d"})),
        *((key, node[key], takes) for key, takes in accepted.items() if key in node),
    ):
        if value not in takes:
            raise ValueError(f"{name}.{key} {value!r} in its config: takes {' or '.join(map(repr, takes))}")


def _pipeline(config: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    """Nodes of MODEL, INPUT and TEST: mean and deviation, the test image's size, sliding windows."""
    steps = next((found for path in _PIPELINE if (found := list(_steps(_at(config, path))))), [])
    at = {str(step.get("type")): step for step in reversed(steps)}
    before = at.get("Normalize") or _node(config, "img_norm_cfg")  # 0.x
    seen = _node(model, "data_preprocessor") or _node(config, "data_preprocessor") or before
    out: dict[str, dict[str, Any]] = {"model": {}, "inputs": {}, "test": {}}
    if seen.get("mean") and seen.get("std"):
        out["model"] = {"PIXEL_MEAN": _numbers(seen, "mean"), "PIXEL_STD": _numbers(seen, "std")}
        rgb = seen.get("to_rgb", True) if seen is before else seen.get("bgr_to_rgb") or seen.get("rgb_to_bgr")
        out["inputs"]["FORMAT"] = "RGB" if rgb else "BGR"  # the files are read as BGR
    scale = at.get("MultiScaleFlipAug", {}).get("img_scale") or at.get("Resize", {}).get("scale")
    if _pair(scale) and at.get("Resize", {}).get("keep_ratio"):
        out["inputs"] |= {"MIN_SIZE_TEST": min(scale), "MAX_SIZE_TEST": max(scale)}
    slide = _node(model, "test_cfg") or _node(config, "test_cfg")
    sides: list[Any] = [slide.get("crop_size"), slide.get("stride")]
    crop, step = ([side, side] if isinstance(side, int) else side for side in sides)
    if slide.get("mode") == "slide" and _pair(crop) and _pair(step):
        overlap = max(1 - b / a for a, b in zip(crop, step, strict=True))
        out["test"]["SLIDING_WINDOW"] = {"SIZE": list(crop), "OVERLAP": overlap, "BLEND": "scores"}
    return out


def _steps(pipeline: Any) -> Iterator[dict[str, Any]]:
    """The transforms of a pipeline, and those within them."""
    for step in pipeline if isinstance(pipeline, list) else ():
        if isinstance(step, dict):
            yield step
            yield from _steps(step.get("transforms"))


def _at(node: Any, path: Sequence[str]) -> Any:
    for key in path:
        node = node.get(key) if isinstance(node, dict) else None
    return node


def _node(node: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = node.get(key)
    return found if isinstance(found, dict) else {}


def _pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(x, int) and x > 0 for x in value)


def _numbers(node: Mapping[str, Any], key: str) -> list[float]:
    found = node[key]
    if not isinstance(found, list) or not all(isinstance(x, (int, float)) for x in found):
        raise ValueError(f"{key} {found!r} in its config: takes numbers")
    return [float(x) for x in found]


def _ints(node: Mapping[str, Any], key: str, default: Any) -> Any:
    """One whole number >= 1, or as many as there are, as the default is."""
    found = node.get(key)
    if found is None:
        return default
    values = found if isinstance(default, tuple) else [found]
    if not isinstance(values, list) or not all(isinstance(x, int) and x > 0 for x in values):
        takes = "whole numbers" if isinstance(default, tuple) else "a whole number"
        raise ValueError(f"{key} {found!r} in its config: takes {takes} >= 1")
    return tuple(values) if isinstance(default, tuple) else found
