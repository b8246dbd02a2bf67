"""Every decoder in every format, narrow but whole: docs/export.md is what this finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.modeling import build_model

import seg_ext.modeling  # noqa: F401  registers models
from seg_ext import UserError, load_config
from seg_ext.decoders import DECODERS
from seg_ext.engine.export import graph_of
from seg_ext.engine.sidecar import task_of
from seg_ext.export import EXPORTERS, verify

PAGE = Path(__file__).parents[2] / "docs" / "export.md"
BEGIN, END = "<!-- grid: tests/export/test_grid.py -->", "<!-- end -->"
CACHE = "seg_ext/export_grid"  # rows of earlier runs, so that parts of the grid may be run by themselves

POOLS = ["pool2", "pool3", "pool4", "pool5"]
CONVS = ["conv1", "conv2", "conv3", "conv4"]
DECODER_ROWS: dict[str, tuple[str, list[str], dict[str, Any]]] = {  # variant of a narrow VGG, its maps, arguments
    "fcn": ("plain", ["pool3", "pool4", "pool5"], {"replicate_border": True}),
    "fcn_head": ("deeplab", ["pool4", "pool5"], {}),
    "fcn_sum": ("plain", POOLS, {}),
    "unet": ("plain", CONVS, {}),
    "unetpp": ("plain", CONVS, {}),
    "unet3p": ("plain", CONVS, {"channels": 8}),
    "linknet": ("plain", POOLS, {"channels": 8}),
    "semantic_fpn": ("plain", POOLS, {"channels": 16, "pyramid": 16}),
    "refinenet": ("plain", POOLS, {"channels": 16, "deepest_channels": 32}),
    "gcn": ("plain", POOLS, {"kernel_size": 5}),
    "deeplabv3plus": ("plain", ["pool2", "pool4"], {"channels": 32, "low_level_channels": 8}),
    "pspnet": ("deeplab", ["pool4", "pool5"], {"channels": 32}),
    "segnet": ("segnet", ["image", *(f"pool{i}_indices" for i in range(1, 6)), "pool5"], {}),
    "segnet_basic": ("segnet_basic", ["image", *(f"pool{i}_indices" for i in range(1, 5)), "pool4"], {}),
    "deeplabv1": ("deeplab_largefov", ["fc7"], {}),
    "deeplabv2": ("deeplab", ["pool5"], {}),
    "deeplabv3": ("deeplab", ["pool5"], {"channels": 32}),
    "dilated_context": ("deeplab_largefov", ["fc7"], {}),
}
FEW = ["MODEL.RPN.PRE_NMS_TOPK_TEST", 50, "MODEL.RPN.POST_NMS_TOPK_TEST", 20, "MODEL.ROI_BOX_HEAD.FC_DIM", 32]
OTHER_ROWS: dict[str, tuple[str, list[Any]]] = {  # shipped config, overrides
    "panoptic: U-Net and Mask R-CNN on FPN": ("nuclei/panoptic_unet_R_18_FPN.yaml", FEW),
    "Panoptic-DeepLab": (
        "cityscapes/panoptic_deeplab_R_52_os16.yaml",
        ["MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64],
    ),
}
ROWS = [*DECODER_ROWS, *OTHER_ROWS]


def config_of(row: str) -> Any:
    if row in OTHER_ROWS:
        name, opts = OTHER_ROWS[row]
        return load_config(name, ["MODEL.DEVICE", "cpu", *map(str, opts)])
    variant, features, args = DECODER_ROWS[row]
    head = "MODEL.SEM_SEG_HEAD"
    keys = {
        "MODEL.DEVICE": "cpu",
        "MODEL.BACKBONE.NAME": "build_seg_ext_vgg_backbone",
        "MODEL.VGG.VARIANT": variant,
        "MODEL.VGG.WIDTH": 4,
        "MODEL.VGG.NORM": "BN",
        "MODEL.VGG.OUT_FEATURES": [name for name in features if name != "image"],
        f"{head}.IN_FEATURES": features,
        f"{head}.DECODER.NAME": row,
        f"{head}.NUM_CLASSES": 5,
        **{f"{head}.DECODER.ARGS.{key}": repr(value) for key, value in args.items()},
    }
    return load_config("Base-Semantic.yaml", [str(x) for pair in keys.items() for x in pair])


def test_every_decoder_has_a_row() -> None:
    assert list(DECODER_ROWS) == list(DECODERS)


def note(config: pytest.Config, cell: str, text: str) -> None:
    """Keep what the table says of "row/format", and write the table once every cell is known."""
    assert config.cache is not None
    found: dict[str, str] = {**config.cache.get(CACHE, {}), cell: text}
    config.cache.set(CACHE, found)
    if {f"{row}/{name}" for row in ROWS for name in EXPORTERS} <= found.keys():
        write_page(found)


def write_page(cells: dict[str, str]) -> None:
    lines = ["| | " + " | ".join(EXPORTERS) + " |", "|---|" + "---|" * len(EXPORTERS)]
    lines += [f"| {row} | " + " | ".join(cells[f"{row}/{name}"] for name in EXPORTERS) + " |" for row in ROWS]
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text("\n".join([before + BEGIN, "", *lines, "", END + rest.split(END)[1]]))


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPORTERS)
@pytest.mark.parametrize("row", ROWS)
def test_it_equals_eager_at_three_sizes_and_two_batches_or_is_refused_with_the_reason(
    row: str, name: str, pytestconfig: pytest.Config, tmp_path: Path
) -> None:
    cfg, exporter = config_of(row), EXPORTERS[name]
    for package in exporter.needs:
        pytest.importorskip(package, reason="needs the extra `export`")
    options = {"preprocessing": False, "labels": False}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model(cfg).eval()
    task = task_of(cfg)
    try:
        graph = graph_of(cfg, model, name, task, **options)
        refusal = ""
    except UserError as error:
        assert row in OTHER_ROWS, error
        refusal = f"{task} refused; "
        task = "semantic"
        graph = graph_of(cfg, model, name, task, **options)
    file = tmp_path / f"model{exporter.suffix}"
    exporter.write(graph, file, "{}")
    if graph.divisor > 1 and name == "torch-export":
        with pytest.raises(UserError, match="Guard failed"):
            verify(graph, exporter.load(file))
        note(pytestconfig, f"{row}/{name}", f"{refusal}{task} refused: it fails where a side needs padding")
        return
    checks = verify(graph, exporter.load(file))
    assert len(checks) == 3 * len(graph.batches)
    shown = f"{task}: " if row in OTHER_ROWS else ""
    note(pytestconfig, f"{row}/{name}", f"{refusal}{shown}{', '.join(graph.dynamic.values())}")
