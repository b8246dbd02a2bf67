"""Exported files: they say what they are, equal the model at any size, and are not kept where they do not."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from seg_ext import Predictor, UserError, load_config
from seg_ext.cli.export import FORMATS
from seg_ext.cli.main import main
from seg_ext.config import get_cfg
from seg_ext.engine import export as engine
from seg_ext.engine.sidecar import task_of
from seg_ext.export import EXPORTERS, Graph, SemanticGraph, verify
from seg_ext.export.formats import DOCUMENT


@pytest.fixture(scope="module")
def predictor(run_folder: Path) -> Predictor:
    return Predictor(run_folder / "model_final.pth")


def document_in(file: Path) -> dict[str, Any]:
    """The description in a file of torch's, which is a zip."""
    with zipfile.ZipFile(file) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(DOCUMENT)]
        return json.loads(archive.read(name))


def test_an_onnx_file_says_what_it_takes_and_gives_and_leaves_size_and_batch_open(onnx_file: Path) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(str(onnx_file))
    onnx.checker.check_model(model)
    shapes = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in [*model.graph.input, *model.graph.output]
    }
    assert shapes == {"image": ["batch", 3, "height", "width"], "scores": ["batch", 2, "height", "width"]}
    (entry,) = model.metadata_props
    said = json.loads(entry.value)
    assert entry.key == "seg_ext" and said["classes"] == ["ground", "box"] and said["task"] == "semantic"
    assert said["input"] == {
        "layout": "NCHW",
        "type": "float32",
        "channels": "BGR",
        "range": [0, 255],
        "mean": [120.0, 110.0, 100.0],
        "std": [58.0, 57.0, 56.0],
        "inside": False,
        "resize": [{"shortest": 64, "longest": 70}],
        "dynamic": ["batch", "height", "width"],
    }


@pytest.mark.parametrize(("batch", "height", "width"), [(3, 64, 64), (1, 33, 90), (2, 200, 17)])
def test_an_onnx_file_equals_the_model_at_other_sizes_than_it_was_checked_at(
    predictor: Predictor, onnx_file: Path, batch: int, height: int, width: int
) -> None:
    graph = SemanticGraph(predictor.model)
    image = graph.example(batch, height, width, seed=1)
    with torch.no_grad():
        expected = graph(image)
    found = EXPORTERS["onnx"].load(onnx_file)(image)
    assert isinstance(found, Tensor) and found.shape == (batch, 2, height, width)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_with_preprocessing_and_labels_raw_pixels_give_the_labels_of_the_predictor(
    predictor: Predictor, tmp_path: Path
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 66, 3), dtype=np.uint8)  # of a size that needs no resizing
    expected = predictor(image)["sem_seg"].argmax(0)
    assert 0 < expected.float().mean() < 1
    exported = engine.export(predictor, tmp_path / "x.ts", format="torchscript", preprocessing=True, labels=True)
    found = EXPORTERS["torchscript"].load(exported.file)(torch.from_numpy(image)[None])
    assert torch.equal(found[0], expected)
    said = document_in(exported.file)
    assert said["input"]["inside"] and said["outputs"] == [{"name": "labels", "layout": "NHW"}]
    assert [check.difference for check in exported.checks] == [None] * 6


def test_a_torch_export_program_carries_its_description(predictor: Predictor, tmp_path: Path) -> None:
    exported = engine.export(predictor, tmp_path / "x.pt2", format="torch-export")
    assert document_in(exported.file)["classes"] == ["ground", "box"]
    assert len(exported.checks) == 6 and all(check.difference == 0 for check in exported.checks)


def test_a_file_that_differs_from_the_model_is_not_kept(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = EXPORTERS["torchscript"]

    def write(graph: Graph, file: Path, document: str) -> None:
        changed = SemanticGraph(predictor.model)
        changed.backbone = torch.nn.Sequential(torch.nn.Hardtanh(-2, 2), graph.backbone)
        exporter.write(changed, file, document)

    monkeypatch.setitem(EXPORTERS, "torchscript", replace(exporter, write=write))
    with pytest.raises(UserError, match=r"differs from the model at 1 x 128 x 160: scores by \S+ \(at most 1.0e-04\)"):
        engine.export(predictor, tmp_path / "x.ts", format="torchscript")
    assert not list(tmp_path.iterdir())


def test_a_model_that_a_format_cannot_hold_is_refused_in_one_line(predictor: Predictor, tmp_path: Path) -> None:
    class Foreign(torch.nn.Module):
        out_stride = 1

        def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
            return {"logits": features["level1"][:, :2] * float(features["level1"].mean())}

    decoder, head = predictor.model.sem_seg_head.decoder, predictor.model.sem_seg_head
    head.decoder = Foreign()
    try:
        with pytest.raises(UserError, match="--format torch-export cannot hold this model: ") as caught:
            engine.export(predictor, tmp_path / "x.pt2", format="torch-export")
    finally:
        head.decoder = decoder
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_a_file_that_its_runtime_does_not_read_is_refused_in_one_line(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = replace(EXPORTERS["torchscript"], write=lambda graph, file, document: file.write_bytes(b"no program"))
    monkeypatch.setitem(EXPORTERS, "torchscript", exporter)
    with pytest.raises(UserError, match="--format torchscript cannot hold this model: ") as caught:
        engine.export(predictor, tmp_path / "x.ts", format="torchscript")
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_without_a_file_to_lie_beside_the_name_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = get_cfg()
    cfg.MODEL.WEIGHTS = "https://host/w.pth"
    monkeypatch.setattr("seg_ext.cli.export.config_for", lambda args: cfg)
    assert main(["export", "--weights", cfg.MODEL.WEIGHTS]) == 2
    assert "--output is missing: https://host/w.pth is no file" in capsys.readouterr().err


class Twice(Graph):
    """A graph without a model: two classes, scores of twice the image."""

    task, outputs, dynamic = "semantic", {"scores": "NKHW"}, {0: "batch", 2: "height", 3: "width"}

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)
        self.register_buffer("pixel_mean", torch.zeros(2, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        return 2 * image

    def labels_of(self, outputs: tuple[Tensor, ...]) -> Tensor:
        return outputs[0].argmax(1)


def fails_when_upright(image: Tensor) -> Tensor:
    if image.shape[2] > image.shape[3]:
        raise RuntimeError("\nsomewhere deep\nsize 192 is not 128")
    return 2 * image


WRONG = {
    "off by more": (lambda x: 2 * x + 2e-4, r"at 1 x 128 x 160: scores by 2.0e-04 \(at most 1.0e-04\), 100.0000%"),
    "not a number": (lambda x: 2 * x * torch.nan, "differs from the model at 1 x 128 x 160: scores by nan"),
    "a constant batch": (lambda x: 2 * x[:1], r"gives \[\(1, 2, 128, 160\)\] at 2 x 128 x 160, the model \[\(2, 2, "),
    "a size that fails": (fails_when_upright, "fails at 1 x 192 x 96: size 192 is not 128"),
}


@pytest.mark.parametrize("case", WRONG)
def test_the_comparison_finds_what_is_wrong_and_says_where(case: str) -> None:
    run, message = WRONG[case]
    with pytest.raises(UserError, match=message) as caught:
        verify(Twice(), run)
    assert "\n" not in str(caught.value)
    assert len(verify(Twice(), lambda image: 2 * image)) == 6


def test_a_number_that_is_none_does_not_hide_behind_an_output_that_is_right() -> None:
    class Both(Twice):
        def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            return 2 * image, image.sum((1, 2, 3))

    with pytest.raises(UserError, match="differs from the model at 1 x 128 x 160: scores by nan"):
        verify(Both(), lambda x: (2 * x, x.sum((1, 2, 3)) * torch.nan))


def test_labels_that_differ_where_scores_are_close_do_not_pass() -> None:
    def swapped(image: Tensor) -> Tensor:  # near-ties at 1 pixel in 100 fall to the other class
        tie = torch.arange(image.shape[3]) % 100 == 0
        return torch.where(tie, image.mean(1, keepdim=True) + torch.tensor([5e-5, 0.0])[:, None, None], 2 * image)

    class Ties(Twice):
        def forward(self, image: Tensor) -> Tensor:
            tie = torch.arange(image.shape[3]) % 100 == 0
            return torch.where(tie, image.mean(1, keepdim=True) + torch.tensor([0.0, 5e-5])[:, None, None], 2 * image)

    with pytest.raises(UserError, match=r"98.7500% of labels the same \(more than 99.99%\)"):
        verify(Ties(), swapped)


PANOPTIC = "nuclei/panoptic_unet_R_18_FPN.yaml"
REFUSED: dict[str, tuple[str, dict[str, object], str]] = {  # config, arguments, message
    "Mask R-CNN in ONNX": (PANOPTIC, {}, "does not take Mask R-CNN: .* branch on how many .*; --task semantic exports"),
    "Mask R-CNN alone in torch.export": (
        "coco/mask_rcnn_R_50_FPN_1x.yaml",
        {"format": "torch-export"},
        "how many boxes an image has, which a captured graph cannot; torchscript does$",
    ),
    "Panoptic-DeepLab's instances": (
        "cityscapes/panoptic_deeplab_R_52_os16.yaml",
        {"format": "torchscript"},
        "grouping of pixels is not part of a graph; --task semantic",
    ),
    "instances of a semantic model": (
        "camvid/unet_R_18_cpu.yaml",
        {"task": "instance"},
        "--task instance: the config's model is of the task semantic",
    ),
    "labels of a panoptic model": (PANOPTIC, {"format": "torchscript", "labels": True}, "go with semantic models"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_format_does_not_take_is_refused_with_the_reason(case: str) -> None:
    config, arguments, message = REFUSED[case]
    cfg = load_config(config)
    options = {"format": "onnx", "task": task_of(cfg), "preprocessing": False, "labels": False} | arguments
    with pytest.raises(UserError, match=message):
        engine.graph_of(cfg, torch.nn.Module(), **options)  # type: ignore[arg-type]


def test_the_command_line_takes_every_format() -> None:
    assert tuple(EXPORTERS) == FORMATS


def test_a_missing_package_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"--format onnx needs no_such_package: pip install 'seg-ext\[export\]'"):
        replace(EXPORTERS["onnx"], needs=("json", "no_such_package")).check("onnx")


def test_int8_is_smaller_scored_and_kept_only_within_the_limit(
    run_folder: Path,
    onnx_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    onnx = pytest.importorskip("onnx")
    written = onnx_file.read_bytes()
    exporter = replace(EXPORTERS["onnx"], write=lambda graph, file, document: file.write_bytes(written))
    monkeypatch.setitem(EXPORTERS, "onnx", exporter)  # the same file again, without the seconds it takes
    command = [
        "export",
        "--weights",
        str(run_folder / "model_final.pth"),
        "--int8",
        "--images",
        "3",
        "--output",
        str(tmp_path / "x.v2"),
    ]
    assert main([*command, "--max-drop", "100"]) == 0
    said = capsys.readouterr().out
    assert "of float32's" in said and "mIoU" in said
    card = json.loads((tmp_path / "x.v2.int8.card.json").read_text())
    assert card["int8"]["calibration"] == {"data": "export_toy", "images": 3}
    assert card["export"]["bytes"] == (tmp_path / "x.v2.int8.onnx").stat().st_size == card["int8"]["bytes"]
    assert card["int8"]["latency_ratio"] > 0 and 0 <= card["int8"]["miou"] <= 100
    assert (tmp_path / "x.v2.card.json").is_file()
    model = onnx.load(str(tmp_path / "x.v2.int8.onnx"))
    assert any(node.op_type == "DequantizeLinear" for node in model.graph.node)
    weights = {x.data_type for x in model.graph.initializer if x.name.endswith("weight_quantized")}
    assert weights == {onnx.TensorProto.INT8}
    assert model.metadata_props[0].value == onnx.load(str(onnx_file)).metadata_props[0].value
    (tmp_path / "x.v2.int8.onnx").unlink()
    assert main([*command, "--max-drop", "-100"]) == 2
    assert "more than --max-drop -100.0: not kept" in capsys.readouterr().err
    assert not (tmp_path / "x.v2.int8.onnx").exists() and (tmp_path / "x.v2").exists()
