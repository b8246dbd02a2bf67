"""``seg-ext serve``: what it refuses before it builds a model."""

import importlib.util
from types import SimpleNamespace

import pytest
from detectron2.data.catalog import Metadata
from torch import nn

from seg_ext.cli import serve
from seg_ext.cli.main import main
from seg_ext.config import load_config
from seg_ext.serve.service import Limits, Refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--weights is missing: give the checkpoint of a trained model"),
        (["--max-upload", "0"], "--max-upload 0.0: takes a number above 0"),
        (["--max-pixels", "nan"], "--max-pixels nan: takes a number above 0"),
        (["--max-upload", "inf"], "--max-upload inf: takes a number above 0"),
        (["--queue", "-1"], "--queue -1: takes 0 or more"),
        (["--port", "0"], "--port 0: takes 1 to 65535"),
        (["--port", "65536"], "--port 65536: takes 1 to 65535"),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_line(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serve, "find_spec", lambda name: importlib.util.find_spec("sys"))
    pytest.importorskip("uvicorn", reason="needs the extra `demo`")
    assert main(["serve", "--no-page", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_model_of_keypoints_is_served_without_its_mirror_image(monkeypatch: pytest.MonkeyPatch) -> None:
    stub = SimpleNamespace(model=nn.Identity(), read=None, metadata=Metadata())
    monkeypatch.setattr("seg_ext.engine.predictor.Predictor", lambda cfg: stub)
    service = serve.build_service(load_config("coco/keypoint_rcnn_R_50_FPN_1x.yaml"), Limits())
    with pytest.raises(Refused, match="takes no mirror images"):
        service.segment(b"", tta=True)


def test_missing_packages_are_named_with_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serve, "find_spec", lambda name: None if name == "gradio" else importlib.util.find_spec("sys"))
    assert main(["serve"]) == 2
    assert "serve needs gradio: pip install 'seg-ext[demo]'" in capsys.readouterr().err
